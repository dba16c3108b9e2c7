"""A model of Flax with an optimizer of Optax, whose tables train under jit, has the eager bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("flax", reason="Flax is not installed")
pytest.importorskip("optax", reason="Optax is not installed")

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jitted import DIM, TABLES, batches, same_bytes, tables

from mpembed.jax import JitCollection

STEPS = 50

NET = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(1)])
ADAM = optax.adam(0.01)


def loss_of(params: Any, pooled: Any, labels: Any) -> Any:
    score: Any = NET.apply(params, pooled)
    return optax.sigmoid_binary_cross_entropy(score[:, 0], labels).mean()


def start() -> tuple[Any, Any]:
    params = NET.init(jax.random.key(0), jnp.zeros((1, TABLES * DIM)))
    return params, ADAM.init(params)


def jitted(collection: Any) -> tuple[list[float], Any]:
    emb = JitCollection(collection)

    @jax.jit
    def step(params: Any, moments: Any, state: Any, indices: Any, offsets: Any, labels: Any) -> Any:
        def loss(params: Any, state: Any) -> Any:
            return loss_of(params, emb.lookup(state, indices, offsets), labels)

        value, (grads, state) = jax.value_and_grad(loss, argnums=(0, 1))(params, state)
        updates, moments = ADAM.update(grads, moments, params)
        return value, optax.apply_updates(params, updates), moments, state

    (params, moments), state, losses = start(), emb.state(), []
    for batch in batches(STEPS):
        value, params, moments, state = step(params, moments, state, *batch)
        losses.append(float(value))
    assert emb.collection(state) is collection
    return losses, params


def eager(collection: Any) -> tuple[list[float], Any]:
    @jax.jit
    def step(params: Any, moments: Any, pooled: Any, labels: Any) -> Any:
        value, (grads, grad) = jax.value_and_grad(loss_of, argnums=(0, 1))(params, pooled, labels)
        updates, moments = ADAM.update(grads, moments, params)
        return value, optax.apply_updates(params, updates), moments, grad

    (params, moments), losses = start(), []
    for indices, offsets, labels in batches(STEPS):
        pooled = jnp.asarray(collection.forward(indices, offsets))
        value, params, moments, grad = step(params, moments, pooled, labels)
        collection.backward(grad)
        losses.append(float(value))
    return losses, params


@pytest.mark.parametrize(
    ("precision", "cached"),
    [pytest.param("fp32", False, marks=pytest.mark.exhaustive), ("int4", True)],
)
def test_fifty_steps(precision: str, cached: bool) -> None:
    under_jit, twin = tables(precision, cached), tables(precision, cached)
    losses, params = jitted(under_jit)
    expected, expected_params = eager(twin)
    assert losses == expected
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(expected_params), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert same_bytes(under_jit, twin)
