"""The marker ``pairwise``: a few cases of a test's full product of parameters for every run.

The cases kept show each value of every parameter together with each value of every other one, on
the CPU alone and on a device alone, because a machine may have no device. The rest are marked
``exhaustive``: `pytest` leaves them out, `pytest -m exhaustive` runs them. The values are the parts
between the hyphens of a case's name, ``cpu-sgd-lru-int8``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import pytest


def pairs(case: str) -> set[tuple[Any, ...]]:
    """Return what a case shows: its values, and each two of them."""
    values = list(enumerate(case.split("-")))
    return {*((value,) for value in values), *combinations(values, 2)}


def cover(cases: Sequence[str]) -> set[str]:
    """Return few cases that show all pairs which are shown at all, always the same ones."""
    shown = {case: pairs(case) for case in cases}
    missing = set().union(*shown.values())
    chosen = set()
    while missing:
        best = max(shown, key=lambda case: len(shown[case] & missing))
        missing -= shown.pop(best)
        chosen.add(best)
    return chosen


def mark(items: Iterable[pytest.Item]) -> None:
    """Mark the cases of `pairwise` tests that are not needed for the pairs."""
    tests: dict[tuple[str, bool], dict[str, pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("pairwise"):
            test, _, case = item.nodeid.removesuffix("]").partition("[")
            on_device = item.get_closest_marker("gpu") is not None
            tests.setdefault((test, on_device), {})[case] = item
    for cases in tests.values():
        for case in cases.keys() - cover(list(cases)):
            cases[case].add_marker(pytest.mark.exhaustive)
