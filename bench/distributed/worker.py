"""One rank of a comparison: all contenders take turns on the same batches."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import product
from typing import Any

import torch
from distributed import contenders, wire
from distributed.cases import MODES, Setting, indices
from distributed.contenders import Contender
from torch import distributed as dist

import mpembed

_TIMEOUT = timedelta(seconds=120)
_WARM = 16  # steps before the first measurement


@dataclass
class Turns:
    """What a contender took in each of its turns, a step."""

    cpu: list[float] = field(default_factory=list)  # seconds of this process
    wall: list[float] = field(default_factory=list)
    received: list[float] = field(default_factory=list)  # bytes


def join(rank: int, world: int, store: str) -> None:
    """Make this process a rank, with one thread for each library."""
    torch.set_num_threads(1)
    mpembed.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=_TIMEOUT,
    )


def compare(setting: Setting, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what each contender took on this rank; all ranks call it."""
    rank = dist.get_rank()
    batches = [contenders.batch(one, setting.length) for one in indices(setting, rank)]
    made = [contenders.make(name, mode, setting) for mode, name in product(MODES, names)]
    turns = [Turns() for _ in made]
    for one in made:
        for number in range(_WARM):
            one.step(batches[number % len(batches)])
    gc.collect()
    gc.disable()  # it would run in any contender's turn
    for number in range(setting.rounds):
        start = number % len(made)
        for place in [*range(start, len(made)), *range(start)]:
            _turn(made[place], turns[place], batches, number * setting.steps, setting.steps)
    gc.enable()
    return [_result(one, turn, setting) for one, turn in zip(made, turns, strict=True)]


def _turn(one: Contender, turn: Turns, batches: Sequence[Any], first: int, steps: int) -> None:
    dist.barrier()
    before = wire.received()
    dist.barrier()
    barrier = wire.received() - before
    before = wire.received()
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(first, first + steps):
        one.step(batches[number % len(batches)])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    dist.barrier()
    turn.cpu.append(cpu / steps)
    turn.wall.append(wall / steps)
    turn.received.append((wire.received() - before - barrier) / steps)


def _result(one: Contender, turn: Turns, setting: Setting) -> dict[str, Any]:
    return {
        "name": one.name,
        "mode": one.mode,
        "cpu": turn.cpu,
        "wall": turn.wall,
        "received": turn.received,
        "held": one.held(),
        "expected": one.expected(),
    }
