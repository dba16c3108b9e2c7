"""One batch between its admission and its backward."""

from typing import Any

from mpembed._bindings.kernels import OpenedBatch
from mpembed._bindings.view import View
from mpembed._collection.batch_rows import BatchRows


class OpenBatch:
    """What a forward or prefetch leaves for the backward.

    Attributes
    ----------
    opened : OpenedBatch
        The step's own record of it.
    batch_size, num_indices : int
        Bags a table; indices of all tables.
    capture : int
        The capture of a CUDA graph in which the batch was opened; 0 outside of all.
    shapes : tuple, or dict of table name -> tuple
        Of the outputs.
    named_counts : dict of table name -> int, or None
        Indices of each table where the weights came as a dict, and so will their gradient.
    rows : BatchRows or None
        What it asks for, where a backward could fill what a save in the background keeps.
    """

    __slots__ = ("batch_size", "capture", "named_counts", "num_indices", "opened", "rows", "shapes")

    def __init__(self, opened: OpenedBatch, batch_size: int, num_indices: int) -> None:
        self.opened = opened
        self.batch_size = batch_size
        self.num_indices = num_indices
        self.capture = opened.capture
        self.shapes: Any = None
        self.named_counts: dict[str, int] | None = None
        self.rows: BatchRows | None = None

    @property
    def open(self) -> bool:
        """Whether the batch still waits for its backward: as the step has left it."""
        return self.opened.is_open

    @property
    def weighted(self) -> bool:
        """Whether the forward had per-sample weights."""
        return self.opened.weighted

    @property
    def nbytes(self) -> int:
        """Bytes of workspace."""
        return self.opened.nbytes

    def same_arrays(self, arguments: list[View]) -> bool:
        """Whether a batch lies in the memory of this prefetch."""
        kept = self.opened.arguments or []
        return [_location(a) for a in kept] == [_location(a) for a in arguments]


def _location(array: View) -> tuple[int, int, str]:
    return array.address, array.size, array.dtype
