"""Programs on a CUDA device: the bytes of the eager calls on the CPU, and errors by name.

JAX runs them on the CPU here; their calls get a stream and memory of the device: xla_programs.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import graphs
import jax
import jax.numpy as jnp
import xla_programs
from jitted import (
    INDICES,
    OFFSETS,
    batches,
    jitted_step,
    net_step,
    one_table,
    same_bytes,
    sum_step,
    train_several_lookups,
    weights,
)
from on_device import OnDevice
from xla_calls import Calls, HandlerError
from xla_programs import twins

import mpembed as mpe
from mpembed.jax import JitCollection, StaleStateError

pytestmark = pytest.mark.gpu

STEPS = 50
STATE, TICKET, OUTPUT = ((4,), "float32"), ((4,), "int32"), ((3, 8), "float32")
INVALID, PRECONDITION, UNIMPLEMENTED, INTERNAL = 3, 9, 12, 13


@pytest.fixture
def calls(cuda: str) -> Iterator[Calls]:
    with graphs.runtime() as runtime:
        made = Calls(runtime)
        with xla_programs.emulate(made):
            yield made


def failure(call: Any) -> str:
    """Return the message of a program's error."""
    with pytest.raises(Exception, match="mpembed") as caught:
        jax.block_until_ready(call())
    assert isinstance(caught.value, jax.errors.JaxRuntimeError | ValueError)
    return str(caught.value)


@pytest.mark.parametrize(("precision", "cached"), [("fp32", False), ("int4", True)])
def test_fifty_steps(calls: Calls, cuda: str, precision: str, cached: bool) -> None:
    collection, device, twin = twins(cuda, precision, cached)
    emb = JitCollection(collection)
    step, dense, state = jitted_step(emb), weights(), emb.state()
    twin_dense = weights()
    for indices, offsets, labels in batches(STEPS):
        loss, dense, state = step(dense, state, indices, offsets, labels)
        pooled = jnp.asarray(twin.forward(indices, offsets))
        expected, twin_dense, grad = net_step(twin_dense, pooled, labels)
        twin.backward(grad)
        assert float(loss) == float(expected)
    assert np.asarray(dense).tobytes() == np.asarray(twin_dense).tobytes()
    assert emb.collection(state) is collection
    assert collection.updates == STEPS
    assert same_bytes(device, twin)


def test_weights_and_several_lookups(calls: Calls, cuda: str) -> None:
    collection, device, twin = twins(cuda)
    train_several_lookups(collection, twin)
    assert same_bytes(device, twin)


def test_evaluation_and_a_loop(calls: Calls, cuda: str) -> None:
    collection, device, twin = twins(cuda)
    emb = JitCollection(collection)
    given = [batch[:2] for batch in batches(3)]
    stacked = [jnp.stack(arrays) for arrays in zip(*given, strict=True)]

    def body(state: Any, batch: Any) -> Any:
        after = jax.grad(lambda state: jnp.sum(emb.lookup(state, *batch)))(state)
        pooled, after = emb.evaluate(after, *batch)
        return after, pooled

    state, pooled = jax.jit(lambda state: jax.lax.scan(body, state, stacked))(emb.state())
    for number, batch in enumerate(given):
        twin.backward(np.ones_like(twin.forward(*batch)))
        assert np.array_equal(pooled[number], twin.forward(*batch, training=False))
    emb.collection(state)
    assert same_bytes(device, twin)


def test_an_unpooled_table(calls: Calls, cuda: str) -> None:
    config = mpe.TableConfig("t", 40, 8, pooling="none")
    collection, twin = (
        mpe.EmbeddingBagCollection([config], optimizer=mpe.SGD(lr=0.1), device=name)
        for name in (cuda, "cpu")
    )
    emb = JitCollection(collection)
    step = jax.grad(lambda state: jnp.sum(emb.lookup(state, INDICES, OFFSETS)))
    emb.collection(jax.jit(step)(emb.state()))
    twin.backward({"t": np.ones_like(twin.forward(INDICES, OFFSETS)["t"])})
    assert same_bytes(OnDevice(collection), twin)


# ---- states that are found wrong late -------------------------------------------------------


LATE = "a program was run with a wrong state, which a device tells late: its calls up to here were "
LATE += "made. "


def test_a_state_that_is_used_twice(calls: Calls, cuda: str) -> None:
    """Every later call says so, until a new state is taken: here the update after the forward."""
    collection = one_table(device=cuda)
    emb = JitCollection(collection)
    step, first = sum_step(emb, OFFSETS), emb.state()
    state = step(first, INDICES).block_until_ready()
    for given in (first, state):
        message = failure(lambda given=given: step(given, INDICES))
        assert "FAILED_PRECONDITION: mpembed: StaleStateError" in message
        assert LATE + "the state was used already" in message
    with pytest.raises(StaleStateError, match=LATE):
        emb.collection(state)
    assert collection.updates == 1
    assert emb.collection(step(emb.state(), INDICES)).updates == 2


def test_a_wrong_state_that_no_call_has_told(calls: Calls, cuda: str) -> None:
    emb, other = JitCollection(one_table(device=cuda)), JitCollection(one_table(device=cuda))
    look, old = jax.jit(emb.evaluate), emb.state()
    for wrong, message in (
        (old, "the state was used already"),
        (other.state(), "the state or ticket is not this collection's"),
        (jnp.zeros(4), "the state is zero: the loss"),
        (jnp.full(4, np.nan), "is not this collection's"),
        (jnp.asarray(np.full(4, -1, np.int32).view(np.float32)), "is not this collection's"),
    ):
        state = emb.state()
        look(wrong, INDICES, OFFSETS)[0].block_until_ready()
        with pytest.raises(StaleStateError, match=f"{LATE}.*{message}"):
            emb.collection(state)
        state = emb.state()
        look(wrong, INDICES, OFFSETS)[0].block_until_ready()
        with pytest.raises(StaleStateError, match=f"{LATE}.*{message}"):
            emb.state()
        emb.collection(emb.state())


def test_more_states_than_are_kept(calls: Calls, cuda: str) -> None:
    emb = JitCollection(one_table(device=cuda))
    look, state = jax.jit(emb.evaluate), emb.state()
    for _ in range(150):
        _, state = look(state, INDICES, OFFSETS)
    emb.collection(state)


def test_what_the_host_counts_is_told_at_once(calls: Calls, cuda: str) -> None:
    collection = one_table(device=cuda)
    emb = JitCollection(collection)
    state = emb.state()
    pooled, ticket = jax.jit(emb.forward)(state, INDICES, OFFSETS)
    message = failure(lambda: jax.jit(emb.forward)(state, INDICES, OFFSETS))
    assert "a forward of this state waits for its backward" in message
    message = failure(lambda: jax.jit(emb.backward)([(pooled, ticket), (pooled, ticket)]))
    assert "the tickets are not those of all forwards that wait" in message
    state, _ = jax.jit(emb.backward)(pooled, ticket)
    message = failure(lambda: jax.jit(emb.backward)(pooled, ticket))
    assert "the tickets are not those of all forwards that wait" in message
    message = failure(lambda: jax.jit(emb.forward)(ticket, INDICES, OFFSETS))
    assert "the ticket is not that of the latest forward" in message
    assert emb.collection(state).updates == 1


def test_an_index_is_told_by_check(calls: Calls, cuda: str) -> None:
    """As of eager calls on a device."""
    emb = JitCollection(one_table(device=cuda))
    state = sum_step(emb, OFFSETS)(emb.state(), np.array([1, 2, 999, 2], np.int32))
    collection = emb.collection(state)
    with pytest.raises(IndexError, match="index 999 at position 2"):
        collection.check()


# ---- calls by hand --------------------------------------------------------------------------


def test_calls_by_hand(calls: Calls, cuda: str) -> None:
    collection, twin = one_table(device=cuda), one_table()
    emb = JitCollection(collection)
    number, state = emb._home.ordinal, np.asarray(emb.state())
    pooled, ticket = calls("forward", [state, INDICES, OFFSETS], [OUTPUT, TICKET], number)
    assert np.array_equal(pooled, twin.forward(INDICES, OFFSETS))
    (after,) = calls("backward", [ticket, pooled], [STATE], number)
    twin.backward(pooled)
    assert not np.array_equal(after, state)
    assert emb.collection(after) is collection
    assert same_bytes(OnDevice(collection), twin)


def test_errors_of_calls_by_hand(calls: Calls, cuda: str) -> None:
    collection = one_table(device=cuda)
    emb = JitCollection(collection)
    number, state = emb._home.ordinal, np.asarray(emb.state())
    arguments, results = [state, INDICES, OFFSETS], [OUTPUT, TICKET]

    def refused(code: int, message: str, *given: Any, **options: Any) -> None:
        with pytest.raises(HandlerError, match=message) as caught:
            calls("forward", *given, **options)
        assert caught.value.code == code

    refused(INVALID, "TypeError: .* has XLA's type 16", arguments, results, number, {1: 16})
    refused(INVALID, r"TypeError: indices: expected dtype int32 or int64.*, got float32",
            [state, INDICES.astype(np.float32), OFFSETS], results, number)  # fmt: skip
    refused(INVALID, "out: expected shape", arguments, [((2, 8), "float32"), TICKET], number)
    refused(INVALID, "has 3 dimensions", [state, INDICES.reshape(1, 2, 2), OFFSETS], results,
            number)  # fmt: skip
    refused(INVALID, "a state or a ticket was expected", [state[:3], *arguments[1:]], results,
            number)  # fmt: skip
    refused(INVALID, "another number of arguments", arguments[:2], results, number)
    calls.device = 1
    refused(INVALID, "the program runs on cuda:1, its collection is on cuda:0: compile",
            arguments, results, number)  # fmt: skip
    calls.device = 0
    for wrong in (None, -5, 1 << 40):
        refused(PRECONDITION, "the JitCollection that the program was traced with",
                arguments, results, wrong)  # fmt: skip
    on_cpu = JitCollection(one_table())
    refused(INVALID, "its collection is on cpu", arguments, results, on_cpu._handle.ordinal)
    calls.refuses_stream = True
    refused(INTERNAL, "no stream", arguments, results, number)
    calls.refuses_stream = False
    calls.api.struct_size -= 8
    refused(UNIMPLEMENTED, "interface of foreign functions is not the one", arguments, results,
            number)  # fmt: skip
    calls.api.struct_size += 8
    calls("forward", arguments, results, number)  # nothing had changed


# ---- programs that are compiled -------------------------------------------------------------


def text_for(platform: str, emb: JitCollection) -> str:
    state = jax.ShapeDtypeStruct((4,), jnp.float32)
    lowered = sum_step(emb, OFFSETS).trace(state, INDICES).lower(lowering_platforms=(platform,))
    return str(lowered.as_text())


def test_a_program_for_cuda(cuda: str) -> None:
    emb = JitCollection(one_table(device=cuda))
    text = text_for("cuda", emb)
    for name in ("forward", "backward"):
        (line,) = (line for line in text.splitlines() if f"@mpembed_{name}(" in line)
        assert f"collection = {emb._home.ordinal} : i64" in line


def test_programs_and_collections_of_two_platforms(cuda: str) -> None:
    on_device, on_cpu = JitCollection(one_table(device=cuda)), JitCollection(one_table())
    for platform, emb, message in (
        ("cpu", on_device, "for the CPU, and its collection is on cuda:0. Compile the program for "
         "cuda:0, .*with device='cpu'"),
        ("cuda", on_cpu, "for CUDA, and its collection is on the CPU. Compile the program for the "
         "CPU, .*with device='cuda'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            text_for(platform, emb)
    assert "@mpembed_forward(" in text_for("cpu", on_cpu)
    with pytest.raises(NotImplementedError, match="works on the CPU and on CUDA devices"):
        text_for("tpu", on_device)
