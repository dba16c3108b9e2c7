"""Interleaved rounds: every round runs each contender once, on the same batches.

`pytest-benchmark` times mpembed; its setup hook, which runs before each of its rounds and is not
timed, runs the others. A disturbance of the machine thus affects all of them alike, and the ratios
compare runs that are close in time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

OURS, LIMIT = "mpembed", "limit"
Step = Callable[[int], Any]  # runs batch i


def nothing(_: int) -> None:
    """Prepare nothing."""


@dataclass
class Contender:
    """A participant in a comparison."""

    name: str
    run: Step
    prepare: Step = nothing  # before each run, not timed
    reports: bool = False  # run returns its seconds
    seconds: list[float] = field(default_factory=list)

    def ready(self, i: int, pause: float) -> None:
        """Prepare the run of batch i, and wait; neither is timed."""
        self.prepare(i)
        end = time.perf_counter() + pause
        while time.perf_counter() < end:  # not asleep: an idle processor cools down
            pass

    def timed(self, i: int, calls: int) -> None:
        """Run the i-th group of `calls` batches and record the mean time of one."""
        start, reported = time.perf_counter(), 0.0
        for call in range(calls):
            result = self.run(i * calls + call)
            reported += result if self.reports else 0.0
        taken = reported if self.reports else time.perf_counter() - start
        self.seconds.append(taken / calls)


@dataclass
class Plan:
    """How long a comparison may take.

    After a peer's work, OpenMP's threads spin for some milliseconds on a processor that the next
    contender's second thread needs; `pause` is longer than that.
    """

    budget: float  # seconds of rounds
    most: int
    least: int
    pause: float  # seconds before each run
    calls: int  # calls in a row that make a run; threads wake up in the first

    def rounds(self, round_seconds: float) -> int:
        """Return how many rounds fit."""
        return max(self.least, min(self.most, int(self.budget / max(round_seconds, 1e-6))))


def warm_up(contenders: list[Contender], pause: float, calls: int) -> float:
    """Run all of them for two rounds; return the seconds of the second."""
    start = 0.0
    for i in range(2):
        start = time.perf_counter()
        for one in contenders:
            one.ready(i, pause)
            one.timed(i, calls)
    taken = time.perf_counter() - start
    for one in contenders:
        one.seconds.clear()
    return taken


def compare(benchmark: Any, contenders: list[Contender], plan: Plan) -> dict[str, Any]:
    """Run the rounds; the first contender is mpembed's. Return what goes into extra_info."""
    ours, others = contenders[0], contenders[1:]
    # A preparation is good for one call only.
    calls = plan.calls if all(one.prepare is nothing for one in contenders) else 1
    count = plan.rounds(warm_up(contenders, plan.pause, calls))
    at = iter(range(2, 2 + count + 1))

    def setup() -> tuple[tuple[int, int], dict[str, Any]]:
        i = next(at)
        for one in others:
            one.ready(i, plan.pause)
            one.timed(i, calls)
        ours.ready(i, plan.pause)
        return (i, calls), {}

    benchmark.pedantic(ours.timed, setup=setup, rounds=count)
    return {"calls": calls, **summary(contenders)}


def summary(contenders: list[Contender]) -> dict[str, Any]:
    """Return the median time of a call, and how many times as fast as each other mpembed is.

    A ratio is the other contender's time over mpembed's in the same round, the median of all
    rounds. The ratio to the limit is the fraction of what the machine can do.
    """
    ours = contenders[0].seconds
    ratios = {
        one.name: statistics.median(b / a for a, b in zip(ours, one.seconds, strict=True))
        for one in contenders[1:]
    }
    return {
        "rounds": len(ours),
        "seconds": {one.name: statistics.median(one.seconds) for one in contenders},
        "fastest": {one.name: min(one.seconds) for one in contenders},
        "ratios": ratios,
    }
