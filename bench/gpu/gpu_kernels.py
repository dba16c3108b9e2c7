"""Which kernels take the time of some work, by PyTorch's profiler, which also sees into graphs."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from typing import Any


def missing() -> str | None:
    """Return why there can be no table, or None."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch, whose profiler is used, is not installed"
    import torch

    return None if torch.cuda.is_available() else "PyTorch sees no GPU"


def profile(work: Callable[[], object]) -> list[tuple[str, int, float]]:
    """Return name, launches and seconds of each kernel, copy and fill of some work, slowest first.

    `work` must wait for the device.
    """
    # Or the profiler is set up anew for each profile, after graphs that it then knows nothing of.
    os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    import torch

    torch.cuda.init()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as found:
        work()
        torch.cuda.synchronize()
    return table(found.key_averages())


def table(events: Any) -> list[tuple[str, int, float]]:
    """Return the rows of a profile's averages that ran on a GPU."""
    rows = [
        (short(event.key), event.count, event.self_device_time_total * 1e-6)
        for event in events
        if event.device_type.name == "CUDA"
    ]
    return sorted(rows, key=lambda row: -row[2])


def short(name: str) -> str:
    """Return a kernel's name without its parameters and namespaces."""
    name = re.sub(r"^void ", "", name).replace("(anonymous namespace)::", "")
    depth, end = 0, len(name)
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0 and name[i - 1] != " ":  # not "Memset (Device)"
            end = i
            break
    return re.sub(r"\b(?:mpembed|cuda|cub|detail|CUB_\w+|at|native)::", "", name[:end])[:90]


def text(rows: list[tuple[str, int, float]], steps: int, most: int = 12) -> str:
    """Return the slowest rows, for a step, and what the others take together."""
    lines = [
        f"{seconds / steps * 1e6:10.1f} us {count / steps:6.1f} x {name}"
        for name, count, seconds in rows[:most]
    ]
    rest = sum(seconds for _, _, seconds in rows[most:])
    lines.append(f"{rest / steps * 1e6:10.1f} us        {len(rows[most:])} others")
    return "\n".join(lines)
