"""States of the optimizer that are read and set by row, as those that come from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kinds
import numpy as np
import on_device
import pytest
from helpers import digest
from interrupts import Interrupt
from reference.pair import assert_same

import mpembed as mpe
from mpembed._collection.table_writer import TableWriter

ROWS, DIM = 60, 6
IDS = np.arange(ROWS)


def make(optimizer: Any, *, cached: bool = True, **options: Any) -> Any:
    cache = mpe.CacheConfig(num_sets=1, policy="lru", ways=32)
    tables = [mpe.TableConfig("other", 20, DIM), mpe.TableConfig("t", ROWS, DIM, "int8")]
    options = {"seed": 3, "cache": cache if cached else None} | options
    return on_device.make(tables, optimizer=optimizer, **options)


def train(emb: Any, steps: int = 3) -> None:
    for step in range(steps):
        rng = np.random.default_rng(step)
        out = emb.forward(rng.integers(0, 20, 24), np.arange(0, 25, 2))
        emb.backward(rng.standard_normal(out.shape).astype(np.float32))


def new_states(optimizer: Any, count: int) -> dict[str, Any]:
    rng = np.random.default_rng(count)
    shapes = {
        state.name: (count, DIM) if state.shape == mpe.registry.STATE_ELEMENT else (count,)
        for state in optimizer.states
    }
    return {name: rng.random(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.usefixtures("each_device")
@pytest.mark.parametrize("name", [name for name in kinds.EVERY if kinds.named(name).states])
def test_states_that_are_set_are_read_cached_or_not(name: str) -> None:
    """FP32 states and slots as they are; states in BF16 rounded, and the rows unchanged."""
    emb = make(kinds.named(name))
    train(emb)
    ids = np.random.default_rng(1).permutation(ROWS)[:40]
    rows, before = emb.rows("t", IDS), emb.state("t", IDS)
    packed = emb.state_arrays()["table.t.rows"]
    states, step = new_states(emb.optimizer, 40), emb.step
    for key, values in states.items():  # each alone: the others stay
        emb.set_state("t", ids, {key: values})
    assert emb.step == step + len(states)
    now = emb.state("t", IDS)
    rest = np.setdiff1d(IDS, ids)
    cached = 0
    for state in emb.optimizer.states:
        got, expected = now[state.name][ids], states[state.name]
        assert_same(now[state.name][rest], before[state.name][rest], "other rows")
        if state.precision == "fp32":
            assert_same(got, expected, state.name)
        else:
            np.testing.assert_allclose(got, expected, rtol=2**-7)
            cached = int((got == expected).reshape(40, -1).all(1).sum())
            assert 0 < cached < 40
    assert_same(emb.rows("t", IDS), rows, "rows")
    assert_same(emb.state_arrays()["table.t.rows"], packed, "packed rows")
    emb.flush()  # what was set in slots is written back
    for state in emb.optimizer.states:
        stored = emb.state_arrays()[f"table.t.{state.name}"][ids]
        if state.precision == "fp32":
            assert_same(stored, states[state.name], "in the table")


@pytest.mark.parametrize("rounding", mpe.registry.ROUNDINGS)
def test_states_in_bf16_draw_the_bits_of_a_write_back(rounding: str) -> None:
    """Of the row's number in the whole table, so that shards have those of one process."""
    optimizer = mpe.Adam(0.1, state_precision="bf16")
    states = new_states(optimizer, ROWS)
    arrays = []
    for cached in (True, False):
        cache = mpe.CacheConfig(load_factor=20, ways=8) if cached else None
        table = mpe.TableConfig("t", ROWS, DIM, table_id=7, first_row=10, total_rows=100)
        emb = mpe.EmbeddingBagCollection(
            [table], optimizer=optimizer, cache=cache, rounding=rounding
        )
        emb.forward(IDS, np.arange(ROWS + 1))
        assert emb.step == 1
        emb.set_state("t", IDS, states)
        if cached:
            on_device.set_step(emb, 1)
            emb.flush()  # at the step of the call
        arrays.append({key: np.array(emb.state_arrays()[f"table.t.{key}"]) for key in states})
    assert_same(arrays[0], arrays[1], rounding)


def test_shards_have_the_states_of_the_whole_table() -> None:
    optimizer = mpe.Adagrad(0.1, state_precision="bf16")
    states = new_states(optimizer, ROWS)

    def stored(first: int, count: int) -> Any:
        table = mpe.TableConfig("t", count, DIM, table_id=7, first_row=first, total_rows=ROWS)
        emb = mpe.EmbeddingBagCollection([table], optimizer=optimizer)
        emb.set_state("t", np.arange(count), {"sum": states["sum"][first : first + count]})
        return emb.state_arrays()["table.t.sum"]

    assert_same(np.concatenate([stored(0, 20), stored(20, 40)]), stored(0, ROWS), "shards")


def test_more_rows_than_are_written_at_once() -> None:
    optimizer = mpe.RowwiseAdam(0.1)
    emb = mpe.EmbeddingBagCollection([mpe.TableConfig("t", 5000, 3)], optimizer=optimizer)
    ids = np.random.default_rng(0).permutation(5000)
    states = {
        "exp_avg": np.random.default_rng(1).random((5000, 3), np.float32),
        "exp_avg_sq": np.random.default_rng(2).random(5000, np.float32),
    }
    emb.set_state("t", ids, states)
    assert_same(emb.state("t", ids), states, "all of them")
    assert emb.step == 1


def test_the_count_of_updates_goes_on_from_where_it_is_set(tmp_path: Path) -> None:
    emb = make(mpe.Adam(0.1), cached=False)
    train(emb)
    assert emb.updates == 3
    emb.set_updates(1000)
    assert (emb.updates, emb.step) == (1000, 1000)
    emb.save(tmp_path / "saved")
    assert mpe.EmbeddingBagCollection.load(tmp_path / "saved").updates == 1000
    emb.set_updates(0)
    assert (emb.updates, emb.step) == (0, 1001)
    for wrong, error in ((-1, ValueError), (2**40, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="updates must be"):
            emb.set_updates(wrong)
    assert (emb.updates, emb.step) == (0, 1001)


@pytest.mark.parametrize(
    ("states", "error", "message"),
    [
        (
            {"momentum": np.ones((2, DIM), "f4")},
            ValueError,
            "no state 'momentum'; it has 'exp_avg'",
        ),
        ({"exp_avg": np.ones((2, 5), "f4")}, ValueError, r"states\['exp_avg'\]"),
        ({"exp_avg": np.ones((2, DIM))}, TypeError, r"states\['exp_avg'\]"),
        ({"exp_avg_sq": np.ones((2, DIM), "f4")}, ValueError, r"states\['exp_avg_sq'\]"),
        ({"exp_avg": np.full((2, DIM), np.nan, "f4")}, ValueError, "row 0 is not finite"),
        (np.ones((2, DIM), "f4"), TypeError, "states must be a dict of state name -> array"),
    ],
)
def test_wrong_states_change_nothing(states: Any, error: type[Exception], message: str) -> None:
    emb = make(mpe.RowwiseAdam(0.1))
    train(emb)
    before = digest(emb)
    with pytest.raises(error, match=message):
        emb.set_state("t", np.arange(2), states)
    with pytest.raises(ValueError, match="ids has duplicates"):
        emb.set_state("t", np.zeros(2, np.int64), {})
    with pytest.raises(IndexError, match="out of range"):
        emb.set_state("t", np.array([ROWS]), {})
    with pytest.raises(KeyError, match="no table 'x'"):
        emb.state("x", np.arange(2))
    assert digest(emb) == before


@pytest.mark.parametrize("name", [name for name in kinds.EVERY if kinds.named(name).states])
def test_sums_of_squares_are_not_negative(name: str) -> None:
    """Neither after training nor when they are set; every other state may be."""
    optimizer = kinds.named(name)
    emb = make(optimizer)
    train(emb)
    before = emb.state("t", np.arange(ROWS))
    signed = {key for key, values in before.items() if (values < 0).any()}
    assert signed == set(before) - set(optimizer.squares)
    for key, values in before.items():
        values[-1] = -0.25
        if key in signed:
            emb.set_state("t", np.arange(ROWS), {key: values})
            continue
        held = digest(emb)
        with pytest.raises(
            ValueError, match=rf"{key}'\]: row {ROWS - 1} has -0.25, but a sum of sq"
        ):
            emb.set_state("t", np.arange(ROWS), {key: values})
        assert digest(emb) == held


def test_tables_without_states_have_none() -> None:
    emb = make(mpe.SGD(0.1))
    assert emb.state("t", IDS) == {}
    with pytest.raises(ValueError, match="has no state 'sum'; it has none"):
        emb.set_state("t", IDS, {"sum": np.ones(ROWS, np.float32)})


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_a_call_that_fails_half_way_leaves_all_as_it_was(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    emb = make(mpe.Adam(0.1, state_precision="bf16"))
    train(emb)
    before, write = digest(emb), TableWriter.write_states

    def fail(self: TableWriter, ids: Any, states: Any) -> None:
        write(self, ids, states)
        raise error

    monkeypatch.setattr(TableWriter, "write_states", fail)
    with pytest.raises(type(error)):
        emb.set_state("t", IDS, new_states(emb.optimizer, ROWS))
    monkeypatch.undo()
    assert digest(emb) == before
    train(emb)


@pytest.mark.parametrize("call", ["set_state", "set_updates"])
def test_a_call_that_is_interrupted_has_happened_or_it_has_not(call: str) -> None:
    emb = make(mpe.RowwiseAdam(0.1, state_precision="bf16"))
    states = new_states(emb.optimizer, ROWS)
    arguments: Any = {"set_state": ("t", IDS, states), "set_updates": (77,)}[call]
    files = ("row_states.py", "table_writer.py", "records.py", "state.py")
    for line in range(1000):
        on_device.set_step(emb, 5)
        train(emb, 1)
        before = digest(emb)
        interrupt = Interrupt(line + 1, returns=False, files=files)
        interrupt.run(lambda: getattr(emb, call)(*arguments))
        if not interrupt.happened:
            break
        assert digest(emb) == before
    assert 2 < line < 999
    assert digest(emb) != before


@pytest.mark.torch
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", ["SparseAdam", "Adagrad", "SGD"])
def test_training_goes_on_as_in_pytorch(kind: str, cached: bool) -> None:
    torch: Any = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.linspace(-1, 1, ROWS * DIM).reshape(ROWS, DIM))
    given = {"SGD": {"momentum": 0.9}}.get(kind, {})
    theirs = getattr(torch.optim, kind)([weight], lr=0.05, **given)
    rng = np.random.default_rng(0)

    def batch() -> tuple[Any, Any]:
        # All rows each time: PyTorch's SGD has no lazy momentum.
        ids = rng.permutation(ROWS) if kind == "SGD" else rng.integers(0, ROWS, 30)
        return ids, rng.standard_normal((len(ids), DIM)).astype(np.float32)

    def step(ids: Any, grad: Any) -> None:
        theirs.zero_grad()
        out = torch.nn.functional.embedding(torch.from_numpy(ids), weight, sparse=kind != "SGD")
        with torch.sparse.check_sparse_tensor_invariants(enable=True):  # or PyTorch warns
            out.backward(torch.from_numpy(grad))
            theirs.step()

    for _ in range(5):
        step(*batch())
    optimizer = {
        "SparseAdam": mpe.Adam(0.05),
        "Adagrad": mpe.Adagrad(0.05),
        "SGD": mpe.SGD(0.05, momentum=0.9),
    }[kind]
    names = {"SGD": {"momentum": "momentum_buffer"}}.get(kind, {})
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig("t", ROWS, DIM, pooling="none")],
        optimizer=optimizer,
        cache=mpe.CacheConfig(load_factor=0.5, ways=8) if cached else None,
    )
    emb.forward(IDS, np.array([0, ROWS]))
    kept = theirs.state[weight]
    emb.set_rows("t", IDS, weight.detach())
    emb.set_state(
        "t", IDS, {one.name: kept[names.get(one.name, one.name)] for one in optimizer.states}
    )
    emb.set_updates(int(kept.get("step", 0)))
    for _ in range(5):
        ids, grad = batch()
        step(ids, grad)
        emb.forward(ids, np.array([0, len(ids)]))
        emb.backward({"t": grad})
    np.testing.assert_allclose(emb.rows("t", IDS), weight.detach().numpy(), rtol=0, atol=1e-6)
    for one in optimizer.states:
        expected = kept[names.get(one.name, one.name)].numpy()
        np.testing.assert_allclose(emb.state("t", IDS)[one.name], expected, rtol=1e-5, atol=1e-6)
