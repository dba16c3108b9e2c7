"""The ranks of a run under ``torchrun``: what each does, and what all of them agree on.

Every rank reads the same data and trains its part of each batch. Each table lies whole on one rank;
the perceptrons are on all, and DistributedDataParallel keeps them equal.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn

from mpembed.train.data.options import OptionError

T = TypeVar("T")


class LostRankError(RuntimeError):
    """Another rank has ended or does not answer."""


class Ranks:
    """The processes of a run.

    Attributes
    ----------
    size, rank : int
        How many there are, and which one this is; 1 and 0 without ``torchrun``.
    """

    def __init__(self, size: int = 1, rank: int = 0) -> None:
        self.size, self.rank = size, rank

    def share(self, rows: int) -> slice:
        """Return which rows of a batch this rank trains; none where there are too few."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def sums(self, *values: float) -> list[float]:
        """Return the sums of numbers over all ranks, the same bits on each."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(one) for one in total]

    def gather(self, value: T) -> list[T]:
        """Return what each rank has, on all of them."""
        if self.size == 1:
            return [value]
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, value)
        return told

    def together(self, make: Callable[[], T]) -> T:
        """Return what `make` returns on this rank; all ranks raise what one of them raises.

        The first rank's own error is raised as it is; that of another rank names the rank.
        """
        if self.size == 1:
            return make()
        made: Any = None
        error: Exception | None = None
        try:
            made = make()
        except Exception as found:
            error = found
        told = self.gather(None if error is None else (type(error), str(error)))
        failed = [(rank, one) for rank, one in enumerate(told) if one is not None]
        if failed:
            rank, (kind, text) = failed[0]
            if rank == self.rank and error is not None:
                raise error
            raise _remade(kind, f"rank {rank}: {text}" if rank else text)
        return made  # type: ignore[no-any-return]  # of type T where there is no error

    def check_equal(self, values: Mapping[str, Any]) -> None:
        """Raise OptionError on all ranks where some value is not the same on each."""
        told = self.gather(dict(values))
        for rank, one in enumerate(told):
            for name, value in one.items():
                if value != told[0][name]:
                    raise OptionError(
                        f"rank {rank} has {name} {value!r}, rank 0 {told[0][name]!r}: give all "
                        "ranks the same options and data"
                    )

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, rows: int) -> torch.Tensor:
        """Return this rank's part of a mean loss over `rows` rows, times the number of ranks.

        Tables and DDP divide the gradients of all ranks by their number.
        """
        loss: torch.Tensor
        if self.size == 1:
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
            return loss
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        return loss * self.size / rows

    def wrap(self, net: nn.Module) -> nn.Module:
        """Return a module whose backward averages the gradients of all ranks."""
        if self.size == 1:
            return net
        return nn.parallel.DistributedDataParallel(net)


def _remade(kind: type[Exception], text: str) -> Exception:
    """Return another rank's error; of a kind that is not made of a text alone, a RuntimeError."""
    try:
        return kind(text)
    except TypeError:
        return RuntimeError(f"{kind.__name__}: {text}")


#: A run without ``torchrun``.
ALONE = Ranks()


@contextmanager
def lost_ranks() -> Iterator[None]:
    """Raise LostRankError for what gloo raises where another rank does not answer."""
    try:
        yield
    except RuntimeError as error:  # PyTorch has no other type for it
        if "gloo" not in str(error):
            raise
        reason = str(error).rpartition("] ")[2]
        raise LostRankError(
            f"another rank has ended or does not answer ({reason}); start all of them again"
        ) from None


@contextmanager
def started_ranks() -> Iterator[Ranks]:
    """Join the ranks that ``torchrun`` has started, if it has, and leave them at the end.

    Yields
    ------
    Ranks
        Of the process group of all; it is made with gloo unless the program has made one.

    Raises
    ------
    OptionError
        If the environment does not say where the other ranks are.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_world_size(), dist.get_rank())
        return
    if os.environ.get("WORLD_SIZE", "1") == "1" or "RANK" not in os.environ:
        yield ALONE
        return
    importlib.import_module("torch.distributed.nn")  # later, its defaults would keep the group
    try:
        dist.init_process_group("gloo")
    except (RuntimeError, ValueError) as error:
        raise OptionError(
            f"RANK and WORLD_SIZE are set, but the ranks cannot meet: {error}; start them with "
            "torchrun, or unset both to train in one process"
        ) from None
    try:
        yield Ranks(dist.get_world_size(), dist.get_rank())
        # Where a model still has the group, gloo's threads outlive it, and one that lets go of a
        # tensor while the interpreter ends aborts the process.
        gc.collect()
    finally:
        dist.destroy_process_group()


def merge_memory(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add up what ``memory_report()`` says on each rank.

    Parameters
    ----------
    reports : sequence of dict
        One a rank.

    Returns
    -------
    dict
        The same of all ranks together. Tables lie on one rank each; caches are called
        ``rank.name``, and there are several.
    """
    if len(reports) == 1:
        return reports[0]
    tables: dict[str, Any] = {}
    for report in reports:
        tables |= {name: parts for name, parts in report["tables"].items() if parts["codes"]}
    caches = {
        f"{rank}.{name}": parts
        for rank, report in enumerate(reports)
        for name, parts in report["caches"].items()
    }
    counted = {
        name: sum(report[name] for report in reports)
        for name in reports[0]
        if name not in ("tables", "caches") and not name.startswith("ratio")
    }
    states = sum(parts["optimizer_state"] for parts in (*tables.values(), *caches.values()))
    rows = sum(
        report["ratio_embeddings"]
        * (report["total"] - sum(p["optimizer_state"] for p in _parts(report)))
        for report in reports
    )
    return {
        "tables": tables,
        "caches": caches,
        **counted,
        "ratio": counted["fp32_total"] / counted["total"],
        "ratio_embeddings": rows / (counted["total"] - states),
    }


def _parts(report: dict[str, Any]) -> list[dict[str, int]]:
    return [*report["tables"].values(), *report["caches"].values()]


def merge_tables(
    reports: Sequence[dict[str, T]], memory: Sequence[dict[str, Any]], names: Sequence[str]
) -> dict[str, T]:
    """Join what each rank says of its tables, in the order `names`.

    Parameters
    ----------
    reports, memory : sequence of dict
        What is said, and the ``memory_report()``, one a rank.
    names : sequence of str
        All tables.

    Returns
    -------
    dict
        By table.
    """
    joined: dict[str, T] = {}
    for report, here in zip(reports, memory, strict=True):
        joined |= {name: one for name, one in report.items() if here["tables"][name]["codes"]}
    return {name: joined[name] for name in names}
