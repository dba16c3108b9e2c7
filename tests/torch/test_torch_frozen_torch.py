"""freeze(operators="torch"): PyTorch's own operators read the rows, without mpembed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn
from torch.export import Dim
from torch_modules import NAMES, bag, batch, collection, ended, features
from torch_serving import (
    FromLengths,
    Scores,
    export_by_lengths,
    in_another_process,
    lengths_batches,
)

import mpembed as mpe
from mpembed import torch as mt
from mpembed.torch import _frozen_torch

pytestmark = pytest.mark.torch
#: The formats that PyTorch reads, with a dimension that it knows.
FORMATS = [("fp32", 5), ("fp16", 5), ("bf16", 5), ("int8", 5), ("int4", 6), ("int2", 8)]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pair(kind: type, precision: str, dim: int, **options: Any) -> tuple[Any, Any]:
    """Return a module in evaluation, and the same one for PyTorch's operators."""
    module = kind(50, dim, precision=precision, optimizer=mpe.SGD(lr=0.1), **options).eval()
    return module, mt.freeze(module, operators="torch")


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare sums that differ in their order alone."""
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("precision", "dim"), FORMATS)
def test_rows_are_the_same(precision: str, dim: int) -> None:
    module, frozen = pair(mt.Embedding, precision, dim)
    ids = torch.randint(50, (3, 4))
    close(frozen(ids), module(ids))
    assert torch.equal(frozen(ids.int()), frozen(ids))
    assert torch.equal(frozen.weight[ids], frozen(ids))
    ours: Any = mt.freeze(module)
    assert torch.equal(frozen.rows, ours.rows)  # one file serves both
    for shape in ((), (0,), (2, 0)):
        assert frozen(torch.zeros(shape, dtype=torch.int64)).shape == (*shape, dim)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize(("precision", "dim"), FORMATS)
def test_bags(precision: str, dim: int, mode: str) -> None:
    indices, offsets = batch(3, bags=8)
    weights = torch.rand(len(indices))
    none = torch.zeros(0, dtype=torch.int64)
    for last in (False, True):
        module, frozen = pair(mt.EmbeddingBag, precision, dim, mode=mode, include_last_offset=last)
        ends = ended(indices, offsets) if last else offsets
        for given in (None, weights, weights.double()):
            close(frozen(indices, ends, given), module(indices, ends, given))
            close(frozen(indices.int(), ends, given), module(indices, ends, given))
            close(frozen(indices, ends.int(), given), module(indices, ends, given))
        close(frozen(indices[:6].view(2, 3)), module(indices[:6].view(2, 3)))
        empty = torch.zeros(1 if last else 0, dtype=torch.int64)
        assert frozen(none, empty).shape == (0, dim)
        zeros = torch.zeros(3 if last else 2, dtype=torch.int64)
        assert torch.equal(frozen(none, zeros), torch.zeros(2, dim))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize(("precision", "dim"), FORMATS)
def test_padding_and_dropped_indices(precision: str, dim: int, mode: str) -> None:
    indices = torch.tensor([3, 1, 50, 3, 3, -1, 2, 2])
    offsets = torch.tensor([0, 3, 5, 5])
    options: dict[str, Any] = {"precision": precision, "optimizer": mpe.SGD(), "mode": mode}
    module = mt.EmbeddingBag(50, dim, bounds="drop", padding_idx=3, **options)
    frozen, ours = mt.freeze(module, operators="torch"), mt.freeze(module)
    for weights in (None, torch.rand(8)):
        close(frozen(indices, offsets, weights), ours(indices, offsets, weights))
    single = mt.Embedding(50, dim, bounds="drop", precision=precision, optimizer=mpe.SGD())
    close(mt.freeze(single, operators="torch")(indices), single.eval()(indices))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_type_of_outputs(dtype: torch.dtype) -> None:
    module, frozen = pair(mt.EmbeddingBag, "fp16", 6, output_dtype=dtype)
    indices, offsets = batch(3)
    got = frozen(indices, offsets)
    assert got.dtype == dtype
    torch.testing.assert_close(got, module(indices, offsets))
    assert frozen.half()(indices, offsets).dtype == torch.float16
    assert frozen.rows.dtype == torch.uint8


@pytest.mark.parametrize("names", [NAMES, {**NAMES, "t0": ["a", "d"]}])
def test_features_of_a_collection(names: dict[str, list[str]]) -> None:
    for weighted in (False, True):
        module: Any = collection(feature_names=names, is_weighted=weighted, cache=None)
        frozen: Any = mt.freeze(module.eval(), operators="torch")
        for keys in ("dcab", "abcd") if "d" in names["t0"] else ("abc", "cab"):
            given = features(*keys, weighted=weighted)
            given.weights = None if given.weights is None else given.weights.detach()
            close(frozen(given).values(), module(given).values())
    given = features("a", "b", "c")
    close(frozen(*features_in_place(given)), module(*features_in_place(given)))


def features_in_place(given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return given.values(), given.offsets()


def test_wrong_offsets_of_a_collection_are_refused() -> None:
    frozen = mt.freeze(collection(), operators="torch")
    ids = torch.zeros(4, dtype=torch.int64)
    for wrong, message in (
        ([0, 1, 5, 4], "must not exceed"),
        ([0, 2, 1, 4], "must not decrease"),
        ([-1, 1, 2, 4], "must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            frozen(ids, torch.tensor(wrong))


def test_an_index_out_of_range_is_refused() -> None:
    for precision, dim in FORMATS:
        _, frozen = pair(mt.EmbeddingBag, precision, dim)
        with pytest.raises(
            (RuntimeError, IndexError), match="out of (range|bounds)|not in the valid range"
        ):
            frozen(torch.tensor([[1, 50]]))


def test_learned_weights_are_refused() -> None:
    for precision, dim in FORMATS:
        _, frozen = pair(mt.EmbeddingBag, precision, dim)
        weights = torch.ones(1, 2, requires_grad=True)
        with pytest.raises(RuntimeError, match="freeze the model with operators='mpembed'"):
            frozen(torch.tensor([[1, 2]]), None, weights)
        with torch.no_grad():
            assert frozen(torch.tensor([[1, 2]]), None, weights).shape == (1, dim)


@pytest.mark.parametrize(
    ("precision", "dim"), [("int8_fp16", 4), ("int6", 4), ("int5", 4), ("int4", 5), ("int2", 6)]
)
def test_rows_that_pytorch_does_not_read_are_refused(precision: str, dim: int) -> None:
    module = mt.Embedding(50, dim, precision=precision, optimizer=mpe.SGD())
    model = nn.ModuleDict({"user": module})
    expected = rf"user: .* {precision} rows of {dim} columns: use operators='mpembed'"
    with pytest.raises(ValueError, match=expected):
        mt.freeze(model, operators="torch")
    assert model["user"] is module


# ---- export ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_an_exported_program_takes_batches_of_any_size(precision: str, strict: bool) -> None:
    frozen = mt.freeze(Scores(precision), operators="torch")
    example = torch.randint(50, (3, 4)), torch.rand(3, 4)
    dims = {0: Dim("bags", min=0), 1: Dim("items", min=1)}
    exported = torch.export.export(frozen, example, dynamic_shapes=(dims, dims), strict=strict)
    assert not [n for n in exported.graph.nodes if "mpembed" in str(n.target)]
    run = exported.module()
    for shape in ((3, 4), (1, 1), (7, 2), (0, 3)):
        given = torch.randint(50, shape), torch.rand(shape)
        assert torch.equal(run(*given), frozen(*given))


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_collection_takes_batches_of_any_size(strict: bool) -> None:
    names = {**NAMES, "t0": ["a", "d"]}
    model = FromLengths(collection(cache=None, feature_names=names), "dcab").eval()
    run = export_by_lengths(mt.freeze(model, operators="torch"), strict).module()
    for given in lengths_batches():
        close(run(*given), model(*given))


class Every(nn.Module):
    """A table of each kind and format that PyTorch reads, side by side."""

    def __init__(self) -> None:
        super().__init__()
        kinds = [(kind, *one) for kind in (mt.Embedding, mt.EmbeddingBag) for one in FORMATS]
        self.tables = nn.ModuleList([pair(*one)[0] for one in kinds])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.cat([table(ids).flatten(1) for table in self.tables], dim=1)


SERVE = """
import json, sys
sys.modules["mpembed"] = None
import torch
outs = []
for path, batch in {programs!r}:
    run = torch.export.load(path).module()
    outs.append(run(*map(torch.tensor, batch)).tolist())
print(json.dumps({{"outs": outs}}))
"""


def test_a_saved_program_runs_without_mpembed(tmp_path: Path) -> None:
    several = mt.freeze(FromLengths(collection(cache=None), "dcab"), operators="torch")
    every = mt.freeze(Every(), operators="torch")
    dims = ({0: Dim("bags", min=0)},)
    exported = torch.export.export(every, (torch.randint(50, (3, 4)),), dynamic_shapes=dims)
    programs, expected = [], []
    for number, (frozen, program, given) in enumerate(
        [
            (every, exported, (torch.randint(50, (1, 4)),)),
            (several, export_by_lengths(several), lengths_batches()[1]),
        ]
    ):
        path = str(tmp_path / f"{number}.pt2")
        torch.export.save(program, path)
        programs.append((path, [one.tolist() for one in given]))
        expected.append(frozen(*given).tolist())
    found = in_another_process(SERVE.format(programs=programs), tmp_path)
    assert found["outs"] == expected


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_traced_module_is_right_or_refused() -> None:
    _, frozen = pair(mt.EmbeddingBag, "int4", 6, mode="mean")
    traced, given = torch.jit.trace(frozen, torch.randint(50, (2, 3))), torch.randint(50, (4, 5))
    assert torch.equal(traced(given), frozen(given))
    _, plain = pair(mt.Embedding, "fp16", 6)
    several = mt.freeze(collection(), operators="torch")
    example = features_in_place(features("a", "b", "c"))
    for module, arguments in ((plain, (given,)), (several, example)):
        with pytest.raises(RuntimeError, match=r"use torch\.export"):
            torch.jit.trace(module, arguments)


def test_no_shape_of_pytorchs_own_is_replaced() -> None:
    """PyTorch knows the shape of the 8 bit operator; ours are for those that it does not know."""
    assert _frozen_torch._library is not None
    for kind in ("4bit", "2bit"):
        operator = getattr(torch.ops.quantized, f"embedding_bag_{kind}_rowwise_offsets")
        rows = torch.empty(5, 8, dtype=torch.uint8, device="meta")
        ids, ends = (torch.empty(n, dtype=torch.int64, device="meta") for n in (4, 3))
        width = 4 * {"4bit": 2, "2bit": 4}[kind]
        assert operator(rows, ids, ends).shape == (3, width)
        assert operator(rows, ids, ends, include_last_offset=True).shape == (2, width)


def test_a_compiled_module_gives_the_same() -> None:
    _, frozen = pair(mt.EmbeddingBag, "int4", 6, mode="mean")
    run: Any = torch.compile(frozen, fullgraph=True, backend="aot_eager", dynamic=True)
    for seed in (1, 2):
        indices, offsets = batch(seed, bags=6)
        assert torch.equal(run(indices, offsets), frozen(indices, offsets))


def test_repr() -> None:
    assert "operators='torch'" in repr(mt.freeze(bag(), operators="torch"))
