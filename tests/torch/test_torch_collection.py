"""mpembed.torch.EmbeddingBagCollection: table-major, and by features as TorchRec has them."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch_modules import (
    BAGS,
    NAMES,
    B,
    Jagged,
    assert_refused,
    collection,
    features,
    open_batches,
    state,
)

import mpembed as mpe
from mpembed import torch as mt

pytestmark = pytest.mark.torch


def train(module: Any, batch: Any) -> torch.Tensor:
    out = module(batch)
    values: torch.Tensor = out if isinstance(out, torch.Tensor) else out.values()
    (values * torch.arange(values.numel()).view_as(values)).sum().backward()
    return values.detach()


def test_indices_are_table_major_as_in_the_bare_collection() -> None:
    module, twin = collection(), collection()
    batch = features("a", "b", "c")
    for _ in range(3):
        out = module(batch.values(), batch.offsets())
        expected = twin.tables.forward(batch.values(), batch.offsets())
        assert torch.equal(out.detach(), torch.from_numpy(expected))
        out.backward(out.detach())
        twin.tables.backward(expected)
    assert state(module) == state(twin)


@pytest.mark.parametrize("keys", ["abc", "cab", "bdca"])
def test_features_come_in_any_order_and_among_others(keys: str) -> None:
    module, twin = collection(), collection()
    for _ in range(3):
        out = module(features(*keys))
        assert isinstance(out, mt.KeyedTensor)
        assert (out.keys(), out.length_per_key()) == (["a", "b", "c"], [4, 6, 4])
        twin_out = twin(features("a", "b", "c"))
        assert torch.equal(out.values(), twin_out.values())
        for one in (out, twin_out):
            one.values().square().sum().backward()
    assert state(module) == state(twin)


@pytest.mark.parametrize("keys", ["abcd", "dcba"])
def test_a_table_may_serve_several_features(keys: str) -> None:
    names = {"t0": ["a", "d"], "t1": ["b"], "t2": ["c"]}
    module = collection(feature_names=names, cache=None)
    out = module(features(*keys))
    assert out.keys() == ["a", "d", "b", "c"]
    single = {key: collection(feature_names={**NAMES, "t0": [key]}, cache=None) for key in "ad"}
    for key in "ad":
        assert torch.equal(out[key], single[key](features(key, "b", "c"))[key])
    # One update with the gradients of both: the same as that of a batch with all bags.
    (out["a"].sum() + 2 * out["d"].sum()).backward()
    both = collection(cache=None)
    joined = Jagged({"a": BAGS["a"] + BAGS["d"], "b": [[]] * 6, "c": [[]] * 6})
    result = both(joined)["a"]
    (result[:B].sum() + 2 * result[B:].sum()).backward()
    ids = np.arange(50)
    assert np.array_equal(module.tables.rows("t0", ids), both.tables.rows("t0", ids))


def test_a_feature_of_several_tables_has_a_name_for_each() -> None:
    names = {"t0": ["a"], "t1": ["c"], "t2": ["c", "b"]}
    module = collection(feature_names=names, cache=None, is_weighted=True)
    batch = Jagged({"b": [[1], [2], [3]], "c": [[4], [], [5, 6]], "a": [[7], [8], []]}, True)
    out = module(batch)
    assert out.keys() == ["a", "c@t1", "c@t2", "b"]
    assert out.offset_per_key() == [0, 4, 10, 14, 18]
    out.values().sum().backward()
    assert batch.weights is not None
    assert batch.weights.grad is not None
    # The weights of c get the gradients of both tables: the sums of their rows.
    t1, t2 = (module.tables.rows(t, np.array([4])) for t in ("t1", "t2"))
    fresh = collection(feature_names=names, cache=None, is_weighted=True).tables
    t1, t2 = (fresh.rows(t, np.array([4])) for t in ("t1", "t2"))
    assert batch.weights.grad[3].item() == pytest.approx(float(t1.sum() + t2.sum()), rel=1e-5)


@pytest.mark.parametrize("keys", ["abc", "cab"])
def test_weights_are_used_where_asked_for_and_have_a_gradient(keys: str) -> None:
    batch = features(*keys, weighted=True)
    plain = collection()(batch)
    assert torch.equal(plain.values(), collection()(features(*keys)).values())
    module, twin = collection(is_weighted=True), collection()
    out = train(module, batch)
    ordered = features("a", "b", "c", weighted=True)
    assert batch.weights is not None
    if keys == "abc":
        ordered.weights = batch.weights.detach()
    else:  # c, a, b
        counts = [len(features(k).values()) for k in keys]
        parts = batch.weights.detach().split(counts)
        ordered.weights = torch.cat([parts[1], parts[2], parts[0]])
    weights = ordered.weights
    expected = twin.tables.forward(ordered.values(), ordered.offsets(), weights)
    assert torch.equal(out, torch.from_numpy(expected))
    grad = np.arange(out.numel(), dtype=np.float32).reshape(out.shape)
    weight_grad = torch.from_numpy(twin.tables.backward(grad))
    assert batch.weights.grad is not None
    if keys != "abc":
        counts = [len(features(k).values()) for k in "abc"]
        a, b, c = weight_grad.split(counts)
        weight_grad = torch.cat([c, a, b])
    assert torch.equal(batch.weights.grad, weight_grad)
    assert state(module) == state(twin)
    with pytest.raises(ValueError, match="have no weights"):
        module(features(*keys))


def test_an_empty_batch_and_one_without_indices() -> None:
    module = collection()
    assert module(Jagged({"b": [], "a": [], "c": []})).values().shape == (0, 14)
    out = module(Jagged({name: [[], []] for name in "cab"}))
    assert torch.equal(out.values(), torch.zeros(2, 14))
    out.values().sum().backward()
    assert open_batches(module) == 0


def test_evaluation_changes_nothing_in_any_order() -> None:
    module = collection().eval()
    before = state(module)
    first = module(features("a", "b", "c")).values()
    assert torch.equal(module(features("c", "b", "a")).values(), first)
    assert state(module) == before


def test_a_keyed_tensor_reads_as_torchrecs() -> None:
    values = torch.arange(10).view(2, 5)
    keyed = mt.KeyedTensor(["x", "y"], [2, 3], values)
    assert keyed.key_dim() == 1
    assert torch.equal(keyed["y"], values[:, 2:])
    assert {k: tuple(v.shape) for k, v in keyed.to_dict().items()} == {"x": (2, 2), "y": (2, 3)}
    with pytest.raises(KeyError, match="no 'z'"):
        keyed["z"]
    assert repr(keyed) == "KeyedTensor(['x', 'y'], (2, 5))"


def test_tables_are_described_as_torchrecs_models_ask() -> None:
    module = collection(feature_names={**NAMES, "t0": ["a", "d"]})
    config = module.embedding_bag_configs()[0]
    assert (config.name, config.embedding_dim, config.num_embeddings) == ("t0", 4, 50)
    assert (config.feature_names, config.pooling) == (["a", "d"], "sum")
    assert (module.is_weighted(), module.device) == (False, torch.device("cpu"))
    assert "(t0): 50, 4, int4, 'sum', features=['a', 'd']" in repr(module)
    assert "(t1): 30, 6, int8, 'mean'" in repr(collection())


def test_repr_shows_what_trains_each_table() -> None:
    tables = [
        mpe.TableConfig("a", 9, 4, optimizer=mpe.SGD(0.5)),
        mpe.TableConfig("b", 9, 4, trainable=False),
    ]
    text = repr(mt.EmbeddingBagCollection(tables))
    assert "(a): 9, 4, fp32, 'sum', SGD(lr=0.5)\n" in text
    assert "(b): 9, 4, fp32, 'sum', frozen\n" in text
    assert "device='cpu', no shared optimizer" in text
    one = mpe.EmbeddingBagCollection(tables[:1])
    assert "device='cpu', SGD(lr=0.5, " in repr(mt.EmbeddingBag.from_collection(one))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"t0": ["a"]}, "must have the tables"),
        ({**NAMES, "t0": []}, "feature_names of table 't0'"),
        ({**NAMES, "t0": "ab"}, "feature_names of table 't0'"),
        ({**NAMES, "t0": ["a", "a"]}, "feature_names of table 't0'"),
    ],
)
def test_wrong_feature_names_are_refused(names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collection(feature_names=names)


def test_wrong_batches_are_refused_before_anything_changes() -> None:
    module = collection()
    before = state(module)
    good = features("a", "b", "c")
    with pytest.raises(KeyError, match="no feature 'c'; there are \\['a', 'b'\\]"):
        module(features("a", "b"))
    twice = features("a", "b", "c")
    twice._keys = ["a", "b", "b"]
    with pytest.raises(ValueError, match="come twice"):
        module(twice)
    with pytest.raises(TypeError, match="offsets and weights of their own"):
        module(good, good.offsets())
    with pytest.raises(
        TypeError, match="features must be a KeyedJaggedTensor or a tensor of indices, got dict"
    ):
        module({"a": 1})
    with pytest.raises(TypeError, match="offsets must be given"):
        module(good.values())
    with pytest.raises(ValueError, match="3 x batch size"):
        module(good.values(), good.offsets()[:-1])
    for order in ("abc", "cba"):
        short = features(*order)
        short._offsets = short._offsets[:-1]
        with pytest.raises(ValueError, match="3 features must have 3 x batch size"):
            module(short)
        falling = features(*order)
        falling._offsets[B], falling._offsets[2 * B] = 6, 2
        with pytest.raises(ValueError, match="must not decrease"):
            module(falling)
    own = types.SimpleNamespace(
        **{name: getattr(good, name) for name in dir(good) if "_" not in name}
    )
    own.weights_or_none, own.variable_stride_per_key = good.weights_or_none, lambda: True
    with pytest.raises(ValueError, match="different batch sizes"):
        module(own)
    assert state(module) == before


@pytest.mark.parametrize("keys", ["abc", "cba", "dcba"])
def test_an_index_out_of_range_is_reported_with_its_feature(keys: str) -> None:
    names = {**NAMES, "t0": ["a", "d"]} if "d" in keys else NAMES
    module = collection(feature_names=names)
    before = state(module)
    bags = {**BAGS, "b": [[], [29, 30], [99]]}
    with pytest.raises(
        IndexError,
        match="feature 'b' \\(table 't1', num_embeddings=30\\): index 30 at position 1 of its "
        "values is out of range; 2 such in the feature",
    ):
        module(Jagged({key: bags[key] for key in keys}))
    assert state(module) == before


@pytest.mark.parametrize(
    ("poolings", "way_out"),
    [
        (["none"], "use mpembed.torch.Embedding$"),
        (["none", "none"], "use mpembed.torch.EmbeddingCollection$"),
        (["sum", "none"], "unpooled tables for mpembed.torch.EmbeddingCollection, and one of the"),
    ],
)
def test_tables_without_pooling_are_refused_with_the_class_for_them(
    poolings: list[str], way_out: str
) -> None:
    message = f"table 'x{poolings.index('none')}' has pooling 'none': .*{way_out}"
    assert_refused(mt.EmbeddingBagCollection, poolings, message)
