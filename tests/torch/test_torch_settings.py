"""Settings of modules: what is set counts, or is refused with the way out."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch_modules import bag, collection

import mpembed as mpe
from mpembed import torch as mt
from mpembed.torch._options import CHANGES, ModuleOptions

pytestmark = pytest.mark.torch


def embedding() -> mt.Embedding:
    return mt.Embedding(4, 2, optimizer=mpe.SGD(0.1))


def sequences() -> mt.EmbeddingCollection:
    return mt.EmbeddingCollection(
        [mpe.TableConfig("a", 4, 2, pooling="none")], optimizer=mpe.SGD(0.1)
    )


@pytest.mark.parametrize("make", [bag, collection, embedding, sequences])
@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("bounds", "drop", "pass bounds= to a new one"),
        ("cache", None, "pass cache= to a new one"),
        ("device", "cuda", "pass device= to a new one"),
        ("on_nonfinite", "skip", "pass on_nonfinite= to a new one"),
        ("rounding", "nearest", "pass rounding= to a new one"),
        ("seed", 3, "pass seed= to a new one"),
        ("tables", None, "pass tables= to a new one"),
        ("lr", 0.01, r"set tables.optimizer.lr, or tables.optimizers\[table\].lr for a table"),
        ("optimizer", None, "set tables.optimizer.lr, or pass optimizer= to a new"),
        ("precision", "int8", "it is fixed when the .* is made"),
    ],
)
def test_what_cannot_be_set_says_what_to_do_instead(
    make: Callable[[], Any], name: str, value: Any, way_out: str
) -> None:
    module = make()
    kind = type(module).__name__
    with pytest.raises(AttributeError, match=rf"^{kind}\.{name} cannot be set: .*{way_out}"):
        setattr(module, name, value)


def test_other_attributes_are_the_callers() -> None:
    module = bag()
    module.note = "kept"
    module.dense = torch.nn.Linear(2, 2)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert twin.note == "kept"
        assert set(dict(twin.named_modules())) == {"", "dense"}


MAKERS = [bag, collection, embedding, sequences]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "name",
    [
        *("bounds", "cache", "device", "num_embeddings", "on_nonfinite", "optimizer"),
        *("precision", "rounding"),
    ],
)
def test_settings_of_a_collection_are_given_to_load(make: Callable[[], Any], name: str) -> None:
    module = make()
    with pytest.raises(
        TypeError, match=rf"'{name}' is a .*Collection\.load\(path, {name}=\.\.\.\)"
    ):
        type(module).from_collection(module.tables, **{name: None})


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", ["seed", "other", "sparse", "mode"])
def test_from_collection_takes_no_other_keywords(make: Callable[[], Any], name: str) -> None:
    module = make()
    with pytest.raises(TypeError, match=rf"'{name}' is not an option of .*\.from_collection"):
        type(module).from_collection(module.tables, **{name: None})


@pytest.mark.parametrize("make", MAKERS)
def test_from_collection_takes_what_a_collection_does_not_have(make: Callable[[], Any]) -> None:
    module = make()
    kind = type(module)
    of_tables = {"num_embeddings", "embedding_dim", "tables", "mode", "init", "name"}
    own = set(inspect.signature(kind).parameters) - of_tables - set(CHANGES)
    own = own - {"options"} | set(ModuleOptions.__annotations__)
    taken = inspect.signature(kind.from_collection).parameters
    values = {
        **{"include_last_offset": True, "padding_idx": 1, "is_weighted": True},
        **{"clip_grad_value": 2.0, "clip_grad_norm": 3.0, "output_dtype": torch.bfloat16},
    }
    given = {name: values[name] for name in own if name in values}
    assert own - set(given) <= {"feature_names"} & set(taken)
    made = kind.from_collection(module.tables, **given)
    for name, value in given.items():
        assert getattr(made, "_is_weighted" if name == "is_weighted" else name) == value


@pytest.mark.parametrize("make", MAKERS)
def test_what_the_collection_has_is_named(make: Callable[[], Any]) -> None:
    module = make()
    for name in ("save", "flush", "stats"):
        with pytest.raises(AttributeError, match=rf"module\.tables\.{name}$"):
            getattr(module, name)
    with pytest.raises(TypeError, match=r"mpembed\.EmbeddingBagCollection\.load.*from_collection"):
        type(module).load("path")
    with pytest.raises(AttributeError, match="no attribute 'other'$"):
        module.other  # noqa: B018 (an attribute that is asked for)
