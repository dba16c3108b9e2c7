"""A collection as a Python object: what it shows of itself, that it is not copied."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import batch, collection, train

import mpembed as mpe


def test_repr_shows_tables_cache_optimizer_device_and_bytes() -> None:
    emb = collection()
    train(emb)
    report = emb.memory_report()
    assert repr(emb) == (
        f"<EmbeddingBagCollection on cpu: 2 table(s), 49 rows, {report['total']:,} bytes\n"
        "  'a': 40 x 6 int4, pooling sum\n"
        "  'b': 9 x 6 int8, pooling mean\n"
        "  CacheConfig(load_factor=None, num_sets=1, policy='lfu', ways=8)\n"
        "  RowwiseAdagrad(lr=0.1, eps=1e-08, initial_accumulator_value=0.0, weight_decay=0.0, "
        "weight_decay_mode='none', state_precision='fp32')>"
    )


def test_repr_shows_what_trains_each_table() -> None:
    tables = [
        mpe.TableConfig("a", 9, 6),
        mpe.TableConfig("b", 9, 6, lr=0.5),
        mpe.TableConfig("c", 9, 6, optimizer=mpe.Adam(0.25)),
        mpe.TableConfig("d", 9, 6, optimizer=mpe.Adam(0.25), lr=2.0),
        mpe.TableConfig("e", 9, 6, trainable=False),
    ]
    emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1))
    emb.optimizers["c"].lr = 0.125
    endings = ["", ", lr=0.5", ", Adam(lr=0.125)", ", Adam(lr=2.0)", ", frozen"]
    assert [line.partition("pooling sum")[2] for line in repr(emb).splitlines()[1:6]] == endings
    alone = mpe.EmbeddingBagCollection(tables[2:])
    assert repr(alone).endswith("no cache\n  no shared optimizer>")


def test_repr_of_many_tables_is_short() -> None:
    tables = [mpe.TableConfig(f"t{i}", 1500, 4) for i in range(1200)]
    lines = repr(mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1))).splitlines()
    assert lines[0].startswith("<EmbeddingBagCollection on cpu: 1,200 table(s), 1,800,000 rows, ")
    assert lines[8:11] == ["  't7': 1,500 x 4 fp32, pooling sum", "  ... 1,192 more", "  no cache"]
    assert len(lines) == 12


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_collection_is_not_copied(make: Any) -> None:
    emb = collection()
    message = r"cannot be pickled or copied; use save\(\) and EmbeddingBagCollection.load\(\)"
    for one in (emb, {"emb": emb}):
        if make is copy.copy and one is not emb:
            continue  # the copy of a dict holds the same collection
        with pytest.raises(TypeError, match=message):
            make(one)


@pytest.mark.torch
def test_a_module_that_holds_one_is_not_copied_either(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 2)
    module.tables = collection()
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        copy.deepcopy(module)
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        torch.save(module, io.BytesIO())
    torch.save(module.state_dict(), tmp_path / "module.pt")  # holds no collection


def test_an_unknown_table_is_a_key_error() -> None:
    emb = collection()
    calls: list[Callable[[], Any]] = [
        lambda: emb.rows("c", []),
        lambda: emb.set_rows("c", [], []),
    ]
    for call in calls:
        with pytest.raises(KeyError, match=r"no table 'c'; there are \['a', 'b'\]"):
            call()


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("bounds", "drop", r"it is fixed when the .* is made: pass bounds= to a new one"),
        ("on_nonfinite", "skip", "pass on_nonfinite= to a new one"),
        ("rounding", "nearest", "pass rounding= to a new one"),
        ("seed", 3, "pass seed= to a new one"),
        ("cache", None, "pass cache= to a new one"),
        ("device", "cuda", "pass device= to a new one"),
        ("tables", (), "pass tables= to a new one"),
        ("lr", 0.01, r"set optimizer.lr, or optimizers\[table\].lr for a table with its own"),
        ("optimizer", mpe.SGD(1.0), "set optimizer.lr, or pass optimizer= to a new"),
        ("training", False, r"pass training=False to forward\(\)"),
        ("policy", "lru", r"pass cache=CacheConfig\(policy=...\) to a new"),
        ("eps", 0.1, r"pass optimizer=RowwiseAdagrad\(eps=...\) to a new"),
        ("precision", "int8", "give it to the table"),
        ("on_non_finite", "skip", r"it has apply_delta, backward, check, device, .*, stats"),
        ("step", 0, "it has apply_delta, backward"),
    ],
)
def test_what_cannot_be_set_says_what_to_do_instead(name: str, value: Any, way_out: str) -> None:
    emb = collection()
    with pytest.raises(
        AttributeError, match=rf"^EmbeddingBagCollection\.{name} cannot be set: .*{way_out}"
    ) as caught:
        setattr(emb, name, value)
    assert (caught.value.name, caught.value.obj) == (name, emb)


def test_a_subclass_may_have_attributes_but_no_settings_that_do_not_count() -> None:
    class Own(mpe.EmbeddingBagCollection):
        note: str

    own = Own([mpe.TableConfig("a", 4, 2)], optimizer=mpe.SGD(0.1))
    own.note = "kept"
    assert own.note == "kept"
    for name in ("bounds", "lr"):
        with pytest.raises(AttributeError, match=f"Own.{name} cannot be set"):
            setattr(own, name, 1)


def test_other_objects_have_no_attributes_of_the_callers() -> None:
    emb = collection(cache=None)
    ticket = emb.prefetch(*batch())
    for one, name in (
        (ticket, "batch_size"),
        (ticket, "note"),
        (emb.tables[0], "lr"),
        (emb.tables[0], "note"),
        (mpe.CacheConfig(load_factor=0.1), "load_factor"),
        (emb.optimizer, "learning_rate"),
        (emb.optimizer, "eps"),
    ):
        with pytest.raises(AttributeError, match=name):
            setattr(one, name, 0.5)
