"""The cases to compare: lists that pytest takes as parameters, and the shapes of their tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from arena import Arena
from targets import OPTIMIZERS, THREADS
from workloads import BETWEEN, DISTRIBUTIONS, PRECISIONS, SHAPES, Shape

QUICK_DIVISOR = 20


def product(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Return all combinations, the last axis fastest."""
    return list(itertools.product(*axes))


def name(case: tuple[Any, ...]) -> str:
    """Return a test's id."""
    return "-".join(map(str, case))


def shape_of(arena: Arena, label: str) -> Shape:
    """Return a shape by its label, smaller in a quick run."""
    return SHAPES[label].smaller(QUICK_DIVISOR) if arena.quick else SHAPES[label]


LOOKUP = [
    *product(SHAPES, PRECISIONS, DISTRIBUTIONS, THREADS),
    *product(["4Mx64", "8x1.25Mx16"], BETWEEN, ["uniform"], THREADS),
]
# The first shape has every optimizer; FBGEMM's and PyTorch's tables serve all precisions.
UPDATE = [
    *product(["4Mx64"], OPTIMIZERS, PRECISIONS, DISTRIBUTIONS, THREADS),
    *product(["4Mx64"], ["adam"], ["fp32", "int8", "int4"], ["uniform"], THREADS),
    *product(
        *(["2Mx128", "8x1.25Mx16"], ["rowwise_adagrad"], ["fp32", "int8", "int4"]),
        *(DISTRIBUTIONS, THREADS),
    ),
    *product(["4Mx64", "8x1.25Mx16"], ["rowwise_adagrad"], BETWEEN, ["uniform"], THREADS),
]
