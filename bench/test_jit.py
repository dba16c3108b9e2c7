"""The overhead of a jitted step of mpembed.jax over the bare calls with the same arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import ours
import pytest
from rounds import OURS
from test_call import CALLS, SHAPE, Call, repeated
from test_module import BARE, NUMPY
from workloads import Shape

SHAPES = {"1x1": SHAPE, "26x512": Shape(26, 20_000, 16, 1, bags=512)}  # tables x bags


def arrays(shape: Shape) -> tuple[Any, Any, Any]:
    """Return indices, offsets and a gradient."""
    import jax.numpy as jnp

    indices = np.random.default_rng(0).integers(0, shape.rows, shape.lookups)
    offsets = shape.offsets.astype(np.int32)
    grad = jnp.full((shape.bags, shape.width), 1e-3, jnp.float32)
    return jnp.asarray(indices, jnp.int32), jnp.asarray(offsets), grad


def bare(shape: Shape, *, numpy: bool = False) -> Call:
    emb, given = ours.collection(shape, "int4"), arrays(shape)
    indices, offsets, grad = map(np.asarray, given) if numpy else given

    def step() -> None:
        emb.forward(indices, offsets)
        emb.backward(grad)

    return step


def jitted(shape: Shape) -> Call:
    """Make both calls in one program, and wait for it."""
    import jax

    from mpembed.jax import JitCollection

    emb, given = JitCollection(ours.collection(shape, "int4")), arrays(shape)

    @jax.jit
    def program(state: Any, indices: Any, offsets: Any, grad: Any) -> Any:
        _, ticket = emb.forward(state, indices, offsets)
        return emb.backward(grad, ticket)[0]

    state = emb.state()

    def step() -> None:
        nonlocal state
        state = program(state, *given).block_until_ready()

    return step


@pytest.mark.parametrize("shape", SHAPES)
def test_jitted_step(benchmark: Any, arena: Any, shape: str) -> None:
    pytest.importorskip("jax")
    chosen = SHAPES[shape]
    entries = [
        repeated(OURS, lambda: jitted(chosen)),
        repeated(BARE, lambda: bare(chosen)),
        repeated(NUMPY, lambda: bare(chosen, numpy=True)),
    ]
    what = {"operation": "jitted step", "shape": shape, "threads": 1}
    arena.compare(benchmark, "jit", what, CALLS, entries)
