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
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

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
    settings: dict[str, Any] = {
        "optimizer": mpe.SGD(lr=0.1),
        "feature_names": FEATURES,
        "seed": 0,
        **options,
    }
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
    # Two features: two forwards, and one update of the backward they share.
    assert collection.embedding_bags["t0"].tables.step == before + 3


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


# ---- sequences ---------------------------------------------------------------------------------


def sequences(precision: str = "fp32", **options: Any) -> mt.EmbeddingCollection:
    sizes = {"t0": 100, "t1": 50}
    configs = [mpe.TableConfig(n, rows, D, precision, "none") for n, rows in sizes.items()]
    settings: dict[str, Any] = {
        "optimizer": mpe.SGD(lr=0.1),
        "feature_names": FEATURES,
        "seed": 0,
        **options,
    }
    return mt.EmbeddingCollection(configs, **settings)


def torchrecs_sequences(ours: mt.EmbeddingCollection) -> Any:
    """Return TorchRec's own collection with the same rows."""
    config = torchrec_modules.embedding_configs.EmbeddingConfig
    configs = [
        config(
            name=one.name,
            num_embeddings=one.num_embeddings,
            embedding_dim=one.embedding_dim,
            feature_names=one.feature_names,
        )
        for one in ours.embedding_configs()
    ]
    made = torchrec_modules.embedding_modules.EmbeddingCollection(configs)
    for one in configs:
        rows = ours.tables.rows(one.name, torch.arange(one.num_embeddings))
        made.embeddings[one.name].weight.data.copy_(torch.from_numpy(rows))
    return made


@pytest.mark.parametrize("keys", [("f0", "f2", "f1"), ("f1", "f2", "f0")])
def test_sequences_are_torchrecs(keys: tuple[str, ...]) -> None:
    ours = sequences()
    theirs = torchrecs_sequences(ours)
    assert ours.embedding_dim() == theirs.embedding_dim()
    assert ours.embedding_names_by_table() == theirs.embedding_names_by_table()
    assert ours.need_indices() == theirs.need_indices()
    batch = features(*keys)
    out, expected = ours(batch), theirs(batch)
    assert list(out) == list(expected) == ["f0", "f2", "f1"]
    for name, one in out.items():
        assert isinstance(one, JaggedTensor)
        torch.testing.assert_close(one.values(), expected[name].values())
        for method in ("lengths", "offsets"):
            assert torch.equal(getattr(one, method)(), getattr(expected[name], method)())
        torch.testing.assert_close(one.to_padded_dense(3), expected[name].to_padded_dense(3))


def test_our_jagged_tensor_reads_as_torchrecs() -> None:
    values, lengths = torch.rand(6, 2), torch.tensor([3, 0, 1, 2])
    ours, theirs = mt.JaggedTensor(values, lengths), JaggedTensor(values, lengths=lengths)
    assert torch.equal(ours.offsets(), theirs.offsets())
    for one, other in zip(ours.to_dense(), theirs.to_dense(), strict=True):
        assert torch.equal(one, other)
    for length in (None, 1, 5):
        padded = theirs.to_padded_dense(length, 2.0)
        assert torch.equal(ours.to_padded_dense(length, 2.0), padded)


class Scores(torch.nn.Module):
    """The last item of a sequence against the mean of the two other features."""

    def __init__(self, collection: Any) -> None:
        super().__init__()
        self.collection, self.dense = collection, torch.nn.Linear(D, D)

    def forward(self, batch: KeyedJaggedTensor) -> torch.Tensor:
        padded = {k: one.to_padded_dense(4) for k, one in self.collection(batch).items()}
        query = torch.tanh(self.dense(padded["f0"].sum(1)))
        result: torch.Tensor = (query * (padded["f1"].mean(1) + padded["f2"].mean(1))).sum(1)
        return result


def sequence_losses(collection: Any, fused: bool) -> list[float]:
    torch.manual_seed(0)
    model = Scores(collection)
    trained = model.dense.parameters() if fused else model.parameters()
    optimizer = torch.optim.SGD(trained, lr=0.1)
    found = []
    for step in range(30):
        labels = (torch.arange(B) % 2).float()
        scores = model(features("f2", "f1", "f0", seed=step % 3))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("cache", [None, mpe.CacheConfig(load_factor=0.2)])
def test_a_sequence_model_trains_as_with_torchrecs_collection(cache: Any) -> None:
    expected = sequence_losses(torchrecs_sequences(sequences()), fused=False)
    assert sequence_losses(sequences(cache=cache), fused=True) == pytest.approx(expected, rel=1e-4)
    assert expected[27] < 0.95 * expected[0]  # the same batch


def test_a_sequence_model_compiles_around_the_collection() -> None:
    module, twin = Scores(sequences()), Scores(sequences())
    twin.load_state_dict(module.state_dict())
    compiled = torch.compile(module, backend="aot_eager")
    batch = features("f2", "f1", "f0")
    compiled(batch).sum().backward()
    twin(batch).sum().backward()
    assert state(module.collection) == state(twin.collection)


def test_the_tables_of_a_torchrec_sequence_collection_can_be_swapped() -> None:
    collection = torchrecs_sequences(sequences())
    batch = features("f0", "f1", "f2")
    expected = {name: one.values() for name, one in collection(batch).items()}
    mt.convert(collection, "fp32", optimizer=mpe.SGD(lr=0.1), verbose=False)
    assert isinstance(collection.embeddings["t0"], mt.Embedding)
    out = collection(batch)
    for name, one in out.items():
        torch.testing.assert_close(one.values(), expected[name])
    sum(one.values().sum() for one in out.values()).backward()
    rows = collection.embeddings["t1"].tables.rows("embeddings.t1", batch["f1"].values())
    assert not torch.equal(torch.from_numpy(rows), expected["f1"])


def test_features_of_different_batch_sizes() -> None:
    batch = KeyedJaggedTensor(
        ["f0", "f1", "f2"],
        torch.tensor([1, 2, 3, 4, 5, 6]),
        lengths=torch.tensor([2, 0, 1, 0, 3]),
        stride_per_key_per_rank=[[2], [1], [2]],
    )
    ours = sequences()
    out, expected = ours(batch), torchrecs_sequences(ours)(batch)
    for name, one in out.items():
        torch.testing.assert_close(one.values(), expected[name].values())
        assert torch.equal(one.lengths(), expected[name].lengths())
