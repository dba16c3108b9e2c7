"""Errors of a program: the collection's own words, nothing changed, and how to go on."""

from __future__ import annotations

import dataclasses
import gc
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
from helpers import digest
from jitted import INDICES, OFFSETS, ROWS, one_table, same_bytes, sum_step, tables

import mpembed as mpe
from mpembed.jax import JitCollection, JitTicket, StaleStateError


def failure(call: Callable[[], Any]) -> str:
    """Return the message of a program's error."""
    with pytest.raises(Exception, match="mpembed") as caught:
        jax.block_until_ready(call())
    assert isinstance(caught.value, jax.errors.JaxRuntimeError | ValueError)
    return str(caught.value)


def test_a_wrong_index_changes_nothing_and_the_state_stays_good() -> None:
    collection = one_table()
    emb = JitCollection(collection)
    step, state, before = sum_step(emb, OFFSETS), emb.state(), digest(collection)
    message = failure(lambda: step(state, np.array([1, 2, ROWS, 2], np.int32)))
    assert "IndexError: table 't'" in message
    assert f"index {ROWS} at position 2 of indices is out of range" in message
    assert digest(collection) == before
    assert emb.collection(step(state, INDICES)).updates == 1


def test_wrong_offsets() -> None:
    collection = one_table()
    emb = JitCollection(collection)
    look = jax.jit(emb.evaluate)
    message = failure(lambda: look(emb.state(), INDICES, np.array([0, 3, 1, 4], np.int32)))
    assert "ValueError: offsets must not decrease: offsets[2] is 1" in message


def test_an_index_in_the_second_of_several_lookups() -> None:
    """The first of them is undone by the next state: it never becomes an update."""
    collection = tables()
    emb = JitCollection(collection)
    ends = np.array([0, 1, 2, 3], np.int32)

    def loss(state: Any, second: Any) -> Any:
        return sum(
            jnp.sum(one) for one in emb.lookups(state, [(INDICES[:3], ends), (second, ends)])
        )

    step = jax.jit(jax.grad(loss))
    state = emb.state()
    assert "IndexError" in failure(lambda: step(state, np.array([1, 2, ROWS], np.int32)))
    message = failure(lambda: step(state, INDICES[:3]))
    assert "a forward of this state waits for its backward, or was left without one" in message
    state = step(emb.state(), INDICES[:3])
    assert emb.collection(state).updates == 1
    assert collection.memory_report()["workspace"] == 0


def test_an_update_that_is_not_finite_raises_after_the_other_rows() -> None:
    jitted, twin = one_table(), one_table()
    emb = JitCollection(jitted)
    scale = np.ones((3, 8), np.float32)
    scale[0] = np.inf

    @jax.jit
    def step(state: Any) -> Any:
        return jax.grad(lambda s: jnp.sum(emb.lookup(s, INDICES, OFFSETS) * scale))(state)

    first = emb.state()
    message = failure(lambda: step(first))
    assert (
        "NonFiniteUpdateError: the update of 1 row(s) would not be finite, first row 1" in message
    )
    twin.forward(INDICES, OFFSETS)
    with pytest.raises(mpe.NonFiniteUpdateError):
        twin.backward(scale)
    assert same_bytes(jitted, twin)
    assert "the state was used already" in failure(lambda: step(first))


def test_states_that_are_none() -> None:
    emb, other = JitCollection(one_table()), JitCollection(one_table())
    step, state = sum_step(emb, OFFSETS), emb.state()
    for changed in (-1.0 * state, np.nan * state):
        message = failure(partial(step, changed, INDICES))
        assert "the state names no collection of this process" in message
    message = failure(partial(step, state.at[2:].add(0.3), INDICES))
    assert "the state was used already" in message  # its version is none
    with pytest.raises(StaleStateError, match=r"another collection's: take a new state"):
        emb.collection(other.state())
    with pytest.raises(ValueError, match=r"state must have 4 values, got shape \(3,\)"):
        emb.collection(np.zeros(3, np.float32))
    newer = emb.state()
    with pytest.raises(StaleStateError, match="the state was used already"):
        emb.collection(state)
    assert emb.collection(newer).updates == 0


@pytest.mark.parametrize("cut", [jax.lax.stop_gradient, lambda x: 0 * x.shape[0]])
def test_a_loss_that_does_not_depend_on_its_lookup(cut: Callable[[Any], Any]) -> None:
    """The gradient of its state is zero, which no call takes for a state."""
    emb = JitCollection(one_table())

    @jax.jit
    def step(state: Any) -> Any:
        return jax.grad(lambda s: jnp.sum(cut(emb.lookup(s, INDICES, OFFSETS))) * 1.0)(state)

    state = step(emb.state())
    assert "the state is zero: the loss" in failure(lambda: step(state))
    assert emb.collection(emb.state()).updates == 0


def test_a_collection_that_is_gone() -> None:
    emb = JitCollection(one_table())
    state = emb.state()
    program = sum_step(emb, OFFSETS).lower(state, INDICES).compile()
    del emb
    gc.collect()
    assert "its JitCollection must be alive" in failure(lambda: program(state, INDICES))


def test_tickets_that_are_not_the_latest() -> None:
    emb = JitCollection(one_table())
    forward, backward = jax.jit(emb.forward), jax.jit(emb.backward)
    state = emb.state()
    one, first = forward(state, INDICES, OFFSETS)
    two, second = forward(first, INDICES, OFFSETS)
    assert "not that of the latest forward" in failure(lambda: forward(first, INDICES, OFFSETS))
    assert "not those of all forwards" in failure(lambda: backward(two, second))
    assert "not those of all forwards" in failure(lambda: backward([(two, second), (one, first)]))
    state, _ = backward([(one, first), (two, second)])
    assert "not those of all forwards" in failure(lambda: backward([(one, first), (two, second)]))
    assert emb.collection(state).updates == 1


def test_tickets_of_two_collections() -> None:
    pairs, collections = [], []
    for _ in range(2):
        emb = JitCollection(one_table())
        one, first = jax.jit(emb.forward)(emb.state(), INDICES, OFFSETS)
        two, second = jax.jit(emb.forward)(first, INDICES, OFFSETS)
        collections.append(emb)
        pairs.append([(one, first), (two, second)])
    mixed = [pairs[0][0], pairs[1][1]]
    assert "not those of all forwards" in failure(lambda: jax.jit(collections[0].backward)(mixed))
    assert [emb.collection(emb.state()).updates for emb in collections] == [0, 0]


def test_pairs_that_are_none() -> None:
    emb = JitCollection(one_table())
    pooled, ticket = emb.forward(emb.state(), INDICES, OFFSETS)
    with pytest.raises(TypeError, match="ticket must be None where grad is a list"):
        emb.backward([(pooled, ticket)], ticket)
    for wrong in ([], [pooled], [(pooled,)]):
        with pytest.raises(TypeError, match=r"or a list of \(gradient, ticket\), not empty"):
            emb.backward(wrong)


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f])
def test_ids_that_jax_would_cut(jit: Callable[..., Any]) -> None:
    emb, far = JitCollection(one_table()), INDICES.astype(np.int64) + 2**32
    with pytest.raises(ValueError, match="indices: JAX makes int32 of int64"):
        jit(lambda state: emb.evaluate(state, far, OFFSETS))(emb.state())


def test_an_eager_backward_does_not_take_a_programs_forward() -> None:
    collection = one_table()
    emb = JitCollection(collection)
    pooled, ticket = jax.jit(emb.forward)(emb.state(), INDICES, OFFSETS)
    with pytest.raises(RuntimeError, match="backward without a training forward"):
        collection.backward(pooled)
    state, _ = jax.jit(emb.backward)(pooled, ticket)
    assert emb.collection(state).updates == 1


BAD_ARGUMENTS: dict[str, tuple[Callable[[JitCollection], Any], type[Exception], str]] = {
    "float indices": (
        lambda emb: emb.lookup(emb.state(), np.ones(4, np.float32), OFFSETS),
        TypeError,
        "indices must be int32 or int64, got float32",
    ),
    "matrix of indices": (
        lambda emb: emb.lookup(emb.state(), np.ones((2, 2), np.int32), OFFSETS),
        ValueError,
        r"indices must have shape \(4,\), got \(2, 2\)",
    ),
    "a list": (
        lambda emb: emb.lookup(emb.state(), [1, 2], OFFSETS),
        TypeError,
        "indices must be an array, got list",
    ),
    "no offsets": (
        lambda emb: emb.lookup(emb.state(), INDICES, np.zeros(0, np.int32)),
        ValueError,
        r"offsets must have 1 x batch size \+ 1 entries .*got 0",
    ),
    "too few weights": (
        lambda emb: emb.lookup(emb.state(), INDICES, OFFSETS, np.ones(3, np.float32)),
        ValueError,
        r"per_sample_weights must have shape \(4,\), got \(3,\)",
    ),
    "weights of another type": (
        lambda emb: emb.lookup(emb.state(), INDICES, OFFSETS, jnp.ones(4, jnp.bfloat16)),
        TypeError,
        "per_sample_weights must be float32, got bfloat16",
    ),
    "a net's state": (
        lambda emb: emb.lookup(np.zeros(4, np.int32), INDICES, OFFSETS),
        TypeError,
        r"state must be what JitCollection.state\(\).*got int32",
    ),
    "no batches": (lambda emb: emb.lookups(emb.state(), []), ValueError, "1 .. 16, got 0"),
    "a batch of one array": (
        lambda emb: emb.lookups(emb.state(), [(INDICES,)]),
        TypeError,
        r"a batch must be \(indices, offsets\)",
    ),
    "no ticket": (
        lambda emb: emb.backward(np.ones((3, 8), np.float32)),
        TypeError,
        "ticket must be what forward gave, got NoneType",
    ),
    "another ticket": (
        lambda emb: emb.forward(JitTicket(jnp.zeros(2, jnp.int32), None), INDICES, OFFSETS),
        TypeError,
        r"ticket must be what forward gave, int32 \(4,\), got int32 \(2,\)",
    ),
    "a narrow gradient": (
        lambda emb: emb.backward(
            np.ones((3, 7), np.float32), emb.forward(emb.state(), INDICES, OFFSETS)[1]
        ),
        ValueError,
        r"grad must have shape \(3, 8\), got \(3, 7\)",
    ),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_as_they_are_traced(name: str) -> None:
    call, error, message = BAD_ARGUMENTS[name]
    with pytest.raises(error, match=message):
        call(JitCollection(one_table()))


@pytest.mark.parametrize("num_weights", [4, 3, None])
def test_a_ticket_with_another_number_of_weights(num_weights: int | None) -> None:
    """Which a program knows: nothing is written beside its results."""
    emb = JitCollection(one_table())
    weights = None if num_weights == 4 else np.ones(4, np.float32)
    pooled, ticket = emb.forward(emb.state(), INDICES, OFFSETS, weights)
    wrong = dataclasses.replace(ticket, num_weights=num_weights)
    message = failure(lambda: emb.backward(pooled, wrong))
    if num_weights == 3:
        assert "out[0]: expected shape (4,), got (3,)" in message
    else:
        assert "another number of arguments or results" in message
    assert emb._collection.updates == 0


@pytest.mark.parametrize("name", ["forward", "backward", "evaluate"])
def test_handlers_that_are_called_by_hand(name: str) -> None:
    """Without mpembed.jax's checks a wrong call is an error all the same."""
    state, result = JitCollection(one_table()).state(), jax.ShapeDtypeStruct((4,), jnp.float32)
    call = jax.ffi.ffi_call(f"mpembed_{name}", result)
    wrong = "number of arguments or results"
    assert wrong in failure(lambda: call(state))
    both = jax.ffi.ffi_call(f"mpembed_{name}", [result, result])
    message = failure(lambda: both(state[:2], INDICES, OFFSETS))
    assert "a state or a ticket was expected" in message or wrong in message


def test_a_gradient_of_another_batch_size() -> None:
    emb = JitCollection(one_table())
    _, ticket = emb.forward(emb.state(), INDICES, OFFSETS)
    message = failure(lambda: emb.backward(jnp.ones((2, 8)), ticket))
    assert "grad[0]: expected shape (3, 8), got (2, 8)" in message


def test_collections_that_are_refused() -> None:
    with pytest.raises(TypeError, match="collection must be a mpembed.EmbeddingBagCollection"):
        JitCollection([mpe.TableConfig("t", 9, 4)])  # type: ignore[arg-type]
    mixed = [mpe.TableConfig("a", 9, 4), mpe.TableConfig("b", 9, 4, pooling="none")]
    with pytest.raises(
        ValueError, match=r"table 'b' is not pooled.*collection of that table alone"
    ):
        JitCollection(mpe.EmbeddingBagCollection(mixed, optimizer=mpe.SGD(1)))


def test_without_jax_the_import_says_what_to_install(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["jax"] = None
import mpembed
try:
    import mpembed.jax
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.stdout == "mpembed.jax needs JAX: pip install 'mpembed[jax]'\n", done.stderr
