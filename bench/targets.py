"""The targets of the comparisons, and how a result is shown beside its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rounds import LIMIT, OURS

# The axes of the report's tables, which the benchmarks run through.
THREADS = (1, 2)
SKEWS = ("uniform", "zipf0.6", "zipf0.8", "zipf1.05", "zipf1.2", "zipf1.4", "half")
#: The optimizers that have targets, as the tables name them.
OPTIMIZERS = {"sgd": "SGD", "rowwise_adagrad": "rowwise Adagrad", "adagrad": "Adagrad"}


@dataclass(frozen=True)
class Target:
    """A line of the table: a case, and how many times as fast as others it should be.

    `fbgemm` is against FBGEMM at 1 and at 2 threads, `best` against the best peer at 2 threads;
    `limit` is the fraction of the limit at either.
    """

    label: str
    case: dict[str, Any]
    fbgemm: tuple[float, float] | None = None
    best: float | None = None
    limit: float | None = None
    peer: str = "FBGEMM fp32"


@dataclass(frozen=True)
class Bound:
    """A time that a case should not exceed, by the number of threads, in `unit`.

    A second has `scale` units. With `over`, the bound is on the time beyond that contender's.
    """

    label: str
    case: dict[str, Any]
    unit: str
    scale: float
    most: dict[int, float]
    over: str | None = None


def _forward(
    shape: str, precision: str, fbgemm: tuple[float, float], best: float, limit: float
) -> Target:
    case = {"operation": "forward", "shape": shape, "precision": precision}
    case["distribution"] = "uniform"
    label = f"forward {precision}, {shape}"
    return Target(label, case, fbgemm, best, limit, peer=f"FBGEMM {precision}")


def _backward(precision: str, optimizer: str, *numbers: Any) -> Target:
    case = {"operation": "backward", "shape": "4Mx64", "precision": precision}
    case |= {"optimizer": optimizer, "distribution": "uniform"}
    return Target(f"backward + {OPTIMIZERS[optimizer]}, {precision}", case, *numbers)


def _step(precision: str) -> Target:
    case = {"operation": "step", "precision": precision, "cache": True}
    case |= {"optimizer": "rowwise_adagrad", "distribution": "zipf1.05"}
    label = f"whole step, Zipf 1.05, {precision} + 5 % cache, rowwise Adagrad"
    return Target(label, case, (1.5, 2.5), 2.5)


def _convert(operation: str, precision: str) -> Target:
    case = {"operation": operation, "precision": precision}
    return Target(f"{operation} {precision}", case, limit=0.8)


SMALL = "8x1.25Mx16"
TARGETS = [
    _forward("4Mx64", "fp32", (2.1, 4.0), 2.0, 0.9),
    _forward("4Mx64", "fp16", (2.1, 4.0), 2.0, 0.9),
    _forward("4Mx64", "int8", (2.1, 4.0), 1.4, 0.85),
    _forward("2Mx128", "int8", (2.5, 4.0), 1.4, 0.85),
    _forward("4Mx64", "int4", (1.9, 3.6), 2.9, 0.75),
    _forward("2Mx128", "int4", (2.5, 4.0), 2.9, 0.75),
    *(_forward(SMALL, p, (2.5, 4.5), 2.5, 0.7) for p in ("fp32", "fp16", "int8", "int4")),
    _backward("fp32", "sgd", (2.2, 3.6), 3.6, 0.7),
    _backward("fp32", "rowwise_adagrad", (1.3, 2.2), 2.2, 0.75),
    _backward("fp32", "adagrad", (2.8, 4.5), 4.5, 0.6),
    *(_backward(p, o, (1.4, 2.8), 2.8) for p in ("int8", "int4") for o in OPTIMIZERS),
    *(_step(p) for p in ("int8", "int4")),
    *(
        _convert(operation, p)
        for operation in ("quantize nearest", "quantize stochastic", "dequantize")
        for p in ("int8", "int4")
    ),
]
LOOKUP_CASE = {"operation": "cache lookup", "distribution": "uniform"}
BOUNDS = [
    Bound("cache lookup, a key", LOOKUP_CASE, "ns", 1e9, {1: 6.0}),
    *(
        Bound(
            f"insert with eviction and {p} write-back, a row",
            {"operation": "cache insert", "precision": p},
            *("ns", 1e9, {1: 250.0, 2: 130.0}),
        )
        for p in ("int8", "int4")
    ),
    Bound(
        "forward of one bag of one index, a call",
        {"operation": "call", "arrays": "numpy"},
        *("us", 1e6, {1: 10.0}),
    ),
    Bound(
        "a training step by `mpembed.torch`, over one by bare calls",
        {"operation": "module step"},
        *("us", 1e6, {1: 15.0}),
        over="bare calls",
    ),
    Bound(
        "a jitted step by `mpembed.jax`, over one by bare calls",
        {"operation": "jitted step", "shape": "1x1"},
        *("us", 1e6, {1: 30.0}),
        over="bare calls",
    ),
    Bound(
        "an argument as a torch tensor, over a NumPy array",
        {"operation": "argument"},
        *("us", 1e6, {1: 0.5}),
        over="NumPy arguments",
    ),
]


def excess(found: dict[str, Any], bound: Bound) -> float | None:
    """Return the time that a bound is about, in its unit."""
    if not found:
        return None
    seconds = found["seconds"]
    beyond = seconds[OURS] - (seconds[bound.over] if bound.over else 0.0)
    return float(beyond / found["items"] * bound.scale)


def find(results: list[dict[str, Any]], case: dict[str, Any], threads: int) -> dict[str, Any]:
    """Return the result of a case, or an empty dictionary."""
    wanted = {**case, "threads": threads}.items()
    return next((found for found in results if wanted <= found["case"].items()), {})


def best_peer(found: dict[str, Any]) -> float | None:
    """Return how many times as fast as the fastest peer mpembed is."""
    ratios = found.get("ratios", {}).items()
    return min((ratio for name, ratio in ratios if name != LIMIT), default=None)


def beside(
    measured: float | None, target: float | None, unit: str = "x", least: bool = True
) -> str:
    """Return a result and its target as the table shows them."""
    if target is None:
        return "" if measured is None else f"{measured:.2f}{unit}"
    if measured is None:
        return f"not measured ({target:g}{unit})"
    missed = measured < target if least else measured > target
    return f"{measured:.2f}{unit} ({target:g}{unit})" + (" **missed**" if missed else "")
