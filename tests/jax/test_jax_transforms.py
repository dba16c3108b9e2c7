"""What JAX's transformations do to calls in a program: each is made once, in order, or refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
from jitted import INDICES, OFFSETS, one_table, same_bytes, sum_step

from mpembed.jax import JitCollection

PAIR = np.stack([INDICES, INDICES])


def loss(emb: JitCollection, state: Any) -> Any:
    return jnp.sum(emb.lookup(state, INDICES, OFFSETS))


def trained(steps: int) -> Any:
    """Return a table after eager steps of the same loss."""
    twin = one_table()
    for _ in range(steps):
        twin.backward(np.ones_like(twin.forward(INDICES, OFFSETS)))
    return twin


def update(emb: JitCollection) -> Callable[[Any], Any]:
    return jax.grad(lambda state: loss(emb, state))


def repeated(emb: JitCollection, wrap: Callable[..., Any]) -> Any:
    """Return the state after three steps of a wrapped loss."""
    step = jax.jit(jax.grad(wrap(lambda state: loss(emb, state))))
    state = emb.state()
    for _ in range(3):
        state = step(state)
    return state


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        jax.jit,
        jax.checkpoint,
        lambda f: jax.jit(jax.checkpoint(jax.jit(f))),
        lambda f: jax.checkpoint(f, policy=jax.checkpoint_policies.everything_saveable),
    ],
    ids=["plain", "jit", "checkpoint", "jit of checkpoint of jit", "checkpoint with a policy"],
)
def test_a_wrapped_loss_makes_each_call_once(wrap: Callable[..., Any]) -> None:
    emb = JitCollection(one_table())
    assert same_bytes(emb.collection(repeated(emb, wrap)), trained(3))


def test_a_checkpoint_of_weights_that_are_computed() -> None:
    factors = jnp.arange(1.0, 5.0)

    def total(emb: JitCollection, state: Any, factors: Any) -> Any:
        return jnp.sum(emb.lookup(state, INDICES, OFFSETS, jnp.sin(factors)))

    found = []
    for wrap in (jax.checkpoint, lambda f: f):
        emb = JitCollection(one_table())
        grad = jax.jit(jax.grad(wrap(partial(total, emb)), argnums=(0, 1)))
        state, by_factors = grad(emb.state(), factors)
        found.append((emb.collection(state), by_factors))
    assert same_bytes(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])


def test_without_jit() -> None:
    emb = JitCollection(one_table())
    assert same_bytes(emb.collection(update(emb)(emb.state())), trained(1))


def test_an_update_whose_state_is_not_used_is_made() -> None:
    emb = JitCollection(one_table())

    @jax.jit
    def step(state: Any) -> Any:
        value, _ = jax.value_and_grad(lambda state: loss(emb, state))(state)
        return value

    first = emb.state()
    step(first).block_until_ready()
    assert same_bytes(emb._collection, trained(1))
    with pytest.raises(Exception, match="the state was used already"):
        step(first).block_until_ready()


def test_an_inner_program_of_which_nothing_is_used_is_left_out() -> None:
    """JAX drops it whole, before anybody is asked about the calls in it."""
    emb = JitCollection(one_table())
    inner = jax.jit(update(emb))

    @jax.jit
    def program(state: Any, given: Any) -> Any:
        inner(state)
        return given + 1

    state = emb.state()
    program(state, 1.0).block_until_ready()
    assert emb.collection(state).updates == 0  # and the state is still the latest


def test_without_jit_by_jaxs_switch() -> None:
    emb = JitCollection(one_table())
    with jax.disable_jit():
        state = update(emb)(emb.state())
        emb.evaluate(state, INDICES, OFFSETS)
    assert same_bytes(emb.collection(state), trained(1))


def test_a_forward_whose_output_is_not_used_is_made() -> None:
    collection = one_table()
    emb = JitCollection(collection)

    @jax.jit
    def program(state: Any) -> Any:
        emb.forward(state, INDICES, OFFSETS)
        return 2 * state

    program(emb.state()).block_until_ready()
    state = emb.state()  # drops it
    assert emb.collection(state).step == 1


def test_two_steps_in_a_program() -> None:
    emb = JitCollection(one_table())
    state = jax.jit(lambda state: update(emb)(update(emb)(state)))(emb.state())
    assert same_bytes(emb.collection(state), trained(2))


def test_evaluation_between_two_steps_of_a_program() -> None:
    emb = JitCollection(one_table())

    @jax.jit
    def program(state: Any) -> Any:
        before, state = emb.evaluate(state, INDICES, OFFSETS)
        after, state = emb.evaluate(update(emb)(state), INDICES, OFFSETS)
        return before, after, update(emb)(state)

    before, after, state = program(emb.state())
    assert np.array_equal(before, trained(0).forward(INDICES, OFFSETS, training=False))
    assert np.array_equal(after, trained(1).forward(INDICES, OFFSETS, training=False))
    assert same_bytes(emb.collection(state), trained(2))


def test_control_flow() -> None:
    emb = JitCollection(one_table())
    maybe = jax.jit(lambda state, go: jax.lax.cond(go, update(emb), lambda state: state, state))
    state = maybe(maybe(emb.state(), True), False)
    looped = jax.jit(lambda s: jax.lax.fori_loop(0, 2, lambda _, s: update(emb)(s), s))
    assert same_bytes(emb.collection(looped(state)), trained(3))


def test_a_donated_state() -> None:
    emb = JitCollection(one_table())
    step = jax.jit(update(emb), donate_argnums=0)
    first = emb.state()
    state = step(step(first))
    assert same_bytes(emb.collection(state), trained(2))
    assert first.is_deleted()


def test_one_program_serves_two_collections() -> None:
    emb, other = JitCollection(one_table()), JitCollection(one_table())
    step = sum_step(emb, OFFSETS)
    state, other_state = emb.state(), other.state()
    state, other_state = step(state, INDICES), step(step(other_state, INDICES), INDICES)
    assert same_bytes(emb.collection(state), trained(1))
    assert same_bytes(other.collection(other_state), trained(2))


def test_programs_run_in_the_order_of_their_calls() -> None:
    """An evaluation that takes long does not see the update that was started after it."""
    emb = JitCollection(one_table())
    heavy = jnp.full((300, 300), 1 / 300)

    @jax.jit
    def evaluate(state: Any, x: Any) -> Any:
        for _ in range(20):
            x = x @ x
        return emb.evaluate(state, INDICES + (x[0, 0] > 2).astype(jnp.int32), OFFSETS)[0]

    step, state, seen = sum_step(emb, OFFSETS), emb.state(), []
    for _ in range(4):
        seen.append(evaluate(state, heavy))
        state = step(state, INDICES)
    for steps, pooled in enumerate(seen):
        assert np.array_equal(pooled, trained(steps).forward(INDICES, OFFSETS, training=False))


REFUSED: dict[str, tuple[Callable[[JitCollection, Any], Any], str]] = {
    "vmap of lookup": (
        lambda emb, state: jax.vmap(
            lambda i: jax.grad(lambda s: jnp.sum(emb.lookup(s, i, OFFSETS)))(state)
        )(PAIR),
        r"forward cannot be mapped by vmap.*one batch",
    ),
    "vmap of evaluate": (
        lambda emb, state: jax.jit(jax.vmap(lambda i: emb.evaluate(state, i, OFFSETS)))(PAIR),
        r"evaluate cannot be mapped by vmap.*one batch",
    ),
    "no derivative is asked for": (
        lambda emb, state: jax.jit(lambda s: loss(emb, s))(state),
        r"lookup trains.*argnums=\(0, 1\).*call evaluate",
    ),
    "none with regard to the state": (
        lambda emb, state: jax.jit(jax.grad(lambda x: x * loss(emb, state)))(1.0),
        r"differentiated with regard to its state",
    ),
    "a program for another platform": (
        lambda emb, state: (
            jax.jit(emb.evaluate).trace(state, INDICES, OFFSETS).lower(lowering_platforms=("tpu",))
        ),
        r"works on the CPU and on CUDA devices: compile.*call the collection itself",
    ),
    "a derivative of forward": (
        lambda emb, state: jax.grad(lambda s: jnp.sum(emb.forward(s, INDICES, OFFSETS)[0]))(state),
        r"forward has no derivative: differentiate a loss of lookup",
    ),
    "a second derivative": (
        lambda emb, state: jax.grad(lambda s: jnp.sum(jax.grad(lambda t: loss(emb, t) ** 2)(s)))(
            state
        ),
        r"has no derivative",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_as_it_is_traced(name: str) -> None:
    emb = JitCollection(one_table())
    call, message = REFUSED[name]
    with pytest.raises(NotImplementedError, match=message):
        call(emb, emb.state())
    assert same_bytes(emb._collection, trained(0))


TWICE: dict[str, Callable[[JitCollection, Any], Any]] = {
    "in a loss": lambda emb, state: jax.grad(lambda s: loss(emb, s) + loss(emb, s))(state),
    "in a differentiated loop": lambda emb, state: jax.grad(
        lambda s: jax.lax.scan(lambda c, _: (c + loss(emb, s), None), 0.0, None, length=2)[0]
    )(state),
    "in two programs": lambda emb, state: (update(emb)(state), update(emb)(state)),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_state_that_is_used_twice(name: str) -> None:
    """The second use raises, and a new state goes on."""
    collection = one_table()
    emb = JitCollection(collection)
    with pytest.raises(Exception, match=r"StaleStateError.*take a new state"):
        jax.block_until_ready(TWICE[name](emb, emb.state()))
    updates = collection.updates
    assert updates <= 1
    state = jax.jit(update(emb))(emb.state())
    assert emb.collection(state).updates == updates + 1


SEVERAL_DEVICES = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import mpembed as mpe
from mpembed.jax import JitCollection

jax.config.update("jax_num_cpu_devices", 2)
emb = JitCollection(mpe.EmbeddingBagCollection([mpe.TableConfig("t", 9, 4)], optimizer=mpe.SGD(1)))
state, ends, half = emb.state(), np.arange(5, dtype=np.int32), np.arange(3, dtype=np.int32)
mesh = jax.make_mesh((2,), ("x",))
split = jax.device_put(np.arange(4, dtype=np.int32), NamedSharding(mesh, PartitionSpec("x")))
look = lambda i: emb.evaluate(state, i, half)[0]
spec = PartitionSpec("x")
calls = {
    "pmap": lambda: jax.pmap(look)(np.zeros((2, 2), np.int32)),
    "shard_map": lambda: jax.shard_map(look, mesh=mesh, in_specs=spec, out_specs=spec)(split),
    "sharded": lambda: jax.jit(lambda s, i: emb.evaluate(s, i, ends))(state, split),
}
for name, call in calls.items():
    try:
        print(name, call())
    except NotImplementedError as error:
        print(name, error)
"""


def test_programs_for_several_devices_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", SEVERAL_DEVICES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["pmap", "shard_map", "sharded"]
    assert all("evaluate cannot be part of a program for several devices" in line for line in lines)
