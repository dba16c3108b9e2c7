"""Code that exports an argument changes the others: a wrong answer or an error, and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changing_arguments import (
    BAGS,
    CALLS,
    DIM,
    REFUSALS,
    ROWS,
    SPOILED_INDICES,
    SPOILED_OFFSETS,
    arguments,
    batch,
    collection,
    spoil,
    train,
)
from exporters import Exporter
from helpers import pinned

import mpembed as mpe
from mpembed import ops
from mpembed.collection import collection_state


def pooled(rows: list[Any], given: dict[str, Any]) -> Any:
    """Return the sums of a batch in float64."""
    out = np.zeros((BAGS, len(rows) * DIM))
    for t, table in enumerate(rows):
        for b in range(BAGS):
            begin, end = given["offsets"][t * BAGS + b : t * BAGS + b + 2]
            found = table[given["indices"][begin:end]] * given["weights"][begin:end, None]
            out[b, t * DIM : (t + 1) * DIM] = found.sum(0)
    return out


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("name", CALLS)
def test_an_exporter_changes_the_other_arguments(name: str, dtype: Any) -> None:
    call, tables, roles = CALLS[name]
    emb = collection()
    rows = [emb.rows(table, np.arange(ROWS)) for table in "ab"]
    for exporting in roles:
        for changed, spoiled in (("offsets", SPOILED_OFFSETS), ("indices", SPOILED_INDICES)):
            for how in spoiled.values() if changed != exporting else ():
                given = arguments(tables, dtype)
                change = spoil(given[changed], how)
                given[exporting] = Exporter(given[exporting], change)
                try:
                    found = call(emb, given)
                except REFUSALS:
                    continue
                values = found.array if isinstance(found, Exporter) else found
                assert np.isfinite(values).all()
    given = arguments(2, dtype)
    for _ in range(2):  # the collection is as it was: the rows have trained with zeros
        np.testing.assert_allclose(train(emb, given), pooled(rows, given), rtol=1e-5, atol=1e-6)
    assert pinned(emb) == 0
    assert emb.drop_prefetched() == 0


def test_an_exporter_changes_the_tables_of_a_dict() -> None:
    emb = collection("none")
    for how in SPOILED_OFFSETS.values():
        for exporting in range(4):
            given = batch(1)
            ends, ids = given["offsets"], given["indices"]
            arrays = [ids.copy(), ends.copy(), ids.copy(), ends.copy()]
            others = [spoil(arrays[i], how) for i in (1, 3) if i != exporting]
            others += [spoil(arrays[i], SPOILED_INDICES["far"]) for i in (0, 2) if i != exporting]

            def change(others: list[Callable[[], None]] = others) -> None:
                for one in others:
                    one()

            arrays[exporting] = Exporter(arrays[exporting], change)
            named = {"a": (arrays[0], arrays[1]), "b": (arrays[2], arrays[3])}
            out = {name: np.zeros((len(ids), DIM), np.float32) for name in "ab"}
            with pytest.raises(REFUSALS):
                emb.forward(named, out=out)
    named = dict.fromkeys("ab", (ids, ends))
    assert np.array_equal(emb.forward(named)["b"], emb.rows("b", ids))


def test_an_exporter_changes_the_rows_of_other_calls() -> None:
    """Of `ops` and of single rows: each refuses, and leaves what it would have written."""
    emb = collection()
    table, state = np.ones((ROWS, DIM), np.float32), np.ones(ROWS, np.float32)
    ids = np.arange(4)
    far = spoil(ids, SPOILED_INDICES["far"])
    grads = np.ones((4, DIM), np.float32)
    values = Exporter(np.zeros((4, DIM), np.float32), far)
    before = emb.rows("a", ids)
    calls: dict[str, Callable[[], Any]] = {
        "set_rows": lambda: emb.set_rows("a", ids, values),
        "sgd_": lambda: ops.sgd_(table, ids, Exporter(grads, far), lr=1.0),
        "rowwise_adagrad_": lambda: ops.rowwise_adagrad_(
            table, ids, grads, Exporter(state, far), lr=1.0
        ),
    }
    for call in calls.values():
        ids[:] = np.arange(4)
        with pytest.raises(IndexError):
            call()
    assert (table == 1).all()
    assert np.array_equal(emb.rows("a", np.arange(4)), before)


def test_values_change_while_a_save_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is checked is what is written."""
    emb, ids = collection(), np.arange(4)
    storage = collection_state(emb).storage
    values: Any = np.ones((4, DIM), np.float32)
    states: Any = {"momentum": np.ones((4, DIM), np.float32)}

    def spoil_all(*_: Any) -> None:
        values[1] = states["momentum"][1] = np.nan

    monkeypatch.setattr(storage, "make_room", spoil_all)
    monkeypatch.setattr(storage, "finish_snapshot", spoil_all)
    emb.set_rows("a", ids, values)
    assert np.isnan(values[1]).all()
    assert np.allclose(emb.rows("a", ids), 1, atol=0.01)
    other = collection(optimizer=mpe.SGD(0.1, momentum=0.9))
    monkeypatch.setattr(collection_state(other).storage, "keep_rows", spoil_all)
    states["momentum"][:] = 1
    other.set_state("a", ids, states)
    assert np.isnan(states["momentum"][1]).all()
    assert (other.state("a", ids)["momentum"] == 1).all()
    emb.save(tmp_path / "saved")
    mpe.EmbeddingBagCollection.load(tmp_path / "saved")


def test_an_exporter_changes_what_finds_rows() -> None:
    tags = np.full((2, 32), 2**48 - 1, np.uint64)
    for how in SPOILED_INDICES.values():
        ids = np.arange(9)
        slots = np.zeros(9, np.int32)
        try:
            ops.cache_lookup(tags, ids, out=Exporter(slots, spoil(ids, how)))
        except IndexError:
            assert (slots == 0).all()  # nothing is written
        else:
            assert (slots == -1).all()  # of other rows than were asked for
        ids = np.arange(9)
        out = np.zeros(9, np.int64), np.zeros(10, np.int64), np.zeros(9, np.int32)
        given = out[0], Exporter(out[1], spoil(ids, how)), out[2]
        with pytest.raises(TypeError, match="a Exporter cannot be sliced"):
            ops.unique_rows(ids, out=given)
