"""A model that trains under jit has the bytes of the eager calls: losses, net, tables, caches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
from jitted import (
    BAGS,
    DIM,
    TABLES,
    batches,
    jitted_step,
    net_step,
    one_table,
    same_bytes,
    tables,
    train_several_lookups,
    weights,
)

import mpembed as mpe
from mpembed.jax import JitCollection

STEPS = 50
OPTIMIZERS = {"sgd": mpe.SGD(lr=0.1), "rowwise_adagrad": mpe.RowwiseAdagrad(lr=0.1)}


def train_eagerly(twin: Any, steps: int = STEPS) -> tuple[list[Any], Any]:
    dense, losses = weights(), []
    for indices, offsets, labels in batches(steps):
        pooled = jnp.asarray(twin.forward(indices, offsets))
        loss, dense, grad = net_step(dense, pooled, labels)
        twin.backward(grad)
        losses.append(loss)
    return losses, dense


@pytest.mark.parametrize(("precision", "cached"), [("fp32", False), ("int4", True)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fifty_steps(precision: str, cached: bool, optimizer: str) -> None:
    jitted, twin = (tables(precision, cached, OPTIMIZERS[optimizer]) for _ in range(2))
    emb = JitCollection(jitted)
    step, dense, state, losses = jitted_step(emb), weights(), emb.state(), []
    for batch in batches(STEPS):
        loss, dense, state = step(dense, state, *batch)
        losses.append(loss)
    expected, twin_dense = train_eagerly(twin)
    assert [float(loss) for loss in losses] == [float(loss) for loss in expected]
    assert np.asarray(dense).tobytes() == np.asarray(twin_dense).tobytes()
    assert emb.collection(state) is jitted
    assert same_bytes(jitted, twin)
    assert not np.array_equal(
        jitted.rows("t0", np.arange(9)), tables(precision).rows("t0", np.arange(9))
    )


def test_a_scan_over_the_steps() -> None:
    jitted, twin = tables(), tables()
    emb = JitCollection(jitted)

    def body(state: Any, batch: Any) -> Any:
        def loss(state: Any) -> Any:
            pooled = emb.lookup(state, *batch)
            return jnp.sum(pooled), pooled

        (_, pooled), after = jax.value_and_grad(loss, has_aux=True)(state)
        return after, pooled

    given = [batch[:2] for batch in batches(8)]
    stacked = [jnp.stack(arrays) for arrays in zip(*given, strict=True)]
    state, pooled = jax.jit(lambda state: jax.lax.scan(body, state, stacked))(emb.state())
    for number, batch in enumerate(given):
        expected = twin.forward(*batch)
        assert np.array_equal(pooled[number], expected)
        twin.backward(np.ones_like(expected))
    assert same_bytes(emb.collection(state), twin)


def test_another_batch_size_compiles_again_and_goes_on() -> None:
    jitted, twin = one_table(), one_table()
    emb = JitCollection(jitted)

    @jax.jit
    def step(state: Any, indices: Any, offsets: Any) -> Any:
        return jax.grad(lambda state: jnp.sum(emb.lookup(state, indices, offsets)))(state)

    state = emb.state()
    for bags in (3, 5, 1, 0, 3):
        indices, offsets = np.arange(bags, dtype=np.int32), np.arange(bags + 1, dtype=np.int32)
        state = step(state, indices, offsets)
        twin.backward(np.ones_like(twin.forward(indices, offsets)))
    assert same_bytes(emb.collection(state), twin)


def test_weights_have_their_gradient() -> None:
    jitted, twin = tables(), tables()
    emb = JitCollection(jitted)
    indices, offsets, _ = next(batches(1))
    factors = jnp.linspace(-1, 1, len(indices), dtype=jnp.float32)
    scale = jnp.arange(BAGS * TABLES * DIM, dtype=jnp.float32).reshape(BAGS, TABLES * DIM)

    def loss(state: Any, factors: Any) -> Any:
        return jnp.sum(emb.lookup(state, indices, offsets, factors) * scale)

    state, found = jax.jit(jax.grad(loss, argnums=(0, 1)))(emb.state(), factors)
    twin.forward(indices, offsets, factors)
    assert np.array_equal(found, twin.backward(scale))
    assert same_bytes(emb.collection(state), twin)


def test_several_lookups_are_one_update() -> None:
    jitted, twin = tables(), tables()
    train_several_lookups(jitted, twin)
    assert same_bytes(jitted, twin)


@pytest.mark.parametrize("programs", [1, 3])
def test_gradients_accumulate_over_forwards(programs: int) -> None:
    """Forward, forward, backward: in one program, or each in its own."""
    jitted, twin = tables(), tables()
    emb = JitCollection(jitted)
    (first, ends, _), (second, other_ends, _) = batches(2)

    def accumulate(state: Any, compiled: Any) -> Any:
        one, ticket = compiled(emb.forward)(state, first, ends)
        two, other = compiled(emb.forward)(ticket, second, other_ends)
        return compiled(emb.backward)([(one, ticket), (two, other)])[0]

    if programs == 1:
        state = jax.jit(lambda state: accumulate(state, lambda call: call))(emb.state())
    else:
        state = accumulate(emb.state(), jax.jit)
    one, ticket = twin.forward(first, ends, ticket=True)
    two, other = twin.forward(second, other_ends, ticket=True)
    twin.backward([(one, ticket), (two, other)])
    assert same_bytes(emb.collection(state), twin)


def test_evaluation_changes_nothing() -> None:
    jitted, twin = tables(), tables()
    emb = JitCollection(jitted)
    indices, offsets, _ = next(batches(1))
    state = emb.state()
    pooled, after = jax.jit(emb.evaluate)(state, indices, offsets)
    assert np.array_equal(pooled, twin.forward(indices, offsets, training=False))
    assert np.array_equal(after, state)
    assert same_bytes(emb.collection(after), twin)


def test_an_unpooled_table_alone() -> None:
    config = mpe.TableConfig("t", 40, DIM, pooling="none")
    jitted, twin = (
        mpe.EmbeddingBagCollection([config], optimizer=mpe.SGD(lr=0.1)) for _ in range(2)
    )
    emb = JitCollection(jitted)
    indices, offsets = np.array([3, 1, 3], np.int32), np.array([0, 2, 3], np.int32)

    def loss(state: Any) -> Any:
        rows = emb.lookup(state, indices, offsets)
        assert rows.shape == (3, DIM)
        return jnp.sum(rows)

    state = jax.jit(jax.grad(loss))(emb.state())
    twin.backward({"t": np.ones_like(twin.forward(indices, offsets)["t"])})
    assert same_bytes(emb.collection(state), twin)


def test_int64_indices_where_jax_has_them() -> None:
    jitted, twin = one_table(), one_table()
    emb = JitCollection(jitted)
    indices, offsets = np.array([3, 1, 3]), np.array([0, 2, 3])
    with jax.enable_x64(True):
        pooled, ticket = jax.jit(emb.forward)(emb.state(), indices, offsets)
        state, none = jax.jit(emb.backward)(pooled, ticket)
    assert none is None
    twin.backward(twin.forward(indices, offsets))
    assert same_bytes(emb.collection(state), twin)
