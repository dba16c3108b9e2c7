"""The state of modules: state_dict, pickle, copies; nothing stale, resumed bit for bit."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch_modules import CACHE, bag, batch, open_batches, state, train

import mpembed as mpe
from mpembed import torch as mt
from mpembed.collection import collection_state

pytestmark = pytest.mark.torch
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda: mpe.SGD(lr=0.1),
    "bf16": lambda: mpe.Adagrad(lr=0.1, state_precision="bf16"),
    "rowwise": lambda: mpe.RowwiseAdagrad(lr=0.1),
    "adam": lambda: mpe.Adam(lr=0.01, state_precision={"exp_avg": "bf16"}),
}


def saved(value: Any, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **options)


def saved_whole(model: Any) -> Any:
    return saved(model, weights_only=False)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cache", [None, CACHE])
def test_a_saved_state_resumes_bit_for_bit(optimizer: str, cache: Any) -> None:
    first = bag(cache=cache, optimizer=OPTIMIZERS[optimizer](), seed=3)
    train(first)
    kept = saved(first.state_dict(), weights_only=True)
    losses = train(first, seed=9)
    other = bag(cache=cache, optimizer=OPTIMIZERS[optimizer](), seed=4)
    train(other, seed=5)
    assert other.load_state_dict(kept).missing_keys == []
    assert train(other, seed=9) == losses
    assert state(other) == state(first)


def test_a_state_dict_follows_training_as_parameters_do_and_a_copy_does_not() -> None:
    module = bag()
    train(module)
    live = module.state_dict()
    kept, then = copy.deepcopy(live), state(module)
    losses = train(module, seed=7)
    now = state(module)
    other = bag()
    other.load_state_dict(live)
    assert state(other) == now
    other.load_state_dict(kept)
    assert state(other) == then
    assert train(other, seed=7) == losses
    module.load_state_dict(module.state_dict())
    assert state(module) == now


def test_a_load_is_seen_by_who_keeps_rows() -> None:
    module = bag()
    before = collection_state(module.tables).restores
    module.load_state_dict(module.state_dict())
    assert collection_state(module.tables).restores == before + 1


def test_open_batches_are_neither_saved_nor_kept_by_a_load() -> None:
    module, twin = bag(), bag()
    out = module(*batch())
    other = bag()
    other.load_state_dict(module.state_dict())
    other.tables.flush()
    train(other)  # evicts what had been pinned
    twin(*batch())
    twin.load_state_dict(module.state_dict())
    assert open_batches(twin) == 0
    module.load_state_dict(twin.state_dict())
    with pytest.raises(RuntimeError, match="used already or dropped"):
        out.sum().backward()
    train(module)
    train(twin)
    assert state(module) == state(twin)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_train_on_alike_and_apart(way: str) -> None:
    model = torch.nn.Sequential(bag(clip_grad_norm=0.5), torch.nn.Linear(6, 1))
    module = model[0]
    train(module)
    module(*batch())  # still open
    twins: dict[str, Any] = {
        "deepcopy": lambda: copy.deepcopy(model),
        "pickle": lambda: pickle.loads(pickle.dumps(model)),
        "torch.save": lambda: saved_whole(model),
    }
    twin = twins[way]()[0]
    assert twin.tables is not module.tables
    assert twin.optimizer is not module.optimizer
    assert twin.clip_grad_norm == 0.5
    before = state(module)
    losses = train(twin)
    assert state(module) == before
    assert train(module) == losses
    assert state(module) == state(twin)


def test_a_shallow_copy_shares_the_tables() -> None:
    module = bag()
    twin = copy.copy(module)
    train(twin)
    assert twin.tables is module.tables
    assert module.tables.step == 8


def test_copies_of_a_model_share_an_optimizer_as_the_model_does() -> None:
    optimizer = mpe.SGD(lr=0.1)
    model = torch.nn.ModuleList([bag(optimizer=optimizer), bag(optimizer=optimizer)])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin[0].optimizer is twin[1].optimizer
        assert twin[0].optimizer is not optimizer


def test_modules_that_share_tables_share_their_copy() -> None:
    module = bag()
    model = torch.nn.ModuleList([module, mt.EmbeddingBag.from_collection(module.tables)])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), saved_whole(model)):
        assert twin[0].tables is twin[1].tables
        assert twin[0].tables is not module.tables


def test_a_frozen_module_and_evaluation_are_copied() -> None:
    module = bag().requires_grad_(False).eval()
    twin = copy.deepcopy(module)
    assert not twin.training
    assert not twin.train()(*batch()).requires_grad


def test_a_collections_state_has_its_names() -> None:
    def make(*names: str) -> mt.EmbeddingBagCollection:
        tables = [mpe.TableConfig(name, 9, 4) for name in names]
        return mt.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1))

    kept = make("a", "b").state_dict()
    make("a", "b").load_state_dict(kept)
    with pytest.raises(RuntimeError, match="has tables .*, the module .*: make the module as"):
        make("b", "a").load_state_dict(kept)
    bag(name="x").load_state_dict(bag(name="y").state_dict())  # one table: its name says nothing


def test_a_module_with_other_settings_takes_a_checkpoint(tmp_path: Path) -> None:
    module = bag(precision="fp32")
    train(module, 3)
    module.tables.save(tmp_path / "saved")
    loaded = mpe.EmbeddingBagCollection.load(tmp_path / "saved", cache=None)
    other = mt.EmbeddingBag.from_collection(loaded)
    with pytest.raises(RuntimeError, match=r"to change settings, load .* from_collection\(\)"):
        other.load_state_dict(module.state_dict())
    with torch.no_grad():
        assert torch.equal(other(*batch()), module(*batch()))
    losses = train(other, 2, seed=3)
    assert train(module, 2, seed=3) == losses
    assert torch.equal(other.weight, module.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "the state has tables \\[\\[50, 6, 'int4', 'sum', 0, 0\\]\\]"),
        ({"mode": "mean"}, "the state has tables"),
        ({"cache": None}, "the state has cache \\['lfu', 8\\], the module None"),
        (
            {"cache": mpe.CacheConfig(num_sets=2, policy="lfu", ways=8)},
            r"cache of another size .*load\(path, cache=\.\.\.\)",
        ),
        ({"optimizer": mpe.SGD(0.1)}, "the state has optimizers"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    source, module = bag(), bag(**options)
    train(source)
    before = state(module)
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict(source.state_dict())
    assert state(module) == before


RECORDS, TAGS = "tables.0.records", "tables.cache.6.rowwise_adagrad.tags"


def replace(kept: Any, **values: Any) -> None:
    kept.update({f"tables.{name}": value for name, value in values.items()})


DAMAGES: dict[str, Any] = {
    "step": lambda kept: kept["tables.step"].fill_(-1),
    "updates": lambda kept: kept["tables.updates"].fill_(-1),
    "more updates than steps": lambda kept: kept["tables.updates"].copy_(kept["tables.step"] + 1),
    "half a step": lambda kept: replace(kept, step=kept["tables.step"] + 0.5),
    "a list": lambda kept: replace(kept, step=[3]),
    "nothing": lambda kept: replace(kept, step=None),
    "rows": lambda kept: kept.update({RECORDS: kept[RECORDS][:-1]}),
    "type": lambda kept: kept.update({RECORDS: kept[RECORDS].bfloat16()}),
    "no values": lambda kept: kept.update({RECORDS: kept[RECORDS].to("meta")}),
    "a row that is not there": lambda kept: kept[TAGS].view(-1)[:1].fill_(50),
    "seed": lambda kept: replace(kept, seed=kept["tables.seed"].float()),
    "settings": lambda kept: kept["tables.settings"].fill_(0),
    "type of settings": lambda kept: replace(kept, settings="{}"),
    "format": lambda kept: replace(kept, settings=as_bytes('{"format": 1}')),
    "settings of another kind": lambda kept: replace(kept, settings=as_bytes("[4]")),
    "no layout": lambda kept: replace(kept, settings=as_bytes('{"format": 4}')),
}


def as_bytes(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def damaged(good: Any, damage: str) -> Any:
    kept = copy.deepcopy(good)
    DAMAGES[damage](kept)
    return kept


def test_a_damaged_state_is_refused_before_anything_changes() -> None:
    source, module = bag(), bag()
    train(source)
    before = state(module)
    good = copy.deepcopy(source.state_dict())
    for damage in DAMAGES:
        with pytest.raises(RuntimeError, match="EmbeddingBag: "):
            module.load_state_dict(damaged(good, damage))
        assert state(module) == before, damage
    module.load_state_dict(good)


def test_a_state_dict_takes_no_memory_of_its_own() -> None:
    module = bag(optimizer=mpe.Adam())
    arrays = module.state_dict()
    own = collection_state(module.tables).arrays()
    records, states = arrays["tables.0.records"], arrays["tables.0.states"]
    assert (records.shape, states.shape) == ((50, 3 + 4), (50, 2 * 24))
    assert records.data_ptr() == own["table.table.rows"].memory.ctypes.data
    assert states.data_ptr() == own["table.table.exp_avg"].memory.ctypes.data
    del module, own  # the tensors keep their memory
    assert np.isfinite(records.numpy().sum() + states.numpy().sum())


def test_a_table_without_states_of_a_value_an_element_is_one_array() -> None:
    arrays = bag(optimizer=mpe.RowwiseAdagrad(0.1)).state_dict()
    assert [name for name in arrays if name.startswith("tables.0.")] == ["tables.0.records"]
    assert arrays["tables.0.records"].shape == (50, 3 + 4 + 4)
