"""One batch between its admission and its backward."""

from typing import Any

from mpembed._bindings.kernels import GroupBatch
from mpembed._bindings.view import View


class OpenBatch:
    """What a forward or prefetch leaves for the backward: each group's share of the batch.

    Attributes
    ----------
    shares : list of GroupBatch
        One for each group; empty once the batch is closed.
    batch_size, num_indices : int
        Bags a table; indices of all tables.
    weighted : bool
        Whether the forward had per-sample weights.
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
        "shapes",
        "shares",
        "weighted",
    )

    def __init__(
        self,
        shares: list[GroupBatch],
        batch_size: int,
        num_indices: int,
        *,
        weighted: bool,
        capture: int,
    ) -> None:
        self.shares = shares
        self.batch_size = batch_size
        self.num_indices = num_indices
        self.weighted = weighted
        self.capture = capture
        self.open = True
        self.arguments: list[View] = []
        self.shapes: Any = None
        self.named_counts: dict[str, int] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of workspace."""
        return sum(share.nbytes for share in self.shares)

    def pairs(self, groups: list[Any]) -> list[tuple[Any, GroupBatch]]:
        """Return each group with its share of the batch."""
        return list(zip(groups, self.shares, strict=True))

    def same_rows(self, shares: list[GroupBatch]) -> bool:
        """Whether a batch of the CPU asks for the same rows in the same bags."""
        pairs = zip(self.shares, shares, strict=True)
        return all(mine.same_rows(theirs) for mine, theirs in pairs)

    def same_arrays(self, arguments: list[View]) -> bool:
        """Whether a batch lies in the memory of this prefetch."""
        return [_location(a) for a in self.arguments] == [_location(a) for a in arguments]

    def use_weights_of(self, shares: list[GroupBatch], *, weighted: bool) -> None:
        """Use the per-sample weights of the forward that takes a prefetch over."""
        self.weighted = weighted
        for mine, theirs in zip(self.shares, shares, strict=True):
            mine.use_weights_of(theirs)

    def close(self) -> list[GroupBatch]:
        """Give up the shares, whose rows the caller unpins."""
        shares, self.shares, self.open = self.shares, [], False
        self.arguments = []
        return shares


def _location(array: View) -> tuple[int, int, str]:
    return array.address, array.size, array.dtype
