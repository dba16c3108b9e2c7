"""The state of modules: state_dict, pickle, copies; nothing stale, resumed bit for bit."""

from __future__ import annotations

import copy
import io
import pickle
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
    with pytest.raises(
        ValueError, match="the state has tables .*, the module .*: make the module as"
    ):
        make("b", "a").load_state_dict(kept)
    bag(name="x").load_state_dict(bag(name="y").state_dict())  # one table: its name says nothing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "the state has tables \\[\\[50, 6, 'int4', 'sum', 0, 0\\]\\]"),
        ({"mode": "mean"}, "the state has tables"),
        ({"cache": None}, "the state has cache \\['lfu', 8\\], the module None"),
        (
            {"cache": mpe.CacheConfig(num_sets=2, policy="lfu", ways=8)},
            "cache.6.rowwise_adagrad.tags of the state",
        ),
        ({"optimizer": mpe.SGD(0.1)}, "the state has optimizers"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    source, module = bag(), bag(**options)
    train(source)
    before = state(module)
    with pytest.raises(ValueError, match=message):
        module.load_state_dict(source.state_dict())
    assert state(module) == before


def test_a_damaged_state_is_refused_before_anything_changes() -> None:
    source, module = bag(), bag()
    train(source)
    before = state(module)
    good = copy.deepcopy(source.state_dict())
    key = next(iter(good))
    for damage in (
        "format",
        "seed",
        "step",
        "updates",
        "more updates than steps",
        "half step",
        "list",
        "rows",
        "type",
        "missing",
        "tags",
        "nothing",
    ):
        kept = copy.deepcopy(good)
        extra = kept[key]
        arrays = extra["arrays"]
        if damage == "format":
            extra["format"] = 1
        elif damage == "seed":
            extra["seed"] = -1
        elif damage == "step":
            arrays["step"][0] = -1
        elif damage == "updates":
            arrays["updates"][0] = -1
        elif damage == "more updates than steps":
            arrays["updates"][0] = arrays["step"][0] + 1
        elif damage == "half step":
            arrays["step"] = arrays["step"] + 0.5
        elif damage == "list":
            arrays["step"] = []
        elif damage == "rows":
            arrays["table.0.records"] = arrays["table.0.records"][:-1]
        elif damage == "type":
            arrays["table.0.records"] = arrays["table.0.records"].double()
        elif damage == "missing":
            del arrays["stats"]
        elif damage == "tags":
            arrays["cache.6.rowwise_adagrad.tags"][0, 0] = 50  # of a row that is not there
        else:
            kept[key] = None
        with pytest.raises((ValueError, TypeError)):
            module.load_state_dict(kept)
        assert state(module) == before, damage
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict({})
    module.load_state_dict(good)


def test_a_state_dict_takes_no_memory_of_its_own() -> None:
    module = bag(optimizer=mpe.Adam())
    arrays = module.get_extra_state()["arrays"]
    own = collection_state(module.tables).arrays()
    records, states = arrays["table.0.records"], arrays["table.0.states"]
    assert (records.shape, states.shape) == ((50, 3 + 4), (50, 2 * 24))
    assert records.data_ptr() == own["table.table.rows"].memory.ctypes.data
    assert states.data_ptr() == own["table.table.exp_avg"].memory.ctypes.data
    del module, own  # the tensors keep their memory
    assert np.isfinite(records.numpy().sum() + states.numpy().sum())


def test_a_table_without_states_of_a_value_an_element_is_one_array() -> None:
    arrays = bag(optimizer=mpe.RowwiseAdagrad(0.1)).get_extra_state()["arrays"]
    assert [name for name in arrays if name.startswith("table.")] == ["table.0.records"]
    assert arrays["table.0.records"].shape == (50, 3 + 4 + 4)
