"""Runs comparisons: builds the contenders and keeps their tables for the next comparison."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import rounds
from rounds import Contender, Plan
from workloads import FRESH

import mpembed as mpe

PAUSE = 0.01


class AbsentError(Exception):
    """A contender cannot take part, for the reason given."""


@dataclass(frozen=True)
class Entry:
    """How to make a contender: its tables, which comparisons may share, and how it uses them."""

    name: str
    key: Hashable  # of what `build` returns
    build: Callable[[], Any]
    join: Callable[[Any], Contender]


class Shelf:
    """Keeps what the last comparison built; the next one reuses what it can, the rest is freed."""

    def __init__(self) -> None:
        self._held: dict[Hashable, Any] = {}

    def use(self, entries: list[Entry]) -> tuple[list[Contender], dict[str, str]]:
        """Return the contenders, and why others are absent."""
        wanted = {entry.key for entry in entries}
        self._held = {key: held for key, held in self._held.items() if key in wanted}
        gc.collect()  # a reference cycle may hold gigabytes that the next tables need
        found, absent = [], {}
        for entry in entries:
            try:
                if entry.key not in self._held:
                    self._held[entry.key] = entry.build()
                contender = entry.join(self._held[entry.key])
            except AbsentError as reason:
                absent[entry.name] = str(reason)
                continue
            contender.name = entry.name
            found.append(contender)
        return found, absent


def set_threads(threads: int) -> None:
    """Give mpembed and PyTorch the same number of threads."""
    mpe.set_num_threads(threads)
    try:
        import torch
    except ModuleNotFoundError:
        return
    torch.set_num_threads(threads)


@dataclass
class Arena:
    """Runs comparisons; `quick` ones have smaller tables and fewer rounds."""

    quick: bool
    shelf: Shelf

    def compare(
        self,
        benchmark: Any,
        group: str,
        case: dict[str, Any],
        items: int,
        entries: list[Entry],
        fresh: bool = False,
    ) -> None:
        """Compare the entries, mpembed's first, over batches of `items`, and record the results.

        The case says what was compared, in the words that the report looks for. In a `fresh`
        comparison no batch comes twice.
        """
        benchmark.group = group
        set_threads(os.cpu_count() or 1)  # large tables take long to build
        contenders, absent = self.shelf.use(entries)
        set_threads(case["threads"])
        if not contenders or contenders[0].name != rounds.OURS:
            raise RuntimeError(f"mpembed cannot take part: {absent}")
        pause = PAUSE if case["threads"] > 1 else 0.0
        most, calls = (FRESH, 1) if fresh else (100, 4)
        plan = Plan(1.2, most, 7, pause, calls)
        if self.quick:
            plan = Plan(0.1, 10, 3, pause, calls)
        found = rounds.compare(benchmark, contenders, plan)
        found.update(case=case, items=items, absent=absent, quick=self.quick)
        benchmark.extra_info.update(found)
