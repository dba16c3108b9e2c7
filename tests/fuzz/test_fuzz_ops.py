"""Random arguments to every function of ``mpembed.ops``: an error or a result, no crash.

Each example draws a right call and spoils up to three of its arguments. Inputs never change, and
what fails changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from helpers import Array
from hypothesis import given
from hypothesis import strategies as st
from strategies import ERRORS, ODD, bag_offsets, floats, fuzz, odd_arrays, row_numbers, twisted

from mpembed import ops, registry


def sampled(draw: st.DrawFn, names: Any) -> Any:
    return draw(st.sampled_from(sorted(names)))


class Call:
    """Draws right keyword arguments of one function of ``mpembed.ops``."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.precision = sampled(draw, registry.FORMATS)
        self.n, self.dim = draw(st.integers(0, 7)), draw(st.integers(1, 70))
        self.width = registry.row_bytes(self.precision, self.dim)
        self.key = {
            "seed": draw(st.integers(0, 2**64 - 1)),
            "step": draw(st.integers(0, 2**40 - 1)),
        }
        self.table = {"precision": self.precision, "dim": self.dim}

    def bytes(self, *shape: int) -> Array:
        rng = np.random.default_rng(self.draw(st.integers(0, 999)))
        return rng.integers(0, 256, shape, np.uint8)

    def make(self, name: str) -> dict[str, Any]:
        family = name.partition("_int")[0] if "_int" in name else name
        right: dict[str, Any] = getattr(self, f"{family.rstrip('_')}_call")(name)
        return right

    def out(self, shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        return {"out": np.zeros(shape, dtype)} if self.draw(st.booleans()) else {}

    def quantize_call(self, _: str) -> dict[str, Any]:
        rounding = sampled(self.draw, registry.ROUNDINGS_OF_NEW_ROWS)
        x = self.draw(floats((self.n, self.dim)))
        out = self.out((self.n, self.width), "u1")
        return {"x": x, "precision": self.precision, "rounding": rounding, **self.key, **out}

    def dequantize_call(self, _: str) -> dict[str, Any]:
        rows = self.bytes(self.n, self.width)
        return {"rows": rows, **self.table, **self.out((self.n, self.dim), "f4")}

    def pack_call(self, name: str) -> dict[str, Any]:
        bits = int(name[-1])
        codes = self.bytes(self.n, self.dim) % np.uint8(1 << bits)
        return {"codes": codes, **self.out((self.n, -(-self.dim * bits // 8)), "u1")}

    def unpack_call(self, name: str) -> dict[str, Any]:
        packed = self.bytes(self.n, -(-self.dim * int(name[-1]) // 8))
        return {"packed": packed, "dim": self.dim, **self.out((self.n, self.dim), "u1")}

    def stochastic_round_call(self, _: str) -> dict[str, Any]:
        precision, dtype = self.draw(st.sampled_from([("fp16", "f2"), ("bf16", "u2")]))
        x = self.draw(floats((self.n, self.dim)))
        return {"x": x, "precision": precision, **self.key, **self.out(x.shape, dtype)}

    def unique_rows_call(self, _: str) -> dict[str, Any]:
        return {"indices": self.draw(row_numbers(self.n * 5, 12))}

    def cache_lookup_call(self, _: str) -> dict[str, Any]:
        tags = self.bytes(max(1, self.n), self.dim, 8).view(np.uint64)[..., 0]
        rows = self.draw(row_numbers(self.n, 2**31 - 1)).astype(np.int64) << 17
        return {"tags": tags, "rows": rows, **self.out((self.n,), "i4")}

    def embedding_bag_call(self, _: str) -> dict[str, Any]:
        pooling, bags = sampled(self.draw, registry.POOLINGS), self.draw(st.integers(1, 5))
        count = self.draw(st.integers(0, 12))
        weights = {"per_sample_weights": self.draw(floats((count,)))}
        return {
            "rows": self.bytes(self.n + 1, self.width),
            **self.table,
            "indices": self.draw(row_numbers(count, self.n + 1)),
            "offsets": self.draw(bag_offsets(bags, count)),
            "pooling": pooling,
            **(weights if self.draw(st.booleans()) else {}),
            **self.out((count if pooling == "none" else bags, self.dim), "f4"),
        }

    def sgd_call(self, _: str) -> dict[str, Any]:
        count, rows = self.draw(st.integers(0, 9)), self.n + 1
        floating = self.precision == "fp32" and self.draw(st.booleans())
        matrix = self.draw(floats((rows, self.dim)))
        return {
            "weights": matrix if floating else self.bytes(rows, self.width),
            "rows": self.draw(row_numbers(count, rows)),
            "grads": self.draw(floats((count, self.dim))),
            "lr": self.draw(st.sampled_from([0.0, 0.1, 1e-45, 3e38])),
            "weight_decay": self.draw(st.sampled_from([0.0, 0.1, 3e38])),
            "weight_decay_mode": self.draw(st.sampled_from(["l2", "decoupled"])),
            "rounding": sampled(self.draw, registry.ROUNDINGS),
            **self.table,
            **self.key,
        }

    def state(self, *shape: int) -> Array:
        """Return a state that could be one of any optimizer: FP32, or BF16's bits."""
        if self.draw(st.booleans()):
            return self.bytes(*shape[:-1], shape[-1] * 2).view(np.uint16)
        state: Array = np.abs(self.draw(floats(shape)))
        return state

    def adagrad_call(self, _: str) -> dict[str, Any]:
        return {**self.sgd_call(""), "state": self.state(self.n + 1, self.dim)}

    def rowwise_adagrad_call(self, _: str) -> dict[str, Any]:
        return {**self.sgd_call(""), "state": self.state(self.n + 1)}

    def adam_call(self, name: str) -> dict[str, Any]:
        second = (self.n + 1,) if name == "rowwise_adam_" else (self.n + 1, self.dim)
        return {
            **self.sgd_call(""),
            "exp_avg": self.state(self.n + 1, self.dim),
            "exp_avg_sq": self.state(*second),
            "betas": self.draw(st.sampled_from([(0.9, 0.999), [0, 0], (0.0, 1 - 2**-53)])),
            "updates": self.draw(st.integers(1, 2**63 - 1)),
        }

    rowwise_adam_call = lamb_call = adam_call

    def ftrl_call(self, _: str) -> dict[str, Any]:
        settings = {"lr_power": (-1.0, 0.0), "l1": (0.0, 3e38), "l2": (0.0, 3e38)}
        return {
            **self.sgd_call(""),
            "z": self.state(self.n + 1, self.dim),
            "n": self.state(self.n + 1, self.dim),
            **{key: self.draw(st.floats(*bounds)) for key, bounds in settings.items()},
        }


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Return a function's name and keyword arguments, up to three of them spoilt."""
    name = draw(st.sampled_from(ops.__all__))
    right = Call(draw).make(name)
    for key in draw(st.lists(st.sampled_from(sorted(right)), max_size=3, unique=True)):
        how = draw(st.sampled_from(["odd", "array", "twist", "twist", "twin", "missing"]))
        if how == "missing":
            del right[key]
        elif how == "odd":
            right[key] = draw(ODD)
        elif how == "twin":  # the same memory for two arguments
            right[key] = draw(st.sampled_from(list(right.values())))
        elif how == "array" or not isinstance(right[key], np.ndarray):
            right[key] = draw(odd_arrays())
        else:
            right[key] = draw(twisted(right[key]))
    return name, right


def contents(arguments: dict[str, Any]) -> dict[str, bytes]:
    """Return the bytes of every array but those of 2^40 elements."""
    arrays = {key: value for key, value in arguments.items() if isinstance(value, np.ndarray)}
    plain = {key: a for key, a in arrays.items() if a.size < 2**20 and not a.dtype.hasobject}
    return {key: a.tobytes() for key, a in plain.items()}


@fuzz(0.4)
@given(calls())
def test_ops(call: tuple[str, dict[str, Any]]) -> None:
    name, arguments = call
    before = contents(arguments)
    try:
        result = getattr(ops, name)(**arguments)
    except ERRORS as error:
        assert str(error)
        assert contents(arguments) == before
        return
    if arguments.get("out") is not None:
        assert result is arguments["out"]
    states = "state", "exp_avg", "exp_avg_sq", "z", "n"
    written = [arguments.get(key) for key in ("out", "weights", *states)]
    for key, old in contents(arguments).items():
        assert old == before[key] or any(arguments[key] is array for array in written)
