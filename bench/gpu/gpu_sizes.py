"""Sizes of the programs of gpu.sh; MPEMBED_GPU_SMALLER divides them, to show that all runs."""

from __future__ import annotations

import os

SMALLER = int(os.environ.get("MPEMBED_GPU_SMALLER", "1"))


def size(number: int, least: int = 1) -> int:
    """Return a number of rows, bags or bytes."""
    return max(number // SMALLER, least)


AHEAD = size(8 << 30)  # bytes that the device fills while the host queues what is timed
