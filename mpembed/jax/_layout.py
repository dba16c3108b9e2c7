"""What programs may pass: types and shapes, checked as they are traced."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpembed._bindings.contract import MAX_GRADIENTS
from mpembed._bindings.xla import DIGITS
from mpembed.config import TableConfig

Array = Any
Batch = tuple[Array, ...]  # indices, offsets, and per-sample weights if there are any
Shape = tuple[int, ...]


@partial(jax.tree_util.register_dataclass, data_fields=["digits"], meta_fields=["num_weights"])
@dataclass(frozen=True)
class JitTicket:
    """A forward that waits for its backward, in a program or between two.

    Attributes
    ----------
    digits : int32 (4,)
        Which collection, and which of its forwards.
    num_weights : int or None
        How many per-sample weights the forward had; None for none.
    """

    digits: Array
    num_weights: int | None


class Layout:
    """The shapes of a collection's batches and outputs."""

    def __init__(self, tables: Sequence[TableConfig]) -> None:
        unpooled = [table.name for table in tables if table.pooling == "none"]
        if unpooled and len(tables) > 1:
            raise ValueError(
                f"table {unpooled[0]!r} is not pooled, so the sizes of its outputs depend on "
                "offsets, which a program does not know: make a collection of that table alone"
            )
        self.unpooled = unpooled[0] if unpooled else None
        self._tables = len(tables)
        self._width = sum(table.embedding_dim for table in tables)

    def output(self, batch: Batch) -> tuple[Shape, str]:
        """Return shape and type of a batch's output."""
        indices, offsets = batch[:2]
        bags = (offsets.shape[0] - 1) // self._tables
        return (bags if self.unpooled is None else indices.shape[0], self._width), "float32"

    def batches(self, given: Sequence[tuple[Array, ...]]) -> tuple[Batch, ...]:
        """Return checked batches.

        Raises
        ------
        TypeError, ValueError
            If one is not (indices, offsets) or (indices, offsets, weights), or an array has another
            type or shape.
        """
        if not 1 <= len(given) <= MAX_GRADIENTS:
            raise ValueError(
                f"batches must be 1 .. {MAX_GRADIENTS}, got {len(given)}: train more in several "
                "updates"
            )
        return tuple(self._batch(one) for one in given)

    def _batch(self, given: tuple[Array, ...]) -> Batch:
        if not isinstance(given, tuple | list) or len(given) not in (2, 3):
            raise TypeError(
                "a batch must be (indices, offsets) or (indices, offsets, per_sample_weights)"
            )
        indices, offsets = _array("indices", given[0]), _array("offsets", given[1])
        for name, one in (("indices", indices), ("offsets", offsets)):
            if one.dtype not in (jnp.int32, jnp.int64):
                raise TypeError(f"{name} must be int32 or int64, got {one.dtype}")
            _require_shape(name, one, (one.size,))
        if offsets.size < 1 or (offsets.size - 1) % self._tables != 0:
            raise ValueError(
                f"offsets must have {self._tables} x batch size + 1 entries (table-major, the last "
                f"one the number of indices), got {offsets.size}"
            )
        if len(given) == 2 or given[2] is None:
            return indices, offsets
        weights = _array("per_sample_weights", given[2])
        _require_float("per_sample_weights", weights, (indices.size,))
        return indices, offsets, weights

    def state(self, given: Array) -> Array:
        """Return a checked state."""
        state = _array("state", given)
        if state.dtype != jnp.float32 or state.shape != (DIGITS,):
            raise TypeError(
                f"state must be what JitCollection.state(), backward, evaluate or the gradient of "
                f"lookup gives, float32 ({DIGITS},), got {state.dtype} {state.shape}"
            )
        return state

    def state_or_ticket(self, given: Array | JitTicket) -> Array:
        """Return the array of a checked state or ticket."""
        return self.ticket(given) if isinstance(given, JitTicket) else self.state(given)

    def ticket(self, given: JitTicket) -> Array:
        """Return the array of a checked ticket."""
        if not isinstance(given, JitTicket):
            raise TypeError(f"ticket must be what forward gave, got {type(given).__name__}")
        digits = _array("ticket", given.digits)
        if digits.dtype != jnp.int32 or digits.shape != (DIGITS,):
            raise TypeError(
                f"ticket must be what forward gave, int32 ({DIGITS},), got {digits.dtype} "
                f"{digits.shape}"
            )
        return digits

    def gradient(self, name: str, given: Array) -> Array:
        """Return the checked gradient of an output, whose rows the collection itself counts."""
        grad = _array(name, given)
        _require_float(name, grad, (*grad.shape[:1], self._width))
        return grad


def _array(name: str, given: Any) -> Array:
    if not hasattr(given, "dtype") or not hasattr(given, "shape"):
        raise TypeError(f"{name} must be an array, got {type(given).__name__}")
    made = jnp.asarray(given)
    # What a program gets as an argument JAX has cut before anybody can look.
    cut = isinstance(given, np.ndarray) and made.dtype != given.dtype
    if cut and (given != given.astype(made.dtype)).any():
        raise ValueError(
            f"{name}: JAX makes {made.dtype} of {given.dtype}, which does not hold all values: "
            "give smaller numbers, or set jax_enable_x64"
        )
    return made


def _require_float(name: str, array: Array, shape: Shape) -> None:
    if array.dtype != jnp.float32:
        raise TypeError(f"{name} must be float32, got {array.dtype}: cast it, with its gradient")
    _require_shape(name, array, shape)


def _require_shape(name: str, array: Array, shape: Shape) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
