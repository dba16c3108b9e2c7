"""The marker ``pairwise``: a few cases of a test's full product of parameters for every run.

On the CPU, the cases kept show each value of every parameter together with each value of every
other one. On a device, they show each value: an emulated device is slow. The rest are marked
``exhaustive``: `pytest` leaves them out, `pytest -m exhaustive` runs them. The values are the parts
between the hyphens of a case's name, ``cpu-sgd-lru-int8``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import pytest


def shown_by(case: str, most: int) -> set[tuple[Any, ...]]:
    """Return what a case shows: its values, and each group of at most `most` of them."""
    values = list(enumerate(case.split("-")))
    return {group for size in range(1, most + 1) for group in combinations(values, size)}


def cover(cases: Sequence[str], most: int = 2) -> set[str]:
    """Return few cases that show all groups which are shown at all, always the same ones."""
    shown = {case: shown_by(case, most) for case in cases}
    missing = set().union(*shown.values())
    chosen = set()
    while missing:
        best = max(shown, key=lambda case: len(shown[case] & missing))
        missing -= shown.pop(best)
        chosen.add(best)
    return chosen


def mark(items: Iterable[pytest.Item]) -> None:
    """Mark the cases of `pairwise` tests that are not needed for the pairs, or for the values."""
    tests: dict[tuple[str, bool], dict[str, pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("pairwise"):
            test, _, case = item.nodeid.removesuffix("]").partition("[")
            on_device = item.get_closest_marker("gpu") is not None
            tests.setdefault((test, on_device), {})[case] = item
    for (_, on_device), cases in tests.items():
        for case in cases.keys() - cover(list(cases), 1 if on_device else 2):
            cases[case].add_marker(pytest.mark.exhaustive)
