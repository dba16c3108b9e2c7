"""A model of TorchRec's with mpembed's tables inside. Skipped where TorchRec is not installed."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed", exc_type=ImportError)

import torch
from torch_modules import state
from torchrec import modules as torchrec_modules
from torchrec.models.dlrm import DLRM
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

import mpembed as mpe
from mpembed import torch as mt

pytestmark = [pytest.mark.torch, pytest.mark.torchrec, pytest.mark.filterwarnings("ignore")]
FEATURES = {"t0": ["f0", "f2"], "t1": ["f1"]}
ROWS = {"f0": 100, "f1": 50, "f2": 100}
B, D = 32, 8


def features(*keys: str, seed: int = 0, weighted: bool = False) -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(seed)
    lengths, values = {}, {}
    for key, rows in ROWS.items():
        lengths[key] = torch.randint(0, 4, (B,), generator=generator)
        count = int(lengths[key].sum())
        values[key] = torch.randint(0, rows, (count,), generator=generator)
    joined = torch.cat([values[k] for k in keys])
    weights = torch.linspace(0, 1, len(joined)) if weighted else None
    return KeyedJaggedTensor.from_lengths_sync(
        list(keys), joined, torch.cat([lengths[k] for k in keys]), weights
    )


def tables(precision: str = "fp32", **options: Any) -> mt.EmbeddingBagCollection:
    configs = [mpe.TableConfig("t0", 100, D, precision), mpe.TableConfig("t1", 50, D, precision)]
    settings = {"optimizer": mpe.SGD(lr=0.1), "feature_names": FEATURES, **options}
    return mt.EmbeddingBagCollection(configs, **settings)


def torchrecs(ours: mt.EmbeddingBagCollection, weighted: bool = False) -> Any:
    """Return TorchRec's own collection with the same rows."""
    config = torchrec_modules.embedding_configs.EmbeddingBagConfig
    configs = [
        config(
            name=one.name,
            num_embeddings=one.num_embeddings,
            embedding_dim=one.embedding_dim,
            feature_names=one.feature_names,
        )
        for one in ours.embedding_bag_configs()
    ]
    made = torchrec_modules.embedding_modules.EmbeddingBagCollection(configs, is_weighted=weighted)
    for one in configs:
        rows = ours.tables.rows(one.name, torch.arange(one.num_embeddings))
        made.embedding_bags[one.name].weight.data.copy_(torch.from_numpy(rows))
    return made


@pytest.mark.parametrize("keys", [("f0", "f2", "f1"), ("f1", "f2", "f0")])
@pytest.mark.parametrize("weighted", [False, True])
def test_outputs_are_torchrecs(keys: tuple[str, ...], weighted: bool) -> None:
    ours = tables(is_weighted=weighted)
    batch = features(*keys, weighted=weighted)
    out, expected = ours(batch), torchrecs(ours, weighted)(batch)
    assert isinstance(out, KeyedTensor)
    assert out.keys() == expected.keys() == ["f0", "f2", "f1"]
    torch.testing.assert_close(out.values(), expected.values())


def losses(collection: Any, steps: int = 40) -> list[float]:
    torch.manual_seed(0)
    model = DLRM(
        collection,
        dense_in_features=4,
        dense_arch_layer_sizes=[16, D],
        over_arch_layer_sizes=[16, 1],
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    dense = torch.rand(B, 4, generator=generator)
    labels = (dense.sum(1) > 2).float()
    found = []
    for step in range(steps):
        logits = model(dense, features("f1", "f0", "f2", seed=step % 4)).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_a_dlrm_trains_as_with_torchrecs_collection() -> None:
    ours = tables()
    assert losses(ours) == pytest.approx(losses(torchrecs(tables())), rel=1e-4)
    assert ours.tables.step == 80


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_a_dlrm_learns_in_low_precision(precision: str) -> None:
    cache = mpe.CacheConfig(load_factor=0.2, policy="lfu")
    found = losses(tables(precision, cache=cache, optimizer=mpe.RowwiseAdagrad(lr=0.1)), 120)
    assert sum(found[-10:]) < 0.7 * sum(found[:10])


def test_the_bags_of_a_torchrec_collection_can_be_swapped() -> None:
    collection = torchrecs(tables())
    expected = collection(features("f0", "f1", "f2")).values()
    mt.convert(collection, "fp32", optimizer=mpe.SGD(lr=0.1), verbose=False)
    before = collection.embedding_bags["t0"].tables.step
    out = collection(features("f0", "f1", "f2")).values()
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    # Two features, two forwards, each with an update of its own.
    assert collection.embedding_bags["t0"].tables.step == before + 4


def test_features_compile() -> None:
    module, twin = tables("int4"), tables("int4")

    def loss(one: Any, batch: KeyedJaggedTensor) -> torch.Tensor:
        result: torch.Tensor = one(batch).values().square().sum()
        return result

    run = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        for function, one in ((run, module), (loss, twin)):
            function(one, features("f1", "f0", "f2", seed=seed)).backward()
    assert state(module) == state(twin)
