"""The process group: calls that all ranks make together, and errors that all of them get."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from mpembed.errors import NonFiniteUpdateError

T = TypeVar("T")
EVALUATION, TRAINING, BACKWARD = range(3)  # kinds of calls
_KINDS = "a forward in evaluation", "a training forward", "a backward"


class Header(NamedTuple):
    """What a rank says of a call before it sends anything.

    Attributes
    ----------
    kind, number : int
        Which call it makes, and of which forward: the same on all ranks.
    failed : int
        1 where it cannot.
    batch_size : int
        Bags a table.
    weighted : int
        1 where its batch has per-sample weights.
    """

    kind: int
    number: int
    failed: int = 0
    batch_size: int = 0
    weighted: int = 0


class Ranks:
    """A process group.

    Parameters
    ----------
    group : ProcessGroup or None
        None is the default group.

    Attributes
    ----------
    size, rank : int
        Of the group, and this process in it.
    device : torch.device
        Where what is sent lies.
    """

    def __init__(self, group: Any) -> None:
        self._group, self.device = group, torch.device("cpu")
        self._failed: str | None = None
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        if self.rank < 0:
            raise ValueError("process_group must have this process among its ranks")

    def together(self, what: str, make: Callable[[], T]) -> list[T]:
        """Return what `make` returns on each rank; raise on all if it raises on one."""
        made: Any = None
        error = None
        try:
            made = make()
        except Exception as found:
            error = found
        told: list[Any] = [None] * self.size
        text = None if error is None else f"{type(error).__name__}: {error}"
        dist.all_gather_object(told, (made, text), self._group)
        if error is not None:
            raise error
        for rank, (_, refused) in enumerate(told):
            if refused is not None:
                raise RuntimeError(f"rank {rank} refused {what}, so no rank did it: {refused}")
        return [one for one, _ in told]

    @contextmanager
    def midway(self) -> Iterator[None]:
        """Refuse all later calls if this one ends between its exchanges.

        What the others still send for it would be taken for an answer to the next one. An update
        that is not finite is the last thing of a call, so that it may go on.
        """
        try:
            yield
        except NonFiniteUpdateError:
            raise
        except BaseException as error:
            self._failed = f"{type(error).__name__}: {error}"
            raise

    def announce(
        self, header: Header, counts: Sequence[Sequence[int]], error: Exception | None = None
    ) -> tuple[list[Header], list[list[int]]]:
        """Tell every rank what is to come; raise on all ranks where one cannot do it.

        Parameters
        ----------
        header : Header
            Of this rank.
        counts : sequence of sequence of int
            For each rank, the number of indices for each of its tables.
        error : Exception, optional
            Why this rank cannot do it.

        Returns
        -------
        tuple
            The headers of all ranks, and the numbers of indices that each has for the tables here.
        """
        if self._failed is not None:
            raise RuntimeError(
                f"an earlier call of rank {self.rank} has failed between its messages to the other "
                f"ranks ({self._failed}): start all ranks again, from a checkpoint"
            )
        size = len(header)
        parts = [[torch.tensor([*header, *one], device=self.device)] for one in counts]
        received = self.exchange(parts, lambda _: [size, len(counts[self.rank])], torch.int64)
        headers = [Header(*one.tolist()) for one, _ in received]

        def refuse() -> None:
            if error is not None:
                raise error

        for failed in [one for one in headers if one.failed]:
            self.together(_KINDS[failed.kind], refuse)
        for rank, one in enumerate(headers):
            if one[:2] != header[:2]:
                raise RuntimeError(
                    f"rank {rank} calls {_KINDS[one.kind]} of forward {one.number} while rank "
                    f"{self.rank} calls {_KINDS[header.kind]} of forward {header.number}, so no "
                    "rank did it: all ranks must make the same calls in the same order, with "
                    "batches that may be empty and a loss that reaches the output"
                )
        return headers, [one.tolist() for _, one in received]

    def exchange(
        self,
        parts: Sequence[Sequence[Tensor]],
        sizes: Callable[[int], Sequence[int]],
        dtype: torch.dtype,
    ) -> list[Sequence[Tensor]]:
        """Send tensors of a type to each rank; return the vectors that each rank has sent.

        `sizes` gives the sizes of the vectors of a rank.
        """
        expected = [list(sizes(rank)) for rank in range(self.size)]
        lengths = [sum(part.numel() for part in one) for one in parts]
        totals = [sum(one) for one in expected]
        pieces = [part.flatten() for one in parts for part in one]
        sent = torch.cat([torch.empty(0, dtype=dtype, device=self.device), *pieces])
        received = sent.new_empty(sum(totals))
        dist.all_to_all_single(received, sent, totals, lengths, group=self._group)
        by_rank = zip(received.split(totals), expected, strict=True)
        return [whole.split(one) for whole, one in by_rank]
