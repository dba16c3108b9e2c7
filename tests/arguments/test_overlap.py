"""An argument that is written to may not share memory with any other: the bytes would be chance."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from helpers import Array, batch, collection, digest, train

import mpembed as mpe
from mpembed import ops
from mpembed.collection import collection_state

MEMORY = np.zeros(4096, np.uint8)


def at(start: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an array at a byte of one memory."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    array: Array = MEMORY[start : start + count].view(dtype).reshape(shape)
    return array


F4, U1, I4, I8 = np.float32, np.uint8, np.int32, np.int64


def _two_states(update: Any, shape: tuple[int, ...], count: dict[str, int], s: int) -> Any:
    """Call an optimizer with two states, of which the second begins at s."""
    weights, grads = np.zeros((3, 8), F4), np.ones((3, 8), F4)
    return update(weights, np.arange(3), grads, at(0, (3, 8), F4), at(s, shape, F4), lr=1, **count)


# Each call gets where its second array begins: 8 bytes into the first, or behind it.
CALLS: dict[str, tuple[int, Callable[[int], Any]]] = {
    "quantize": (96, lambda s: ops.quantize(at(0, (3, 8), F4), "int8", out=at(s, (3, 16), U1))),
    "dequantize": (
        48,
        lambda s: ops.dequantize(at(0, (3, 16), U1), "int8", 8, out=at(s, (3, 8), F4)),
    ),
    "pack_int4": (24, lambda s: ops.pack_int4(at(0, (3, 8), U1), out=at(s, (3, 4), U1))),
    "pack_int2": (24, lambda s: ops.pack_int2(at(0, (3, 8), U1), out=at(s, (3, 2), U1))),
    "unpack_int4": (24, lambda s: ops.unpack_int4(at(0, (3, 8), U1), 16, out=at(s, (3, 16), U1))),
    "unpack_int2": (24, lambda s: ops.unpack_int2(at(0, (3, 8), U1), 32, out=at(s, (3, 32), U1))),
    "stochastic_round": (
        48,
        lambda s: ops.stochastic_round(at(0, (12,), F4), "bf16", out=at(s, (12,), np.uint16)),
    ),
    "unique_rows": (
        48,
        lambda s: ops.unique_rows(
            at(0, (12,), I4), out=(at(s, (12,), I8), np.empty(13, I8), np.empty(12, I4))
        ),
    ),
    "unique_rows outs": (
        48,
        lambda s: ops.unique_rows(
            np.zeros(12, I4), out=(np.empty(12, I8), at(s, (13,), I8), at(0, (12,), I4))
        ),
    ),
    "cache_lookup tags": (
        64,
        lambda s: ops.cache_lookup(at(0, (1, 8), np.uint64), np.arange(4), out=at(s, (4,), I4)),
    ),
    "cache_lookup rows": (
        32,
        lambda s: ops.cache_lookup(
            np.ones((1, 8), np.uint64), at(0, (4,), I8), out=at(s, (4,), I4)
        ),
    ),
    "embedding_bag": (
        48,
        lambda s: ops.embedding_bag(
            at(0, (3, 16), U1), "int8", 8, np.arange(3), np.arange(4), out=at(s, (3, 8), F4)
        ),
    ),
    "embedding_bag indices": (
        24,
        lambda s: ops.embedding_bag(
            np.zeros((3, 16), U1), "int8", 8, at(0, (3,), I8), np.arange(4), out=at(s, (3, 8), F4)
        ),
    ),
    "sgd_ grads": (
        96,
        lambda s: ops.sgd_(at(0, (3, 8), F4), np.arange(3), at(s, (3, 8), F4), lr=1),
    ),
    "sgd_ rows": (
        96,
        lambda s: ops.sgd_(at(0, (3, 8), F4), at(s, (1,), I8), np.ones((1, 8), F4), lr=1),
    ),
    "adagrad_ grads": (
        96,
        lambda s: ops.adagrad_(
            np.zeros((3, 8), F4), np.arange(3), at(0, (3, 8), F4), at(s, (3, 8), F4), lr=1
        ),
    ),
    "adagrad_ state": (
        96,
        lambda s: ops.adagrad_(
            at(0, (3, 8), F4), np.arange(3), np.ones((3, 8), F4), at(s, (3, 8), F4), lr=1
        ),
    ),
    "rowwise_adagrad_ state": (
        96,
        lambda s: ops.rowwise_adagrad_(
            at(0, (3, 8), F4), np.arange(3), np.ones((3, 8), F4), at(s, (3,), F4), lr=1
        ),
    ),
    "adam_ state": (96, partial(_two_states, ops.adam_, (3, 8), {"updates": 1})),
    "rowwise_adam_ state": (96, partial(_two_states, ops.rowwise_adam_, (3,), {"updates": 1})),
    "lamb_ state": (96, partial(_two_states, ops.lamb_, (3, 8), {"updates": 1})),
    "ftrl_ state": (96, partial(_two_states, ops.ftrl_, (3, 8), {})),
}


def test_every_function_that_writes_is_here() -> None:
    assert {name.partition(" ")[0] for name in CALLS} == set(ops.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_overlapping_arguments_of_an_operation(name: str) -> None:
    behind, call = CALLS[name]
    MEMORY[:] = 0
    for start in (8, behind - 8):
        with pytest.raises(ValueError, match="shares memory with"):
            call(start)
        assert not MEMORY.any()
    call(behind)


def test_the_same_array_twice() -> None:
    x = np.ones((4, 8), np.float32)
    with pytest.raises(ValueError, match=r"^weights.*shares memory with grads"):
        ops.sgd_(x, np.arange(4), x, lr=0.1)
    with pytest.raises(ValueError, match=r"^out.*shares memory with rows"):
        ops.dequantize(x.view(np.uint8), "fp32", 8, out=x)


def test_an_output_may_not_lie_in_its_batch() -> None:
    emb = collection()
    train(emb)
    indices, offsets = batch()
    weights = np.ones(8, np.float32)
    before = digest(emb)
    for name in ("indices", "offsets", "per_sample_weights"):
        arguments: dict[str, Any] = {"indices": indices, "offsets": offsets}
        arguments["per_sample_weights"] = weights
        memory = np.zeros(36, np.float32)
        taken = arguments[name].nbytes // 4
        part = memory[36 - taken :].view(arguments[name].dtype)
        part[:] = arguments[name]
        arguments[name], held = part, memory.tobytes()
        for training in (True, False):
            with pytest.raises(ValueError, match=f"^out.*shares memory with {name}"):
                emb.forward(**arguments, out=memory.reshape(3, 12), training=training)
        assert memory.tobytes() == held
    assert digest(emb) == before


def test_outputs_of_unpooled_tables_and_dict_batches() -> None:
    tables = [mpe.TableConfig("a", 9, 2, pooling="none"), mpe.TableConfig("b", 9, 2)]
    emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1))
    room, ids, ends = np.zeros((3, 2), np.float32), np.array([1, 2]), np.array([0, 1, 2])
    named = {"a": (ids, ends), "b": (ids, ends)}
    with pytest.raises(ValueError, match=r"of table 'b'.*shares memory with out of table 'a'"):
        emb.forward(named, out={"a": room[:2], "b": room[1:]})
    mixed = room.view(np.int64).reshape(-1)
    with pytest.raises(ValueError, match=r"out of table 'a'.*memory with indices of table 'b'"):
        emb.forward({"a": (ids, ends), "b": (mixed[:2], ends)}, out={"a": room[:2], "b": room[:2]})
    assert not room.any()
    emb.forward(named, out={"a": np.empty((2, 2), np.float32), "b": room[:2]})


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_collections_own_memory_is_no_gradient(precision: str) -> None:
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig("t", 32, 4, precision, init="zeros")],
        cache=mpe.CacheConfig(num_sets=1, ways=8),
        optimizer=mpe.Adagrad(0.1),
    )
    indices, offsets = np.arange(8), np.arange(9)
    emb.forward(indices, offsets)
    before = digest(emb)
    records = collection_state(emb).arrays()["table.t.rows"].memory  # rows with their states
    own = {
        "cache.4.adagrad.rows": emb.state_arrays()["cache.4.adagrad.rows"].reshape(-1)[:32],
        "table.t.rows": records.reshape(-1)[:128].view(np.float32),
    }
    for name, array in own.items():
        values = array.reshape(8, 4)
        with pytest.raises(ValueError, match=f"grad: shares memory with the collection's '{name}'"):
            emb.backward(values)
        with pytest.raises(ValueError, match=f"values: shares memory with .*'{name}'"):
            emb.set_rows("t", indices[::-1].copy(), values)
    assert digest(emb) == before
    emb.backward(np.array(own["cache.4.adagrad.rows"]).reshape(8, 4))
