"""mpembed.torch.freeze: a copy whose tables are buffers gives the bytes of the model's eval()."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from torch_modules import NAMES, TABLES, Jagged, bag, batch, collection, ended, features, state

import mpembed as mpe
from mpembed import ops, registry
from mpembed import torch as mt
from mpembed.torch import _frozen, _keyed

pytestmark = pytest.mark.torch
FORMATS = list(registry.FORMATS)


def trained(module: Any, steps: int = 3) -> Any:
    """Train a module of one table; write its cache back, so that rows are as they are stored."""
    for step in range(steps):
        module(batch(step)[0][None]).square().sum().backward()
    if not isinstance(module, mt.Embedding):
        module.tables.flush()
    return module


def embedding(**options: Any) -> mt.Embedding:
    settings: dict[str, Any] = {"precision": "int4", "optimizer": mpe.SGD(lr=0.5), **options}
    return mt.Embedding(50, 6, **settings)


def without_cache(**options: Any) -> mt.EmbeddingBag:
    return bag(cache=None, **options)


def rows_of(module: Any) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = module.tables.rows("table", np.arange(50))
    return values


# ---- outputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 5, 8])
@pytest.mark.parametrize("precision", FORMATS)
def test_outputs_are_those_of_evaluation_in_every_format(precision: str, dim: int) -> None:
    options: dict[str, Any] = {"optimizer": mpe.SGD(lr=0.5), "precision": precision}
    for module in (
        mt.Embedding(50, dim, **options),
        mt.EmbeddingBag(50, dim, mode="mean", **options),
    ):
        ids = torch.randint(50, (7, 3))
        module(ids).square().sum().backward()
        expected = module.eval()(ids)
        frozen: Any = mt.freeze(module)
        assert torch.equal(frozen(ids), expected)
        assert torch.equal(frozen(ids.int()), expected)
        assert torch.equal(frozen.weight, torch.from_numpy(rows_of(module)))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bags_with_weights(mode: str, last: bool, dtype: torch.dtype) -> None:
    module = without_cache(mode=mode, include_last_offset=last, output_dtype=dtype).eval()
    frozen = mt.freeze(module)
    indices, offsets = batch(3, bags=8)
    ends = ended(indices, offsets) if last else offsets
    weights = torch.rand(len(indices))
    for given in (None, weights):
        expected = module(indices, ends, given)
        assert expected.dtype == dtype
        assert torch.equal(frozen(indices, ends, given), expected)
        assert torch.equal(frozen(indices, ends.int(), given), expected)
        folded = indices[:6].view(2, 3), None, None if given is None else given[:6].view(2, 3)
        assert torch.equal(frozen(*folded), module(*folded))


@pytest.mark.parametrize("shape", [(), (0,), (4,), (2, 0), (2, 1, 3)])
def test_rows_of_any_shape(shape: tuple[int, ...]) -> None:
    module = embedding().eval()
    ids = torch.randint(50, shape)
    got = mt.freeze(module)(ids)
    assert got.shape == (*shape, 6)
    assert torch.equal(got, module(ids))


def test_batches_without_bags_and_without_indices() -> None:
    frozen = mt.freeze(without_cache())
    none = torch.zeros(0, dtype=torch.int64)
    assert frozen(none, none).shape == (0, 6)
    assert torch.equal(frozen(none, torch.zeros(2, dtype=torch.int64)), torch.zeros(2, 6))
    assert frozen(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 6)
    assert torch.equal(frozen(torch.zeros(2, 0, dtype=torch.int64)), torch.zeros(2, 6))


def test_rows_of_the_cache_are_rounded_as_a_flush_rounds_them() -> None:
    module = bag(precision="int8")
    module(*batch()).square().sum().backward()
    before = state(module)
    frozen: Any = mt.freeze(module)
    assert state(module) == before
    packed = module.tables.export("table")
    assert np.array_equal(frozen.rows.numpy(), packed)
    assert torch.equal(frozen.weight, torch.from_numpy(ops.dequantize(packed, "int8", 6)))
    step = np.ptp(rows_of(module), axis=1, keepdims=True) / 255
    assert (np.abs(frozen.weight.numpy() - rows_of(module)) <= 1.01 * step).all()


def test_training_of_the_model_does_not_reach_the_copy() -> None:
    module = without_cache(precision="fp32")
    frozen = mt.freeze(module)
    before = frozen(*batch())
    module(*batch()).square().sum().backward()
    assert torch.equal(frozen(*batch()), before)
    assert not torch.equal(module(*batch()), before)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_padding_is_left_out_of_bags(mode: str, weighted: bool) -> None:
    module: Any = without_cache(mode=mode, precision="fp32", padding_idx=3)
    frozen: Any = mt.freeze(module)
    assert frozen.padding_idx == 3
    plain = nn.EmbeddingBag(50, 6, mode=mode, padding_idx=3, _weight=torch.tensor(rows_of(module)))
    ids, offsets = torch.tensor([3, 1, 3, 2, 2, 3, 4, 3]), torch.tensor([0, 2, 5, 5, 6])
    weights = torch.rand(8) if weighted and mode == "sum" else None
    torch.testing.assert_close(frozen(ids, offsets, weights), plain(ids, offsets, weights).detach())
    torch.testing.assert_close(frozen(ids.view(2, 4)), plain(ids.view(2, 4)).detach())
    assert torch.equal(frozen(ids, offsets, weights), module.eval()(ids, offsets, weights))


def test_padding_of_an_embedding_reads_as_stored() -> None:
    module: Any = embedding(padding_idx=3)
    frozen: Any = mt.freeze(module)
    assert torch.equal(frozen(torch.tensor([3])), frozen.weight[3:4])


def test_an_index_out_of_range_raises_or_adds_nothing_as_in_the_model() -> None:
    ids = torch.tensor([[1, 50], [2, -1]])
    with pytest.raises(IndexError, match=r"index 50 at position \(0, 1\) of input .* 2 such"):
        mt.freeze(without_cache())(ids)
    dropping = without_cache(bounds="drop", mode="mean").eval()
    assert torch.equal(mt.freeze(dropping)(ids), dropping(ids))


def test_unsigned_indices() -> None:
    frozen: Any = mt.freeze(embedding())
    ids = torch.tensor([1, 49])
    for dtype in (torch.uint32, torch.uint64):
        assert torch.equal(frozen(ids.to(dtype)), frozen(ids))
    with pytest.raises(IndexError, match="exceeds 2\\^63 - 1; 1 such"):
        frozen(torch.tensor([-1]).view(torch.uint64))
    dropping: Any = mt.freeze(embedding(bounds="drop"))
    assert torch.equal(dropping(torch.tensor([-1]).view(torch.uint64)), torch.zeros(1, 6))


def test_wrong_batches_are_refused_as_in_the_model() -> None:
    frozen = mt.freeze(without_cache())
    ids = torch.arange(4)
    with pytest.raises(ValueError, match="per_sample_weights must have the shape"):
        frozen(ids, torch.tensor([0]), torch.ones(3))
    with pytest.raises(ValueError, match="must be None where input has two"):
        frozen(ids.view(2, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match="must be a tensor of one dimension"):
        frozen(ids)
    with pytest.raises(ValueError, match="one or two dimensions, got 3"):
        frozen(ids.view(2, 2, 1))
    with pytest.raises(ValueError, match="offsets must not decrease"):
        frozen(ids, torch.tensor([0, 3, 2]))
    with pytest.raises(ValueError, match="offsets must start at 0"):
        frozen(ids, torch.tensor([1, 2]))
    with pytest.raises(TypeError, match=r"input must be int32, .* got torch\.float32"):
        frozen(ids.float(), torch.tensor([0]))
    padded = mt.freeze(without_cache(padding_idx=1))
    with pytest.raises(ValueError, match="offsets must not decrease"):
        padded(ids, torch.tensor([0, 9, 2]))


# ---- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_learned_weights_have_the_gradient_of_a_training_module(mode: str, precision: str) -> None:
    module = without_cache(mode=mode, precision=precision, optimizer=mpe.SGD(lr=0.0))
    frozen = mt.freeze(module)
    indices, offsets = batch(4)
    grads = []
    for one in (module, frozen, frozen.train()):
        weights = torch.linspace(-1, 1, len(indices)).requires_grad_()
        one(indices, offsets, weights).square().sum().backward()
        grads.append(weights.grad)
    first, second, third = grads
    assert first is not None
    assert second is not None
    assert third is not None
    assert torch.equal(second, first)
    assert torch.equal(third, first)


def test_padding_has_no_gradient() -> None:
    module: Any = without_cache(precision="fp32", padding_idx=3)
    frozen: Any = mt.freeze(module)
    weights = torch.ones(4, requires_grad=True)
    frozen(torch.tensor([3, 1, 3, 2]), torch.tensor([0]), weights).sum().backward()
    rows = frozen.weight.sum(1)
    assert weights.grad is not None
    torch.testing.assert_close(
        weights.grad, torch.stack([rows[0] * 0, rows[1], rows[0] * 0, rows[2]])
    )


def test_nothing_else_has_a_gradient() -> None:
    frozen: Any = mt.freeze(without_cache())
    assert list(frozen.parameters()) == []
    assert not frozen(*batch()).requires_grad
    assert not frozen.weight.requires_grad
    assert torch.equal(frozen.train()(*batch()), frozen.eval()(*batch()))


# ---- collections -------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["abc", "cdab"])
@pytest.mark.parametrize("names", [NAMES, {**NAMES, "t0": ["a", "d"]}])
def test_features_of_a_collection(keys: str, names: dict[str, list[str]]) -> None:
    if "d" in names["t0"] and "d" not in keys:
        keys = "dabc"
    for weighted in (False, True):
        module: Any = collection(cache=None, feature_names=names, is_weighted=weighted)
        frozen: Any = mt.freeze(module)
        given = features(*keys, weighted=True)
        expected, got = module(given), frozen(given)
        assert isinstance(got, _keyed.KeyedTensor)
        assert (got.keys(), got.length_per_key()) == (expected.keys(), expected.length_per_key())
        assert torch.equal(got.values(), expected.values())
        assert frozen.embedding_bag_configs() == module.embedding_bag_configs()
        assert frozen.is_weighted() is weighted
        if weighted:
            assert given.weights is not None
            grads: list[Any] = []
            for values in (expected.values(), got.values()):
                given.weights.grad = None
                values.square().sum().backward(retain_graph=True)
                grads.append(given.weights.grad)
            assert torch.equal(*grads)


def test_a_collection_with_indices() -> None:
    module: Any = collection(cache=None).eval()
    frozen: Any = mt.freeze(module)
    given = features("a", "b", "c")
    plain = given.values(), given.offsets()
    assert torch.equal(frozen(*plain), module(*plain))
    weights = torch.rand(len(plain[0]))
    assert torch.equal(frozen(*plain, weights), module(*plain, weights))
    with pytest.raises(IndexError, match="table 't2'"):
        frozen(torch.full_like(plain[0], 25), plain[1])


def test_wrong_features_are_refused_as_in_the_model() -> None:
    frozen: Any = mt.freeze(collection())
    given = features("a", "b", "c")
    with pytest.raises(TypeError, match="offsets must be given"):
        frozen(given.values())
    with pytest.raises(TypeError, match="KeyedJaggedTensor or a tensor"):
        frozen([1])
    with pytest.raises(TypeError, match="have offsets and weights of their own"):
        frozen(given, given.offsets())
    with pytest.raises(KeyError, match="no feature 'c'"):
        frozen(features("a", "b"))
    with pytest.raises(ValueError, match="has no weights|have no weights"):
        mt.freeze(collection(is_weighted=True))(given)

    class Uneven(Jagged):
        def variable_stride_per_key(self) -> bool:
            return True

    with pytest.raises(ValueError, match="stride_per_key"):
        frozen(Uneven({"a": [[1]], "b": [[]], "c": [[]]}))


@pytest.mark.parametrize("operators", ["mpembed", "torch"])
@pytest.mark.parametrize("keys", ["abcd", "dcab"])
def test_sequences_of_a_collection(keys: str, operators: str) -> None:
    tables = [
        mpe.TableConfig("t0", 50, 4, precision="int4", pooling="none"),
        mpe.TableConfig("t1", 30, 6, precision="int8", pooling="none"),
        mpe.TableConfig("t2", 20, 8, precision="int2", pooling="none"),
    ]
    names = {**NAMES, "t0": ["a", "d"]}
    module: Any = mt.EmbeddingCollection(tables, feature_names=names, optimizer=mpe.SGD())
    frozen: Any = mt.freeze(module.eval(), operators=operators)
    given = features(*keys)
    expected, got = module(given), frozen(given)
    assert list(got) == list(expected)
    for name, rows in got.items():
        torch.testing.assert_close(rows.values(), expected[name].values(), rtol=1e-5, atol=1e-7)
        if operators == "mpembed":
            assert torch.equal(rows.values(), expected[name].values())
        assert torch.equal(rows.lengths(), expected[name].lengths())
    assert frozen.embedding_configs() == module.embedding_configs()
    with pytest.raises(TypeError, match="must be a KeyedJaggedTensor, got int"):
        frozen(3)
    with pytest.raises(KeyError, match="no feature 'd'"):
        frozen(features("a", "b", "c"))
    if operators == "mpembed":
        with pytest.raises(IndexError, match="feature 'b' .* index 30 at position 1 of its values"):
            frozen(Jagged({"a": [[1]], "b": [[2, 30]], "c": [[]], "d": [[]]}))
    run: Any = torch.compile(frozen, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="export or compile the rest of the model"):
        run(given)


def test_an_index_out_of_range_is_told_by_its_feature() -> None:
    frozen: Any = mt.freeze(collection())
    with pytest.raises(IndexError, match="feature 'b' .* index 30 at position 1 of its values"):
        frozen(Jagged({"c": [[1]], "b": [[2, 30]], "a": [[]]}))


# ---- the copy ----------------------------------------------------------------------------------


class Shared(nn.Module):
    """A model that uses one table in two places and holds it in a list, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = without_cache()
        self.nested = nn.ModuleDict({"again": self.first, "other": embedding()})
        self.held = [self.first]
        self.head = nn.Linear(6, 1)

    def forward(self, indices: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        pooled = self.held[0](indices, offsets) + self.nested["again"](indices, offsets)
        out: torch.Tensor = self.head(pooled + self.nested["other"](indices).mean(0))
        return out


def test_a_model_is_copied_with_what_it_shares() -> None:
    model = Shared()
    frozen: Any = mt.freeze(model)
    assert frozen.first is frozen.nested["again"]
    assert frozen.held[0] is frozen.first
    assert not any(module.training for module in frozen.modules())
    assert model.training
    assert isinstance(model.first, mt.EmbeddingBag)
    assert torch.equal(frozen(*batch()), model.eval()(*batch()))
    assert [name for name, _ in frozen.named_parameters()] == ["head.weight", "head.bias"]
    assert frozen.head.weight is not model.head.weight
    assert torch.equal(frozen.head.weight, model.head.weight)


def test_modules_of_one_collection_share_their_rows() -> None:
    module = without_cache()
    frozen: Any = mt.freeze(nn.ModuleList([module, copy.copy(module)]))
    assert frozen[0] is not frozen[1]
    assert frozen[0].rows is frozen[1].rows


def test_hooks_are_kept() -> None:
    module = without_cache()
    module.register_forward_hook(lambda *_: _[-1] * 2)
    module.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "per_sample_weights": None}), with_kwargs=True
    )
    frozen = mt.freeze(nn.Sequential(module))
    ids = torch.randint(50, (3, 2))
    assert torch.equal(frozen(ids), module.eval()(ids))


def test_a_frozen_model_is_copied_and_frozen_no_more() -> None:
    frozen: Any = mt.freeze(without_cache())
    twin = copy.deepcopy(frozen)
    assert torch.equal(twin(*batch()), frozen(*batch()))
    assert twin.rows is not frozen.rows
    with pytest.raises(ValueError, match="nothing is to be frozen"):
        mt.freeze(frozen)


def test_what_is_no_model_of_ours_is_refused() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got int"):
        mt.freeze(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'mpembed' or 'torch', got 'onnx'"):
        mt.freeze(bag(), operators="onnx")
    with pytest.raises(ValueError, match="nothing is to be frozen"):
        mt.freeze(nn.Linear(2, 2))

    class Mine(mt.Embedding):
        pass

    with pytest.raises(ValueError, match="0: freeze does not know Mine"):
        mt.freeze(nn.Sequential(Mine(5, 2, optimizer=mpe.SGD())))


# ---- state, types, devices ---------------------------------------------------------------------


def test_a_change_of_type_reaches_outputs_and_not_rows() -> None:
    model = nn.Sequential(without_cache(), nn.Linear(6, 2))
    frozen: Any = mt.freeze(model)
    ids = torch.randint(50, (3, 2))
    plain = frozen[0](ids)
    rows = frozen[0].rows.clone()
    for change, dtype in (("half", torch.float16), ("double", torch.float64)):
        getattr(frozen, change)()
        assert torch.equal(frozen[0].rows, rows)
        assert frozen[0].rows.dtype == torch.uint8
        assert torch.equal(frozen[0](ids), plain.to(dtype))
        assert frozen[0].weight.dtype == dtype
        assert frozen(ids).dtype == dtype
    assert frozen.float()(ids).dtype == torch.float32
    assert frozen.to("meta")[0].rows.is_meta
    assert frozen[0].device.type == "meta"


def test_safetensors_and_weights_only_keep_it(tmp_path: Path) -> None:
    model = nn.Sequential(without_cache(), nn.Linear(6, 2))
    frozen: Any = mt.freeze(model)
    ids = torch.randint(50, (3, 2))
    expected = frozen(ids)
    assert set(frozen.state_dict()) == {"0.rows", "1.weight", "1.bias"}
    save_file(frozen.state_dict(), tmp_path / "a.safetensors")
    save_model(frozen, str(tmp_path / "b.safetensors"))
    torch.save(frozen.state_dict(), tmp_path / "c.pt")
    torch.save(frozen, tmp_path / "d.pt")

    def other() -> Any:
        made: Any = mt.freeze(nn.Sequential(without_cache(seed=9), nn.Linear(6, 2)))
        assert not torch.equal(made(ids), expected)
        return made

    first, second, third = other(), other(), other()
    first.load_state_dict(load_file(tmp_path / "a.safetensors"))
    load_model(second, str(tmp_path / "b.safetensors"))
    third.load_state_dict(torch.load(tmp_path / "c.pt", weights_only=True))
    for one in (first, second, third, torch.load(tmp_path / "d.pt", weights_only=False)):
        assert torch.equal(one(ids), expected)


def test_repr() -> None:
    assert repr(mt.freeze(without_cache(mode="mean"))) == (
        "FrozenEmbeddingBag(50, 6, int4, operators='mpembed', mode='mean')"
    )
    text = repr(mt.freeze(collection(output_dtype=torch.float16)))
    assert "(t1): 30, 6, int8, 'mean'\n" in text
    assert "operators='mpembed', output_dtype=torch.float16" in text
    assert "int4, padding_idx=4" in repr(mt.freeze(embedding(padding_idx=4)))


def test_the_modules_of_one_table_have_pytorchs_attributes() -> None:
    frozen: Any = mt.freeze(without_cache())
    plain = nn.EmbeddingBag(50, 6, mode="sum")
    for name in ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type"):
        assert getattr(frozen, name) == getattr(plain, name)
    for name in ("scale_grad_by_freq", "sparse", "mode", "include_last_offset"):
        assert getattr(frozen, name) == getattr(plain, name)
    assert frozen.device == torch.device("cpu")
    assert isinstance(frozen, _frozen.FrozenTables)
    several: Any = mt.freeze(collection())
    assert len(several._rows()) == len(TABLES)
