"""A collection on a device: what is found later, streams, placement, checkpoints."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import emulated
import kinds
import numpy as np
import pytest
from helpers import batch, collection, digest
from on_device import fetch

import mpembed as mpe
from mpembed import devices
from mpembed.collection import collection_state
from mpembed.errors import NonFiniteUpdateError

pytestmark = pytest.mark.gpu
GRAD = np.ones((3, 12), np.float32)


@pytest.fixture
def send(cuda: str) -> Any:
    return lambda *arrays: [mpe.to_device(array, cuda) for array in arrays]


def state(emb: mpe.EmbeddingBagCollection) -> dict[str, bytes]:
    return {name: array.numpy().tobytes() for name, array in emb.state_arrays().items()}


def trained(cuda: str, send: Any, **options: Any) -> Any:
    emb = collection(device=cuda, **options)
    for _ in range(3):
        emb.forward(*send(*batch()))
        emb.backward(*send(GRAD))
    return emb


INDICES, OFFSETS = batch()
BAD_BATCHES = {
    "index": (
        np.where(INDICES == 39, 40, INDICES),
        OFFSETS,
        IndexError,
        r"'a'.*index 40 at pos.* 2",
    ),
    "negative": (INDICES - 1, OFFSETS, IndexError, r"'b'.*index -1 at position 6 .*; 1 such"),
    "start": (INDICES, OFFSETS + 1, ValueError, "offsets must start at 0, got 1"),
    "order": (INDICES, np.array([0, 2, 1, 5, 6, 7, 8]), ValueError, r"offsets\[2\] is 1"),
    "end": (INDICES, np.array([0, 2, 2, 5, 6, 7, 7]), ValueError, r"offsets\[6\] is 7"),
}


@pytest.mark.parametrize("policy", ["lru", "lfu", None])
@pytest.mark.parametrize("name", BAD_BATCHES)
def test_a_refused_batch_changes_nothing_but_the_step_and_the_clock(
    name: str, policy: str | None, cuda: str, send: Any
) -> None:
    indices, offsets, error, message = BAD_BATCHES[name]
    cache = None if policy is None else mpe.CacheConfig(num_sets=1, policy=policy, ways=8)
    emb = trained(cuda, send, cache=cache)
    before, step = state(emb), emb.step
    out = emb.forward(*send(indices, offsets))
    assert not out.numpy().any()
    emb.backward(*send(GRAD))
    with pytest.raises(error, match=message):
        emb.check()
    emb.check()  # told once
    after = state(emb)
    changed = {key for key in before if before[key] != after[key]}
    counters = {name for name in before if name.endswith(".counters")}
    assert changed <= {"step", "updates", *counters}
    assert emb.step == step + 2
    emb.forward(*send(*batch()))
    emb.backward(*send(GRAD))
    emb.check()


def test_a_refused_batch_gives_zeros_without_bags_and_for_weights(cuda: str, send: Any) -> None:
    tables = [mpe.TableConfig("a", 9, 4, pooling="none"), mpe.TableConfig("b", 9, 6, "int8")]
    emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1), device=cuda)
    indices, offsets = np.array([1, 2, 99, 4, 5]), np.array([0, 2, 3, 4, 5])
    weights = np.ones(5, np.float32)
    out = emb.forward(*send(indices, offsets, weights))
    assert all(not part.numpy().any() for part in out.values())
    grads = {name: np.ones(part.shape, np.float32) for name, part in out.items()}
    grad = emb.backward({name: send(value)[0] for name, value in grads.items()})
    assert not grad.numpy().any()
    with pytest.raises(IndexError):
        emb.check()


SYNCHRONISING = {
    "check": lambda e, ids, v: e.check(),
    "stats": lambda e, ids, v: e.stats(),
    "rows": lambda e, ids, v: e.rows("a", ids),
    "set_rows": lambda e, ids, v: e.set_rows("a", ids, v),
    "state": lambda e, ids, v: e.state("a", ids),
    "set_state": lambda e, ids, v: e.set_state("a", ids, {}),
    "set_updates": lambda e, ids, v: e.set_updates(9),
    "flush": lambda e, ids, v: e.flush(),
    "save": lambda e, ids, v: e.save("/nowhere/at/all"),
}


@pytest.mark.parametrize("name", SYNCHRONISING)
def test_whoever_waits_for_the_device_hears_of_the_error(name: str, cuda: str, send: Any) -> None:
    emb = trained(cuda, send)
    before = state(emb)
    bad = np.where(INDICES == 39, 40, INDICES)
    emb.forward(*send(bad, OFFSETS), training=False)
    arguments = send(np.array([1]), np.zeros((1, 6), np.float32))
    with pytest.raises(IndexError, match="index 40"):
        SYNCHRONISING[name](emb, *arguments)
    assert state(emb) == before
    if name != "save":
        SYNCHRONISING[name](emb, *arguments)


def test_long_runs_of_empty_bags(cuda: str, send: Any) -> None:
    """Between lookups, before them, after them, and whole tables without any."""
    tables = [mpe.TableConfig(name, 50, 8, precision="int8") for name in "abc"]
    bags = 700
    for used in ([0, 699], [350], [699 + bags, 2 * bags], [3 * bags - 1], [0, 1, 700, 1399]):
        sizes = np.zeros(3 * bags, np.int64)
        sizes[used] = 1 + np.arange(len(used))
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        indices = np.arange(offsets[-1]) * 7 % 50
        grad = np.sin(np.arange(bags * 24, dtype=np.float32)).reshape(bags, 24)
        found = []
        for device in ("cpu", cuda):
            emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1), device=device)
            arrays = [indices, offsets, grad]
            i, o, g = arrays if device == "cpu" else send(*arrays)
            out = fetch(emb.forward(i, o))
            emb.backward(g)
            found.append([out, *(fetch(a) for a in emb.state_arrays().values())])
        for one, other in zip(*found, strict=True):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_the_first_error_is_told(cuda: str, send: Any) -> None:
    emb = trained(cuda, send)
    for wrong in (77, 88):
        emb.forward(*send(np.where(INDICES == 39, wrong, INDICES), OFFSETS))
    with pytest.raises(IndexError, match="index 77"):
        emb.check()
    emb.check()


def test_errors_of_several_dimensions_are_one(cuda: str, send: Any) -> None:
    """The smallest position and the count of all, as on the CPU."""
    tables = [mpe.TableConfig("a", 9, 4), mpe.TableConfig("b", 9, 3), mpe.TableConfig("c", 9, 4)]
    indices, offsets = np.array([1, 9, 3, 11, -1, 2, 12]), np.array([0, 1, 2, 3, 4, 5, 7])
    for name in ("cpu", cuda):
        emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1), device=name)

        def call(emb: mpe.EmbeddingBagCollection = emb, name: str = name) -> None:
            emb.forward(*(send(indices, offsets) if name == cuda else (indices, offsets)))
            emb.check()

        with pytest.raises(IndexError, match=r"'a'.*index 9 at position 1 .*; 4 such in the batch"):
            call()


@pytest.mark.parametrize("rule", ["raise", "skip"])
def test_updates_that_would_not_be_finite(rule: str, cuda: str, send: Any) -> None:
    emb = trained(cuda, send, on_nonfinite=rule)
    grad = GRAD.copy()
    grad[0, 3] = np.inf  # rows 1 and 2 of table a
    emb.forward(*send(*batch()))
    emb.backward(*send(grad))
    if rule == "raise":
        with pytest.raises(NonFiniteUpdateError, match=r"2 row\(s\).*first row 1 of table 'a'"):
            emb.check()
    emb.check()
    assert emb.stats()["a"]["nonfinite"] == 2


def test_an_index_error_does_not_hide_an_update(cuda: str, send: Any) -> None:
    emb = trained(cuda, send)
    emb.forward(*send(*batch()))
    emb.backward(*send(np.full_like(GRAD, np.nan)))
    emb.forward(*send(INDICES + 90, OFFSETS))
    with pytest.raises(IndexError):
        emb.check()
    with pytest.raises(NonFiniteUpdateError):
        emb.check()
    emb.check()


def test_a_prefetch_is_known_by_its_arrays(cuda: str, send: Any) -> None:
    emb = collection(device=cuda)
    first, second = send(*batch()), send(*batch())
    ticket = emb.prefetch(*first)
    emb.forward(*second)
    assert collection_state(emb).engine.num_prefetched == 1
    assert ticket.open
    emb.forward(*first)
    emb.backward(*send(GRAD))
    assert not ticket.open


class Stream:
    """An object that names a stream."""

    def __init__(self, handle: int, version: int = 0) -> None:
        self.handle, self.version = handle, version

    def __cuda_stream__(self) -> tuple[int, int]:
        return self.version, self.handle


@pytest.mark.parametrize("stream", [None, 0, 1, Stream(0), Stream(1)])
def test_streams(stream: Any, cuda: str, send: Any) -> None:
    emb, here = collection(device=cuda), collection()
    for other in (None, 0, 1):  # the order of calls is kept, whatever stream they are on
        emb.prefetch(*send(*batch()), stream=other)
        here.prefetch(*batch())
        emb.drop_prefetched()
        here.drop_prefetched()
        indices, offsets = send(*batch())
        out = emb.forward(indices, offsets, stream=stream)
        np.testing.assert_array_equal(out.numpy(), here.forward(*batch()))
        emb.backward(*send(GRAD), stream=other)
        here.backward(GRAD)
    emb.flush(stream=stream)
    here.flush()
    ids = np.array([1, 2])
    emb.set_rows("a", *send(ids, GRAD[:2, :6].copy()), stream=stream)
    here.set_rows("a", ids, GRAD[:2, :6].copy())
    rows = emb.rows("a", *send(ids), stream=stream)
    np.testing.assert_array_equal(rows.numpy(), here.rows("a", ids))
    assert fetch(emb.state_arrays()).keys() == here.state_arrays().keys()
    for name, array in here.state_arrays().items():
        assert emb.state_arrays()[name].numpy().tobytes() == array.tobytes()


def test_what_is_no_stream(cuda: str, send: Any) -> None:
    emb = collection(device=cuda)
    indices, offsets = send(*batch())
    for wrong in ("0", True, 1.0, object()):
        with pytest.raises(TypeError, match="stream must be None, the handle of a CUDA stream"):
            emb.forward(indices, offsets, stream=wrong)
    for number in (-1, 2**64):
        with pytest.raises(ValueError, match="stream must be the handle"):
            emb.forward(indices, offsets, stream=number)
    for per_thread in (2, Stream(2)):  # one name of as many streams as there are threads
        with pytest.raises(ValueError, match="must not be CUDA's per-thread default stream"):
            emb.forward(indices, offsets, stream=per_thread)
    with pytest.raises(ValueError, match="version 1 of __cuda_stream__"):
        emb.forward(indices, offsets, stream=Stream(0, version=1))
    assert emb.step == 0


@pytest.mark.pairwise
@pytest.mark.parametrize("policy", ["lru", "lfu", None])
@pytest.mark.parametrize("optimizer", kinds.NAMES)
def test_tables_in_host_memory(optimizer: str, policy: str | None, cuda: str, send: Any) -> None:
    """The same bytes wherever a table lies, and only the cache in the device's memory."""
    cache = None if policy is None else mpe.CacheConfig(num_sets=1, policy=policy, ways=8)
    embs = []
    for places, device in ((("host", "device"), cuda), (("device", "device"), "cpu")):
        tables = [
            mpe.TableConfig(name, 40, 6, "int4", placement=place)
            for name, place in zip("ab", places, strict=True)
        ]
        options = {"cache": cache, "optimizer": kinds.named(optimizer), "device": device}
        embs.append(mpe.EmbeddingBagCollection(tables, **options))
    there, here = embs
    rng = np.random.default_rng(3)
    for _ in range(6):
        indices, offsets = rng.integers(0, 40, 24), np.arange(0, 25, 4)
        grad = rng.standard_normal((3, 12)).astype(np.float32)
        out = there.forward(*send(indices, offsets))
        np.testing.assert_array_equal(out.numpy(), here.forward(indices, offsets))
        there.backward(*send(grad))
        here.backward(grad)
    for name, array in here.state_arrays().items():
        assert there.state_arrays()[name].numpy().tobytes() == array.tobytes()
    report = there.memory_report()
    assert report["pinned_host"] == sum(report["tables"]["a"].values())
    assert there.state_arrays()["table.a.rows"].placement == "host"
    assert there.state_arrays()["table.b.rows"].placement == "device"


def test_the_report_is_what_was_allocated(cuda: str, send: Any) -> None:
    emb = trained(cuda, send)
    emb.forward(*send(*batch()))
    report, arrays = emb.memory_report(), emb.state_arrays()
    held = sum(a.nbytes for name, a in arrays.items() if name not in ("step", "updates"))
    assert report["workspace"] > 0
    assert report["descriptors"] > 0
    assert report["total"] == held + report["workspace"] + report["descriptors"]
    emb.backward(*send(GRAD))
    assert emb.memory_report()["workspace"] == 0


@emulated.alone
@pytest.mark.parametrize("name", ["sgd", "adam_mixed", "rowwise_adagrad_bf16"])
def test_the_report_misses_no_byte(name: str, cuda: str) -> None:
    tables = [mpe.TableConfig(f"t{dim}", 4, dim) for dim in range(1, 41)]
    cache = mpe.CacheConfig(num_sets=1, policy="lfu", ways=8)
    gc.collect()
    before = emulated.live_bytes()
    optimizer = kinds.named(name)
    emb = mpe.EmbeddingBagCollection(tables, optimizer=optimizer, cache=cache, device=cuda)
    gc.collect()
    assert emulated.live_bytes() - before == emb.memory_report()["total"]


def test_checkpoints_travel(cuda: str, send: Any, tmp_path: Path) -> None:
    tables = [
        mpe.TableConfig(precision, 20, 5, precision, placement=("device", "host")[i % 2])
        for i, precision in enumerate(mpe.registry.FORMATS)
    ]
    cache = mpe.CacheConfig(num_sets=1, policy="lfu", ways=8)
    emb = mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=mpe.Adagrad(0.1), device=cuda)
    rng = np.random.default_rng(1)
    lookups = 4 * len(tables)
    indices, offsets = rng.integers(0, 20, lookups), np.arange(0, lookups + 1, 2)
    grad = rng.standard_normal((2, 5 * len(tables))).astype(np.float32)

    def step(on: mpe.EmbeddingBagCollection) -> None:
        arrays = (indices, offsets, grad) if on.device == "cpu" else send(indices, offsets, grad)
        on.forward(*arrays[:2])
        on.backward(arrays[2])

    step(emb)
    emb.save(tmp_path / "there")
    load = mpe.EmbeddingBagCollection.load
    here, again = load(tmp_path / "there", device="cpu"), load(tmp_path / "there")
    assert (here.device, again.device) == ("cpu", "cuda:0")
    assert [table.placement for table in again.tables] == [t.placement for t in tables]
    assert {table.placement for table in here.tables} == {"device"}
    here.save(tmp_path / "here")
    back = load(tmp_path / "here", device=cuda)
    for one in (here, again, back, emb):
        step(one)
    expected = {name: array.tobytes() for name, array in here.state_arrays().items()}
    assert state(emb) == state(again) == state(back) == expected
    with pytest.raises(ValueError, match="there is no device"):
        load(tmp_path / "here", device="cuda:999")


def test_state_is_lent_read_only(cuda: str, send: Any) -> None:
    emb = trained(cuda, send)
    for array in emb.state_arrays().values():
        assert array.read_only
        assert array.device == "cuda:0"
    rows = emb.state_arrays()["table.b.rows"]
    expected = mpe.ops.dequantize(rows.numpy(), "int8", 6)
    np.testing.assert_array_equal(mpe.ops.dequantize(rows, "int8", 6).numpy(), expected)


def test_the_threads_device_is_set_back(cuda: str, send: Any) -> None:
    """Nothing to see with one device, but that calls still work from another thread."""
    import threading

    emb, found = trained(cuda, send), []
    thread = threading.Thread(target=lambda: found.append(emb.stats()))
    thread.start()
    thread.join()
    assert found[0] == emb.stats()


def test_the_cpu_digest_is_the_devices(cuda: str, send: Any) -> None:
    emb, here = trained(cuda, send), collection()
    for _ in range(3):
        here.forward(*batch())
        here.backward(GRAD)
    arrays = fetch(emb.state_arrays())
    assert {k: a.tobytes() for k, a in arrays.items()} == {
        k: a.tobytes() for k, a in here.state_arrays().items()
    }
    assert digest(here)
    assert devices.get(cuda).level


def test_a_checkpoint_of_a_frozen_table_in_host_memory_travels(
    cuda: str, send: Any, tmp_path: Path
) -> None:
    """The CPU has no cache for it; what waits there for a write-back would be lost."""
    tables = [
        mpe.TableConfig("far", 40, 8, "int4", placement="host", trainable=False),
        mpe.TableConfig("near", 40, 8, trainable=False),
    ]
    emb = mpe.EmbeddingBagCollection(tables, cache=mpe.CacheConfig(num_sets=1), device=cuda)
    batch = np.arange(40), np.arange(0, 41, 5)
    emb.forward(*send(*batch))
    emb.save(tmp_path / "clean")
    here = mpe.EmbeddingBagCollection.load(tmp_path / "clean", device="cpu")
    expected = emb.forward(*send(*batch), training=False).numpy()
    np.testing.assert_array_equal(here.forward(*batch, training=False), expected)

    emb.set_rows("far", *send(np.arange(3), np.ones((3, 8), np.float32)))
    emb.save(tmp_path / "dirty")
    with pytest.raises(ValueError, match=r"rows of frozen tables .* call flush\(\)"):
        mpe.EmbeddingBagCollection.load(tmp_path / "dirty", device="cpu")
    emb.flush()
    emb.save(tmp_path / "flushed")
    here = mpe.EmbeddingBagCollection.load(tmp_path / "flushed", device="cpu")
    np.testing.assert_array_equal(here.rows("far", np.arange(3)), np.ones((3, 8), np.float32))
