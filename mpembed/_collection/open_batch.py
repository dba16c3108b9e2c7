"""One batch between its admission and its backward."""

from typing import Any

from mpembed._bindings.kernels import OpenedBatch
from mpembed._bindings.view import View


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
    open : bool
        Whether the batch still waits for its backward.
    arguments : list of View
        A prefetch's indices and offsets, kept so that their memory is not reused meanwhile.
    shapes : tuple, or dict of table name -> tuple
        Of the outputs.
    named_counts : dict of table name -> int, or None
        Indices of each table where the weights came as a dict, and so will their gradient.
    """

    __slots__ = (
        "arguments",
        "batch_size",
        "capture",
        "named_counts",
        "num_indices",
        "open",
        "opened",
        "shapes",
    )

    def __init__(self, opened: OpenedBatch, batch_size: int, num_indices: int) -> None:
        self.opened = opened
        self.batch_size = batch_size
        self.num_indices = num_indices
        self.capture = opened.capture
        self.open = True
        self.arguments: list[View] = []
        self.shapes: Any = None
        self.named_counts: dict[str, int] | None = None

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
        return [_location(a) for a in self.arguments] == [_location(a) for a in arguments]


def _location(array: View) -> tuple[int, int, str]:
    return array.address, array.size, array.dtype
