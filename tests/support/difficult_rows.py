"""Rows that are difficult to encode: all magnitudes, ties, far from zero, at the limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

KINDS = ["scaled", "mixed", "subnormal", "half_subnormal", "constant", "extreme", "zeros"]
KINDS += ["narrow", "grid", "bits", "beyond"]


def rows_of(kind: str, rng: np.random.Generator, rows: int, dim: int, limit: float) -> F32:
    """Rows of one kind of difficulty, all within `limit`."""
    shape = (rows, dim)
    normal = rng.standard_normal(shape)
    x: npt.NDArray[Any]
    if kind == "scaled":
        x = normal * 10.0 ** rng.uniform(-46, 38, (rows, 1))
    elif kind == "mixed":
        x = normal * 10.0 ** rng.uniform(-46, 38, shape)
    elif kind == "subnormal":
        x = rng.integers(-9, 10, shape) * 2.0**-149
    elif kind == "half_subnormal":
        x = normal * 2.0 ** rng.uniform(-28, -13, shape)
    elif kind == "constant":
        x = np.broadcast_to(normal[:, :1] * 10.0 ** rng.uniform(-40, 5, (rows, 1)), shape)
    elif kind == "extreme":
        x = rng.choice([limit, -limit, limit / 2, 0.0], shape)
    elif kind == "zeros":
        x = rng.choice([0.0, -0.0], shape)
    elif kind == "narrow":
        far = (normal[:, :1] * 10.0 ** rng.uniform(-30, 4, (rows, 1))).astype(np.float32)
        steps = rng.integers(0, rng.integers(1, 600), shape)
        x = (np.abs(far).view(np.int32) + steps).astype(np.int32).view(np.float32) * np.sign(far)
    elif kind == "beyond":  # the range of the others does not reach the first
        x = limit / (1 + 2.0**-6) * (rng.random(shape) * 2.0 ** -rng.uniform(4, 14, shape) - 1)
        x[:, 0] = -limit
        x *= rng.choice([-1.0, 1.0])
    elif kind == "grid":
        x = rng.integers(-512, 513, shape) * 2.0 ** rng.integers(-20, 5, (rows, 1)) / 2
    else:
        x = rng.integers(0, 2**32, shape, dtype=np.uint64).astype(np.uint32).view(np.float32)
        x = np.where(np.isfinite(x), x, 1.0)
    with np.errstate(over="ignore"):
        return np.clip(x, -limit, limit).astype(np.float32)
