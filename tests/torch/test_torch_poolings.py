"""Modules of existing collections: each takes the tables that are its own, and names the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch_modules import state

import mpembed as mpe
from mpembed import torch as mt
from mpembed.torch._poolings import module_of

pytestmark = pytest.mark.torch


def core(*poolings: str) -> mpe.EmbeddingBagCollection:
    tables = [mpe.TableConfig(f"t{n}", 10, 4, pooling=one) for n, one in enumerate(poolings)]
    return mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(lr=0.1))


def test_saved_tables_of_an_embedding_are_a_module_again(tmp_path: Path) -> None:
    module = mt.Embedding(100, 8, precision="int8", optimizer=mpe.SGD(0.1))
    path = tmp_path / "rows.safetensors"
    ids = torch.tensor([[1, 2], [99, 1]])
    module(ids).square().sum().backward()
    module.tables.save(path)
    loaded = mpe.EmbeddingBagCollection.load(path)
    twin = mt.Embedding.from_collection(loaded, output_dtype=torch.bfloat16)
    assert twin.tables is loaded
    assert (twin.num_embeddings, twin.embedding_dim) == (100, 8)
    assert torch.equal(twin(ids), module(ids).to(torch.bfloat16))
    for one in (module, twin):
        one(ids).sum().backward()
    assert state(module) == state(twin)


BAGS, ROWS = ["EmbeddingBag", "EmbeddingBagCollection"], ["Embedding", "EmbeddingCollection"]


@pytest.mark.parametrize(
    ("poolings", "first", "fits"),
    [
        (["sum"], "EmbeddingBag", BAGS),
        (["mean"], "EmbeddingBag", BAGS),
        (["none"], "Embedding", ROWS),
        (["sum", "mean"], "EmbeddingBagCollection", BAGS[1:]),
        (["none", "none"], "EmbeddingCollection", ROWS[1:]),
        (["none", "sum"], None, []),
    ],
)
def test_a_refusal_names_the_class(poolings: list[str], first: str | None, fits: list[str]) -> None:
    made = core(*poolings)
    assert module_of(made.tables) == first
    way_out = f"use mpembed.torch.{first}$" if first else "for mpembed.torch.EmbeddingCollection"
    for name in BAGS + ROWS:
        kind: Any = getattr(mt, name)
        if name in fits:
            assert kind.from_collection(made).tables is made
        else:
            with pytest.raises(ValueError, match=f"pooling.*{way_out}"):
                kind.from_collection(made)


@pytest.mark.parametrize("name", ["EmbeddingBag", "Embedding", "EmbeddingCollection"])
def test_what_is_no_collection_is_refused(name: str) -> None:
    kind: Any = getattr(mt, name)
    with pytest.raises(
        TypeError, match="collection must be an mpembed.EmbeddingBagCollection, got int"
    ):
        kind.from_collection(3)
