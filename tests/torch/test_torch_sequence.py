"""mpembed.torch.EmbeddingCollection: several tables without pooling, by features."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch_modules import BAGS, CACHE, Jagged, assert_refused, features, open_batches, state

import mpembed as mpe
from mpembed import torch as mt

pytestmark = pytest.mark.torch
NAMES = {"t0": ["a", "d"], "t1": ["b"], "t2": ["c"]}
FLAT = {name: [i for one in bags for i in one] for name, bags in BAGS.items()}
TABLE_OF = {"a": "t0", "d": "t0", "b": "t1", "c": "t2"}


def tables(precision: str = "mixed") -> list[mpe.TableConfig]:
    kinds = ["int4", "int8", "fp32"] if precision == "mixed" else [precision] * 3
    sizes = [(50, 4), (30, 6), (20, 4)]
    return [
        mpe.TableConfig(f"t{n}", rows, dim, kind, pooling="none")
        for n, ((rows, dim), kind) in enumerate(zip(sizes, kinds, strict=True))
    ]


def sequences(precision: str = "mixed", **options: Any) -> mt.EmbeddingCollection:
    settings: dict[str, Any] = {
        "optimizer": mpe.RowwiseAdagrad(lr=0.1),
        "cache": CACHE,
        "feature_names": NAMES,
        "seed": 0,
        **options,
    }
    return mt.EmbeddingCollection(tables(precision), **settings)


def rows_of(module: Any, feature: str) -> torch.Tensor:
    ids = np.array(FLAT[feature], np.int64)
    return torch.from_numpy(module.tables.rows(TABLE_OF[feature], ids))


@pytest.mark.parametrize("keys", ["adbc", "dcba", "bxdca"])
@pytest.mark.parametrize("training", [False, True])
def test_each_index_gets_its_row_in_any_order_and_among_others(keys: str, training: bool) -> None:
    module = sequences().train(training)
    batch = Jagged({key: BAGS.get(key, [[7, 7], [], [1]]) for key in keys})
    out = module(batch)
    assert list(out) == ["a", "d", "b", "c"]
    for name, one in out.items():
        assert isinstance(one, mt.JaggedTensor)
        assert torch.equal(one.values().detach(), rows_of(module, name))
        assert one.lengths().tolist() == [len(bag) for bag in BAGS[name]]
        assert one.values().requires_grad == training


def test_features_in_the_tables_order_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sequences().eval()
    seen: list[torch.Tensor] = []
    lookup = module._lookup

    def watched(indices: torch.Tensor, offsets: torch.Tensor) -> Any:
        seen.append(indices)
        return lookup(indices, offsets)

    monkeypatch.setattr(module, "_lookup", watched)
    for keys, copied in (("adbc", False), ("xadbc", False), ("dabc", True)):
        batch = Jagged({key: BAGS.get(key, [[7], [], []]) for key in keys})
        module(batch)
        first = batch.values()[1:] if keys[0] == "x" else batch.values()
        assert (seen.pop().data_ptr() != first.data_ptr()) == copied


def reference(module: mt.EmbeddingCollection) -> dict[str, torch.nn.Embedding]:
    made = {}
    for table in module.tables.tables:
        ids = np.arange(table.num_embeddings)
        weight = torch.from_numpy(module.tables.rows(table.name, ids))
        made[table.name] = torch.nn.Embedding.from_pretrained(weight, freeze=False)
    return made


@pytest.mark.parametrize("keys", ["adbc", "cbda"])
@pytest.mark.parametrize("cache", [None, CACHE])
@pytest.mark.parametrize("update", [None, "backward", "step"])
def test_training_in_fp32_is_that_of_nn_embedding(keys: str, cache: Any, update: Any) -> None:
    module = sequences("fp32", optimizer=mpe.SGD(lr=0.1), cache=cache)
    fused = None if update is None else mt.FusedOptimizer(module, update=update)
    twins = reference(module)
    sgd = torch.optim.SGD([one.weight for one in twins.values()], lr=0.1)
    for scale in (1.0, 2.0, 3.0):
        out = module(features(*keys))
        loss = sum((out[key].values() ** 2).sum() * (scale + n) for n, key in enumerate("adbc"))
        twin_loss = sum(
            (twins[TABLE_OF[key]](torch.tensor(FLAT[key])) ** 2).sum() * (scale + n)
            for n, key in enumerate("adbc")
        )
        assert torch.allclose(loss, twin_loss, rtol=1e-6)
        loss.backward()
        sgd.zero_grad()
        twin_loss.backward()
        sgd.step()
        if fused is not None:
            fused.step()
            fused.zero_grad()
    for name, twin in twins.items():
        rows = module.tables.rows(name, np.arange(twin.num_embeddings))
        np.testing.assert_allclose(rows, twin.weight.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_all_features_are_one_update() -> None:
    module = sequences()
    before = module.tables.step
    out = module(features(*"adbc"))
    forwards = module.tables.step - before
    sum(one.values().sum() for one in out.values()).backward()
    assert module.tables.step - before - forwards == 1
    assert open_batches(module) == 0


def test_two_lookups_of_a_step_are_one_update() -> None:
    module, twin = (sequences("fp32", optimizer=mpe.Adam(lr=0.1)) for _ in range(2))
    fused = mt.FusedOptimizer(module, update="step")
    for key in "ab":
        module(features(*"adbc"))[key].values().square().sum().backward()
    fused.step()
    outs = [twin(features(*"adbc")) for _ in range(2)]
    (outs[0]["a"].values().square().sum() + outs[1]["b"].values().square().sum()).backward()
    for table in module.tables.tables:
        ids = np.arange(table.num_embeddings)
        one, other = (tables.rows(table.name, ids) for tables in (module.tables, twin.tables))
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_row_of_two_features_is_looked_up_once() -> None:
    module = sequences()
    module(Jagged({"a": [[3, 3], [3]], "d": [[3], []], "b": [[], []], "c": [[], []]}))
    counts = module.tables.stats()["t0"]
    assert (counts["accesses"], counts["unique"]) == (4, 1)


def test_a_loss_of_one_feature_leaves_other_tables_rows_alone() -> None:
    module = sequences("fp32", optimizer=mpe.SGD(lr=0.1))
    before = {key: rows_of(module, key) for key in "abcd"}
    module(features(*"adbc"))["b"].values().sum().backward()
    for key in "acd":
        assert torch.equal(rows_of(module, key), before[key])
    assert not torch.equal(rows_of(module, "b"), before["b"])


def test_empty_features_and_batches() -> None:
    module = sequences()
    out = module(Jagged({key: [[], []] for key in "cbda"}))
    assert {key: tuple(one.values().shape) for key, one in out.items()} == {
        "a": (0, 4),
        "d": (0, 4),
        "b": (0, 6),
        "c": (0, 4),
    }
    sum(one.values().sum() for one in out.values()).backward()
    assert all(one.lengths().tolist() == [0, 0] for one in out.values())
    none = module(Jagged({key: [] for key in "abcd"}))
    assert none["b"].lengths().shape == (0,)
    del none
    one = module(Jagged({"a": [[]], "d": [[1]], "b": [[]], "c": [[]]}))
    one["d"].values().sum().backward()
    assert open_batches(module) == 0


def test_a_single_table() -> None:
    config = mpe.TableConfig("item", 50, 4, pooling="none")
    module = mt.EmbeddingCollection(
        [config], optimizer=mpe.SGD(lr=0.1), feature_names={"item": ["a", "d"]}
    )
    out = module(features(*"da"))
    ids = np.array(FLAT["a"])
    assert torch.equal(
        out["a"].values().detach(), torch.from_numpy(module.tables.rows("item", ids))
    )
    (out["a"].values().sum() + out["d"].values().sum()).backward()
    assert module.embedding_dim() == 4


def test_a_feature_of_several_tables_has_a_name_for_each() -> None:
    module = sequences(feature_names={"t0": ["a"], "t1": ["x", "b"], "t2": ["x"]})
    out = module(Jagged({"a": [[1]], "x": [[2, 3]], "b": [[4]]}))
    assert list(out) == ["a", "x@t1", "b", "x@t2"]
    assert tuple(out["x@t1"].values().shape) == (2, 6)
    assert tuple(out["x@t2"].values().shape) == (2, 4)
    assert module.embedding_names_by_table() == [["a"], ["x@t1", "b"], ["x@t2"]]


class VariableStride(Jagged):
    def variable_stride_per_key(self) -> bool:
        return True

    def stride_per_key(self) -> list[int]:
        return [2, 1, 0, 3]


def test_features_may_have_different_batch_sizes() -> None:
    bags = {"b": [[1], [2, 3]], "d": [[4]], "c": [], "a": [[5], [], [6, 7, 8]]}
    out = sequences()(VariableStride(bags))
    assert {key: one.lengths().tolist() for key, one in out.items()} == {
        "a": [1, 0, 3],
        "d": [1],
        "b": [1, 2],
        "c": [],
    }


def test_evaluation_changes_nothing() -> None:
    module = sequences().eval()
    before = state(module)
    module(features(*"dcba"))
    with torch.inference_mode():
        module.train()(features(*"dcba"))
    assert state(module) == before


def test_output_dtype_and_frozen_tables() -> None:
    module = sequences(output_dtype=torch.bfloat16)
    out = module(features(*"abcd"))
    assert {one.values().dtype for one in out.values()} == {torch.bfloat16}
    sum(one.values().sum() for one in out.values()).backward()
    model = torch.nn.Sequential(sequences()).requires_grad_(False)
    assert not model(features(*"abcd"))["a"].values().requires_grad
    half = sequences().half()(features(*"abcd"))
    assert {one.values().dtype for one in half.values()} == {torch.float16}


def test_clipping_takes_the_gradients_of_all_features_together() -> None:
    module = sequences("fp32", optimizer=mpe.SGD(lr=1.0), clip_grad_norm=1.0, cache=None)
    before = module.tables.rows("t1", np.arange(30)), module.tables.rows("t2", np.arange(20))
    out = module(Jagged({"a": [[]], "d": [[]], "b": [[1]], "c": [[2]]}))
    (3 * out["b"].values()[0, 0] + 4 * out["c"].values()[0, 0]).backward()
    moved = [
        float(np.abs(old - module.tables.rows(name, np.arange(len(old)))).sum())
        for name, old in zip(("t1", "t2"), before, strict=True)
    ]
    assert moved == pytest.approx([0.6, 0.8], rel=1e-5)


def test_copies_and_state() -> None:
    module = sequences()
    sum(one.values().sum() for one in module(features(*"abcd")).values()).backward()
    module.eval()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert state(twin) == state(module)
        out, expected = twin(features(*"bcda")), module(features(*"bcda"))
        assert all(torch.equal(out[key].values(), expected[key].values()) for key in "abcd")
    other = sequences(seed=3)
    other.load_state_dict(module.state_dict())
    assert state(other) == state(module)


def test_an_existing_collection_becomes_a_module() -> None:
    core = mpe.EmbeddingBagCollection(tables(), optimizer=mpe.SGD(lr=0.1))
    module = mt.EmbeddingCollection.from_collection(core, feature_names=NAMES)
    assert module.tables is core
    assert torch.equal(
        module(features(*"abcd"))["b"].values().detach(),
        torch.from_numpy(core.rows("t1", np.array(FLAT["b"]))),
    )


@pytest.mark.parametrize(
    ("poolings", "way_out"),
    [
        (["mean"], "use mpembed.torch.EmbeddingBag$"),
        (["mean", "sum"], "use mpembed.torch.EmbeddingBagCollection$"),
        (["mean", "none"], "one of the others for mpembed.torch.EmbeddingBagCollection$"),
    ],
)
def test_tables_with_pooling_are_refused_with_the_class_for_them(
    poolings: list[str], way_out: str
) -> None:
    message = f"table 'x0' has pooling 'mean': give it pooling='none', or .*{way_out}"
    assert_refused(mt.EmbeddingCollection, poolings, message)


def test_tables_are_described_as_torchrecs_models_ask() -> None:
    module = sequences()
    config = module.embedding_configs()[0]
    assert (config.name, config.num_embeddings, config.embedding_dim) == ("t0", 50, 4)
    assert config.feature_names == ["a", "d"]
    assert module.need_indices() is False
    with pytest.raises(ValueError, match="different dimensions, {'t0': 4, 't1': 6, 't2': 4}"):
        module.embedding_dim()
    assert "(t0): 50, 4, int4, features=['a', 'd']" in repr(module)


def test_wrong_batches_are_refused_before_anything_changes() -> None:
    module = sequences()
    before = state(module)
    with pytest.raises(TypeError, match="features must be a KeyedJaggedTensor, got Tensor"):
        module(torch.tensor([1]))
    with pytest.raises(KeyError, match="no feature 'd'; there are \\['a', 'b', 'c'\\]"):
        module(features(*"abc"))
    twice = features(*"abcd")
    twice._keys = ["a", "b", "c", "a"]
    with pytest.raises(ValueError, match="come twice"):
        module(twice)
    short = features(*"abcd")
    short._offsets = short._offsets[:-1]
    with pytest.raises(ValueError, match="4 features must have 4 x batch size"):
        module(short)
    for at, value in ((1, 9), (0, 1), (-1, 3)):  # falls, does not start at 0, ends too early
        wrong = features(*"abcd")
        wrong._offsets[at] = value
        with pytest.raises(ValueError, match="must not decrease, start at 0 and end at"):
            module(wrong)
    assert state(module) == before


def test_an_index_out_of_range_is_reported_with_its_feature() -> None:
    module = sequences()
    before = state(module)
    bags = {**BAGS, "b": [[], [29, 30], [99]]}
    with pytest.raises(
        IndexError,
        match="feature 'b' \\(table 't1', num_embeddings=30\\): index 30 at position 1 of its "
        "values is out of range; 2 such in the feature",
    ):
        module(Jagged({key: bags[key] for key in "dcba"}))
    assert state(module) == before


@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled_models_run_it_eagerly_or_say_why_not(fullgraph: bool) -> None:
    module, twin = sequences(), sequences()

    def loss(one: Any, batch: Jagged) -> torch.Tensor:
        out = one(batch)
        total: torch.Tensor = out["a"].values().sum() + out["b"].values().square().sum()
        return total

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=fullgraph, backend="eager")
    if fullgraph:
        with pytest.raises(Exception, match="compile without fullgraph=True"):
            compiled(module, features(*"abcd"))
        assert state(module) == state(twin)
        return
    for _ in range(2):
        for run, one in ((compiled, module), (loss, twin)):
            run(one, features(*"abcd")).backward()
    assert state(module) == state(twin)


def test_export_is_refused() -> None:
    module = sequences().eval()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sequences = module

        def forward(self, values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
            batch = features(*"abcd")
            batch._values, batch._offsets = values, offsets
            rows: torch.Tensor = self.sequences(batch)["a"].values()
            return rows

    batch = features(*"abcd")
    with pytest.raises(RuntimeError, match="torch.export is not supported: the outputs"):
        torch.export.export(Model(), (batch.values(), batch.offsets()))
