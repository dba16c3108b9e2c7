"""The optimizers as their papers write them, in double precision; rows without gradient rest.

What trains is compared with them over many sparse batches: the relative error must stay small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

#: A setting of each optimizer in which every parameter matters.
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "sgd_momentum": {"momentum": 0.9},
    "adagrad": {"lr_decay": 0.01, "eps": 1e-10, "initial_accumulator_value": 0.1},
    "rowwise_adagrad": {"eps": 1e-8, "initial_accumulator_value": 0.1},
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8},
    "rowwise_adam": {"betas": (0.9, 0.999), "eps": 1e-8},
    "lamb": {"betas": (0.9, 0.999), "eps": 1e-6},
    "ftrl": {
        "lr_power": -0.5,
        "l1": 0.05,
        "l2": 0.1,
        "beta": 1.0,
        "initial_accumulator_value": 0.1,
    },
}
DECAYS = {"none": 0.0, "l2": 0.01, "decoupled": 0.05}


class Oracle:
    """A table and its optimizer; `w` and the states are dense, in double precision."""

    def __init__(self, kind: str, w: Any, lr: float, mode: str, p: Mapping[str, Any]) -> None:
        self.kind, self.lr, self.mode, self.p = kind, lr, mode, p
        self.wd = DECAYS[mode]
        self.w: F64 = np.asarray(w, np.float64).copy()
        start = float(p.get("initial_accumulator_value", 0.0))
        self.first, self.second = np.zeros_like(self.w), np.full_like(self.w, start)
        self.t = 0

    def step(self, gradients: F64, used: npt.NDArray[np.int64]) -> None:
        """One update of the used rows with their rows of `gradients`."""
        self.t += 1
        w, g = self.w[used], gradients[used]
        first, second = self.first[used], self.second[used]
        if self.mode == "l2":
            g = g + self.wd * w
        if self.mode == "decoupled" and self.kind != "lamb":
            w = w * (1 - self.lr * self.wd)
            if self.kind == "ftrl":
                first = first * (1 - self.lr * self.wd)
        move = getattr(self, self.kind)
        self.w[used], self.first[used], self.second[used] = move(w, g, first, second)

    def sgd(self, w: F64, g: F64, a: F64, b: F64) -> tuple[F64, F64, F64]:
        return w - self.lr * g, a, b

    def sgd_momentum(self, w: F64, g: F64, velocity: F64, b: F64) -> tuple[F64, F64, F64]:
        velocity = self.p["momentum"] * velocity + g
        return w - self.lr * velocity, velocity, b

    def adagrad(self, w: F64, g: F64, a: F64, total: F64) -> tuple[F64, F64, F64]:
        total = total + g**2
        lr = self.lr / (1 + (self.t - 1) * self.p["lr_decay"])
        return w - lr * g / (np.sqrt(total) + self.p["eps"]), a, total

    def rowwise_adagrad(self, w: F64, g: F64, a: F64, total: F64) -> tuple[F64, F64, F64]:
        total = total + (g**2).mean(axis=1, keepdims=True)
        return w - self.lr * g / (np.sqrt(total) + self.p["eps"]), a, total

    def moments(self, g: F64, squares: F64, m: F64, v: F64) -> tuple[F64, F64, float, float]:
        """Both moments, and what corrects their bias."""
        b1, b2 = self.p["betas"]
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * squares
        return m, v, 1 / (1 - b1**self.t), 1 / (1 - b2**self.t)

    def adam(self, w: F64, g: F64, m: F64, v: F64) -> tuple[F64, F64, F64]:
        m, v, fix_m, fix_v = self.moments(g, g**2, m, v)
        return w - self.lr * fix_m / np.sqrt(fix_v) * m / (np.sqrt(v) + self.p["eps"]), m, v

    def rowwise_adam(self, w: F64, g: F64, m: F64, v: F64) -> tuple[F64, F64, F64]:
        m, v, fix_m, fix_v = self.moments(g, (g**2).mean(axis=1, keepdims=True), m, v)
        return w - self.lr * fix_m / np.sqrt(fix_v) * m / (np.sqrt(v) + self.p["eps"]), m, v

    def lamb(self, w: F64, g: F64, m: F64, v: F64) -> tuple[F64, F64, F64]:
        m, v, fix_m, fix_v = self.moments(g, g**2, m, v)
        r = fix_m * m / (np.sqrt(fix_v * v) + self.p["eps"])
        if self.mode == "decoupled":
            r = r + self.wd * w
        norms = [np.linalg.norm(x, axis=1, keepdims=True) for x in (w, r)]
        both = (norms[0] > 0) & (norms[1] > 0)
        ratio = np.where(both, norms[0] / np.where(both, norms[1], 1.0), 1.0)
        return w - self.lr * ratio * r, m, v

    def ftrl(self, w: F64, g: F64, z: F64, n: F64) -> tuple[F64, F64, F64]:
        power, l1 = -self.p["lr_power"], self.p["l1"]
        more = n + g**2
        own = -(w * ((self.p["beta"] + n**power) / self.lr + self.p["l2"]) + np.sign(w) * l1)
        z = np.where(z == 0, own, z)  # a row starts from its weights
        z = z + g - (more**power - n**power) / self.lr * w
        slope = (self.p["beta"] + more**power) / self.lr + self.p["l2"]
        return np.where(np.abs(z) > l1, (np.sign(z) * l1 - z) / slope, 0.0), z, more


def error(got: Any, expected: F64) -> float:
    """Largest error of a row, relative to the row's norm."""
    apart = np.linalg.norm(np.asarray(got, np.float64) - expected, axis=1)
    return float((apart / np.maximum(np.linalg.norm(expected, axis=1), 1e-3)).max())


def sparse_batch(rng: np.random.Generator, rows: int, dim: int, bags: int = 6) -> Any:
    """Return (indices, offsets, gradient of the bags); few rows are used, some of them twice."""
    lengths = rng.integers(0, 4, bags)
    indices = rng.integers(0, rows, lengths.sum())
    grad = rng.standard_normal((bags, dim)).astype(np.float32)
    return indices, np.concatenate([[0], np.cumsum(lengths)]), grad


def row_gradients(rows: int, indices: Any, offsets: Any, grad: Any) -> F64:
    """The sum over a row's lookups, in double precision."""
    total = np.zeros((rows, grad.shape[1]))
    np.add.at(total, indices, np.repeat(grad.astype(np.float64), np.diff(offsets), axis=0))
    return total


def follow(emb: Any, name: str, oracle: Any, steps: int, seed: int = 0) -> None:
    """Train the one table of a collection and an oracle with the same sparse batches, compare."""
    rng = np.random.default_rng(seed)
    rows, dim = oracle.w.shape
    for _ in range(steps):
        indices, offsets, grad = sparse_batch(rng, rows, dim)
        emb.forward(indices, offsets)
        emb.backward(grad)
        oracle.step(row_gradients(rows, indices, offsets, grad), np.unique(indices))
    assert error(emb.rows(name, np.arange(rows)), oracle.w) < 1e-5
