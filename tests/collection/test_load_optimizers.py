"""A checkpoint loaded with other optimizers: states are kept or start anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kinds
import numpy as np
import pytest
from changed_loads import ROWS, SMALL, load, make, saved, train, values
from reference.pair import assert_same

import mpembed as mpe


@pytest.mark.parametrize("other", kinds.NAMES)
def test_another_optimizer_keeps_all_states_or_none(other: str, tmp_path: Path) -> None:
    """All where each has the name and shape of one before."""
    emb = make(optimizer=mpe.Adam(0.1))
    path = saved(emb, tmp_path)
    shapes = {one.name: one.shape for one in emb.optimizer.states}
    for cache in (SMALL, None):
        loaded = load(path, optimizer=kinds.named(other), cache=cache)
        new = make(optimizer=kinds.named(other))
        before, now, start = values(emb), values(loaded), values(new)
        states = new.optimizer.states
        kept = all(shapes.get(one.name) == one.shape for one in states)
        bf16 = {one.name for one in states if one.precision == "bf16"}
        assert set(now) == set(start)
        for name, array in now.items():
            if name in ROWS or (kept and name[2:] not in bf16):
                assert_same(array, before[name], name)
            elif kept:
                np.testing.assert_allclose(array, before[name], rtol=2**-7)
            else:
                assert_same(array, start[name], name)
        anew = bool(states) and not kept
        assert loaded.updates == (0 if anew else emb.updates)
        assert loaded.load_report is not None
        assert ("the count of updates" in loaded.load_report.started) == anew
        train(loaded, 6, 8)
        loaded.save(tmp_path / "again")
        assert_same(load(tmp_path / "again").state_arrays(), loaded.state_arrays(), "again")


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_the_first_step_under_another_optimizer_is_that_of_a_new_collection(
    kind: str, tmp_path: Path
) -> None:
    """Or the report says how many times longer it is, where other tables need the count."""
    own = {name: mpe.TableConfig(name, 4, 8, optimizer=mpe.Adam(0.1)) for name in "ab"}

    def step(emb: mpe.EmbeddingBagCollection) -> Any:
        before = emb.rows("a", np.arange(4))
        out = emb.forward(np.arange(4), np.array([0, 1, 2, 3, 4, *[4] * 4 * (len(emb.tables) - 1)]))
        emb.backward(np.where(np.arange(out.shape[1]) < 8, np.float32(1), np.zeros_like(out)))
        return emb.rows("a", np.arange(4)) - before

    for names in ("a", "ab"):
        tables = [own[name] for name in names]
        emb = mpe.EmbeddingBagCollection(tables)
        for _ in range(3):
            step(emb)
        emb.set_updates(2000)
        emb.save(tmp_path / "saved")
        rows = emb.rows("a", np.arange(4))
        optimizer = kinds.make(kind)
        loaded = load(tmp_path / "saved", optimizer={"a": optimizer})
        new = mpe.EmbeddingBagCollection(
            [mpe.TableConfig(name, 4, 8, optimizer=optimizer) for name in names]
        )
        new.set_rows("a", np.arange(4), rows)
        report = loaded.load_report
        assert report is not None
        if kind in ("adam", "lamb"):  # which keep the moments
            assert loaded.updates == 2000
            assert not report.started
            continue
        late = names == "ab" and kind == "rowwise_adam"
        factor = optimizer.late_step(2000) if late else 1.0
        said = [line for line in report.started if "2,000" in line]
        assert len(said) == late
        assert not said or f"{factor:.1f} times" in said[0]
        if kind == "adagrad" and names == "ab":
            continue  # its lr_decay follows the count, as it is meant to
        np.testing.assert_allclose(step(loaded), factor * step(new), rtol=1e-4, atol=1e-6)


def test_an_optimizer_of_the_same_kind_keeps_every_byte(tmp_path: Path) -> None:
    emb = make("int4", mpe.Adagrad(0.1))
    path = saved(emb, tmp_path)
    loaded = load(path, optimizer=mpe.Adagrad(0.5, eps=1e-3), bounds="drop", on_nonfinite="skip")
    assert_same(loaded.state_arrays(), emb.state_arrays(), "state")
    assert (loaded.optimizer.lr, loaded.optimizer.eps) == (0.5, 1e-3)
    out = loaded.forward(np.array([999, 1]), np.array([0, 1, 2]))  # dropped
    loaded.backward(np.full_like(out, np.nan))  # skipped
    assert loaded.load_report is not None
    assert loaded.load_report.kept == ["all rows, states and counts"]
    assert emb.load_report is None


def test_tables_keep_their_own_optimizers_and_rates(tmp_path: Path) -> None:
    tables = [
        mpe.TableConfig("shared", 9, 4),
        mpe.TableConfig("rate", 9, 4, lr=0.25),
        mpe.TableConfig("own", 9, 4, optimizer=mpe.Adam(0.5)),
        mpe.TableConfig("frozen", 9, 4, trainable=False),
    ]
    emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.Adagrad(0.1))
    emb.optimizers["rate"].lr = 0.75
    emb.save(tmp_path / "saved")

    def optimizers(optimizer: Any) -> list[Any]:
        loaded = load(tmp_path / "saved", optimizer=optimizer)
        return [one and (one.kind, one.lr) for one in loaded.optimizers.values()]

    assert optimizers(mpe.Ftrl(0.2)) == [("ftrl", 0.2), ("ftrl", 0.75), ("adam", 0.5), None]
    assert optimizers({"rate": mpe.Lamb(0.3), "own": mpe.SGD(0.4)}) == [
        ("adagrad", 0.1),
        ("lamb", 0.3),
        ("sgd", 0.4),
        None,
    ]
