"""Records in memory: what lies where, and the logical arrays that others see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import digest

import mpembed as mpe
from mpembed import registry
from mpembed._bindings import memory
from mpembed._collection import records as records_module
from mpembed._collection import storage
from mpembed._collection.records import Field, Records
from mpembed.collection import collection_state
from mpembed.devices import CPU

U1, U2, F4 = np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32)


def fields(*sizes: tuple[int, np.dtype[Any]]) -> list[Field]:
    return [Field(f"f{i}", (n,), dtype) for i, (n, dtype) in enumerate(sizes)]


@pytest.mark.parametrize("dim", [1, 3, 8, 33])
@pytest.mark.parametrize("precision", registry.FORMATS)
def test_the_cpu_lays_a_row_beside_its_values_and_states_beside_states(
    precision: str, dim: int
) -> None:
    optimizer = mpe.RowwiseAdam(state_precision={"exp_avg": "bf16"})
    table = mpe.TableConfig("t", 7, dim, precision)
    made = Records(7, storage.table_fields(table, optimizer), CPU, host=False)
    row = registry.row_bytes(precision, dim)
    assert made.nbytes == 7 * (row + 2 * dim + 4)
    (rows, stride), *states = made.places()
    assert stride == row + 4
    assert states[1] == (rows + row, stride)
    assert states[0][1] == 2 * dim
    adam = mpe.Adam(state_precision={"exp_avg_sq": "bf16"})
    made = Records(7, storage.table_fields(table, adam), CPU, host=False)
    assert made.nbytes == 7 * (row + 6 * dim)
    (rows, stride), (first, step), second = made.places()
    assert stride == row
    assert step == 6 * dim
    assert second == (first + 4 * dim, step)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # One field is no record, whatever its size.
        ([(7, U1)], (7, [0])),
        # Every field starts at a multiple of what divides it, 16 at most.
        ([(64, F4), (64, F4)], (512, [0, 256])),
        ([(36, U1), (1, F4)], (40, [0, 36])),
        ([(48, U1), (8, U2), (4, F4)], (80, [0, 48, 64])),
        # 4 bytes of 260 are too much padding, 12 of 4112 are not.
        ([(64, F4), (1, F4)], None),
        ([(1024, F4), (1, F4)], (4112, [0, 4096])),
        ([(1030, U1), (1024, F4)], (5136, [0, 1040])),
        ([(7, U1), (1, F4)], None),
    ],
)
def test_a_device_aligns_fields_or_keeps_them_apart(sizes: Any, expected: Any) -> None:
    assert records_module._record(fields(*sizes), aligned=True) == expected


@pytest.mark.parametrize(
    "optimizer", [mpe.SGD(0.1), mpe.Adam(), mpe.Adagrad(state_precision="bf16")]
)
def test_logical_arrays_are_read_and_written_in_pieces(
    optimizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def make() -> mpe.EmbeddingBagCollection:
        tables = [mpe.TableConfig(name, 50, 5, name) for name in registry.FORMATS]
        cache = mpe.CacheConfig(num_sets=3, ways=8, policy="lfu")
        return mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=optimizer)

    emb = make()
    count = len(registry.FORMATS)
    indices = np.random.default_rng(0).integers(0, 50, 30 * count)
    out = emb.forward(indices, np.arange(0, 30 * count + 1, 30))
    emb.backward(out)
    emb.save(tmp_path / "whole")
    monkeypatch.setattr(records_module, "_CHUNK", 100)
    emb.save(tmp_path / "pieces")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()
    loaded = mpe.EmbeddingBagCollection.load(tmp_path / "pieces")
    assert digest(loaded) == digest(emb)
    assert len(list(collection_state(emb).arrays()["table.fp32.rows"].pieces())) >= 10


def trained(device: str, dim: int = 5, placement: str = "device") -> mpe.EmbeddingBagCollection:
    """Return a table with rows and one without, with states of each shape."""
    options: dict[str, Any] = {"placement": placement} if device != "cpu" else {}
    tables = [mpe.TableConfig(n, e, dim, "int4", **options) for n, e in (("t", 9), ("none", 0))]
    optimizer = mpe.RowwiseAdam(0.1, state_precision={"exp_avg": "bf16"})
    emb = mpe.EmbeddingBagCollection(tables, optimizer=optimizer, device=device)
    indices, offsets = np.arange(9), np.array([0, 9, 9])
    grad = np.linspace(-1, 1, 2 * dim, dtype=np.float32).reshape(1, -1)
    if device != "cpu":
        indices, offsets, grad = (mpe.to_device(a, device) for a in (indices, offsets, grad))
    emb.forward(indices, offsets)
    emb.backward(grad)
    return emb


def packed(emb: mpe.EmbeddingBagCollection) -> list[dict[str, Any]]:
    state = collection_state(emb)
    with state.writing() as on:
        return [one.packed(on) for one in state.storage.tables]


def test_a_copy_of_all_bytes_and_back() -> None:
    emb = trained("cpu")
    tables = collection_state(emb).storage.tables
    for table, one, blocks in zip(emb.tables, tables, packed(emb), strict=True):
        shapes = {name: block.shape for name, block in blocks.items()}
        count = table.num_embeddings
        assert shapes == {"records": (count, 3 + 4 + 4), "states": (count, 10)}
        for field, values in zip(one.fields, one.unpacked(blocks), strict=True):
            expected = emb.state_arrays()[f"table.{table.name}.{field.name}"]
            assert values.dtype == expected.dtype
            np.testing.assert_array_equal(values, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.parametrize("dim", [5, 8, 16])
def test_the_bytes_do_not_say_where_they_lie(dim: int, placement: str, cuda: str) -> None:
    here, there = packed(trained("cpu", dim)), packed(trained(cuda, dim, placement))
    for one, other in zip(here, there, strict=True):
        assert list(one) == list(other) == ["records", "states"]
        for name, block in one.items():
            np.testing.assert_array_equal(other[name], block, strict=True)


def test_initial_states_do_not_touch_the_rows() -> None:
    before = memory.allocated_bytes()
    optimizer = mpe.Adagrad(0.1, initial_accumulator_value=0.3, state_precision="bf16")
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig("t", 40, 5, "int8", init="zeros")], optimizer=optimizer
    )
    arrays = emb.state_arrays()
    assert (arrays["table.t.sum"] == 0x3E9A).all()
    assert not np.asarray(emb.rows("t", np.arange(40))).any()
    del arrays
    assert memory.allocated_bytes() - before >= 40 * (5 + 8 + 10)
