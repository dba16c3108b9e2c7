"""Models whose tables are trained inside compiled programs of JAX, and the same by eager calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from helpers import digest

import mpembed as mpe
from mpembed.jax import JitCollection

Array = npt.NDArray[Any]
ROWS, DIM, BAGS, TABLES = 300, 8, 16, 3
#: Three bags of one table.
INDICES, OFFSETS = np.array([1, 2, 3, 2], np.int32), np.array([0, 1, 3, 4], np.int32)


def tables(
    precision: str = "int4", cached: bool = True, optimizer: Any = None, device: str = "cpu"
) -> Any:
    """Return three tables, pooled in both ways, with a cache of 5 % or without one."""
    poolings = ("sum", "mean", "sum")
    return mpe.EmbeddingBagCollection(
        [
            mpe.TableConfig(f"t{number}", ROWS, DIM, precision=precision, pooling=pooling)
            for number, pooling in enumerate(poolings)
        ],
        cache=mpe.CacheConfig(load_factor=0.05, policy="lfu", ways=8) if cached else None,
        optimizer=mpe.RowwiseAdagrad(lr=0.1) if optimizer is None else optimizer,
        device=device,
    )


def one_table(**options: Any) -> Any:
    """Return a table of FP32 trained by SGD."""
    settings = {"optimizer": mpe.SGD(lr=0.1), **options}
    return mpe.EmbeddingBagCollection([mpe.TableConfig("t", ROWS, DIM)], **settings)


def batches(steps: int) -> Iterator[tuple[Array, Array, Array]]:
    """Yield indices, offsets and labels; all have the same shapes."""
    rng = np.random.default_rng(4)
    for _ in range(steps):
        cuts = np.sort(rng.integers(0, 201, TABLES * BAGS - 1))
        offsets = np.concatenate([[0], cuts, [200]]).astype(np.int32)
        indices = (ROWS * rng.random(200) ** 3).astype(np.int32)
        yield indices, offsets, rng.integers(0, 2, BAGS).astype(np.float32)


def weights() -> Any:
    """Return a dense net of one layer."""
    return jnp.asarray(np.random.default_rng(9).standard_normal(TABLES * DIM), jnp.float32)


def loss_of(dense: Any, pooled: Any, labels: Any) -> Any:
    score = pooled @ dense
    return jnp.mean(jnp.logaddexp(0, score) - labels * score)


def jitted_step(emb: JitCollection) -> Callable[..., Any]:
    """Return the compiled step: (net, state, batch) -> (loss, net, state)."""

    @jax.jit
    def step(dense: Any, state: Any, indices: Any, offsets: Any, labels: Any) -> Any:
        def loss(dense: Any, state: Any) -> Any:
            return loss_of(dense, emb.lookup(state, indices, offsets), labels)

        value, (grad, after) = jax.value_and_grad(loss, argnums=(0, 1))(dense, state)
        return value, dense - 0.5 * grad, after

    return step


@jax.jit
def net_step(dense: Any, pooled: Any, labels: Any) -> Any:
    """Return the loss, the net after a step and the gradient of what was looked up."""
    value, (grad, by_pooled) = jax.value_and_grad(loss_of, argnums=(0, 1))(dense, pooled, labels)
    return value, dense - 0.5 * grad, by_pooled


def sum_step(emb: JitCollection, offsets: Array) -> Any:
    """Return a compiled step without a net: (state, indices) -> state."""

    def loss(state: Any, indices: Any) -> Any:
        return jnp.sum(emb.lookup(state, indices, offsets))

    return jax.jit(jax.grad(loss))


def same_bytes(one: Any, other: Any) -> bool:
    """Whether two collections hold the same bytes: rows, states, caches, counts."""
    return digest(one) == digest(other)


def train_several_lookups(collection: Any, twin: Any) -> None:
    """Train two lookups, one of them with weights, in one update; the twin by eager calls."""
    emb = JitCollection(collection)
    (first, ends, _), (second, other_ends, _) = batches(2)
    factors = np.linspace(0, 1, len(second), dtype=np.float32)

    def loss(state: Any, factors: Any) -> Any:
        one, two = emb.lookups(state, [(first, ends), (second, other_ends, factors)])
        return jnp.sum(one) + 2 * jnp.sum(two)

    state, found = jax.jit(jax.grad(loss, argnums=(0, 1)))(emb.state(), factors)
    one, ticket = twin.forward(first, ends, ticket=True)
    two, other = twin.forward(second, other_ends, factors, ticket=True)
    grads = twin.backward([(np.ones_like(one), ticket), (np.full_like(two, 2), other)])
    assert np.array_equal(found, grads[1])
    emb.collection(state)
