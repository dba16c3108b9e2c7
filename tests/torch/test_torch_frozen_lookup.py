"""The operators of frozen modules: pure functions that are exported, saved and loaded elsewhere."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.export import Dim
from torch.library import opcheck
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
from mpembed.torch._frozen_lookup import decode_tables, encode_tables

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._inductor.config.patch(compile_threads=1):
        yield
    torch._dynamo.reset()


def frozen_bag(**options: Any) -> Any:
    return mt.freeze(bag(**{"cache": None, **options}))


def arguments(
    frozen: Any, indices: Tensor, offsets: Tensor, weights: Tensor | None = None, padding: int = -1
) -> tuple[Any, ...]:
    rows = frozen._rows()
    return rows, indices, offsets, weights, frozen._tables, None, padding, False


# ---- the operators -----------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [-1, 3])
@pytest.mark.parametrize("weighted", [True, False])
def test_opcheck_of_the_lookup(weighted: bool, padding: int) -> None:
    frozen = frozen_bag(mode="mean")
    indices, offsets = batch(1)
    weights = torch.rand(len(indices), requires_grad=True) if weighted else None
    given = arguments(frozen, indices, ended(indices, offsets), weights, padding)
    results = opcheck(torch.ops.mpembed.frozen_lookup.default, given)
    assert set(results.values()) == {"SUCCESS"}


def test_opcheck_of_unpooled_rows_and_of_several_tables() -> None:
    embedding: Any = mt.freeze(mt.Embedding(50, 6, precision="int5", optimizer=mpe.SGD()))
    indices, offsets = torch.arange(4), torch.tensor([0, 4])
    results = opcheck(
        torch.ops.mpembed.frozen_lookup.default, arguments(embedding, indices, offsets)
    )
    assert set(results.values()) == {"SUCCESS"}
    several: Any = mt.freeze(collection(feature_names={**NAMES, "t0": ["a", "d"]}))
    given = features("d", "c", "a", "b", weighted=True)
    order = several._layout.order(given.keys())
    assert order
    whole = (
        *(several._rows(), given.values(), given.offsets(), given.weights),
        *(several._tables, order, -1, False),
    )
    results = opcheck(torch.ops.mpembed.frozen_lookup.default, whole)
    assert set(results.values()) == {"SUCCESS"}


def test_opcheck_of_the_gradient_and_of_all_rows() -> None:
    frozen = frozen_bag()
    indices, offsets = batch(1)
    rows, *rest = arguments(frozen, indices, ended(indices, offsets))
    given = torch.rand(len(offsets), 6), rows, *rest[:2], *rest[3:]
    results = opcheck(torch.ops.mpembed.frozen_weight_grad.default, given)
    assert set(results.values()) == {"SUCCESS"}
    results = opcheck(torch.ops.mpembed.frozen_rows.default, (rows[0], "int4", 6))
    assert set(results.values()) == {"SUCCESS"}


def test_tables_go_through_text() -> None:
    tables = [mpe.TableConfig('a, "b".c;', 9, 3, precision="int2", pooling="mean")]
    text = encode_tables(tables)
    assert json.loads(text) == [['a, "b".c;', "int2", 3, "mean"]]
    assert decode_tables(text) == (('a, "b".c;', "int2", 3, "mean"),)


def test_rows_that_do_not_fit_are_refused() -> None:
    frozen = frozen_bag()
    rows, *rest = arguments(frozen, torch.tensor([1]), torch.tensor([0, 1]))
    lookup = torch.ops.mpembed.frozen_lookup
    with pytest.raises(ValueError, match="rows must have 7 bytes a row"):
        lookup([rows[0][:, :5]], *rest)
    with pytest.raises(TypeError, match="expected dtype uint8"):
        lookup([rows[0].float()], *rest)
    text = encode_tables([mpe.TableConfig("t", 50, 6, "int4", pooling="none")] * 2)
    with pytest.raises(ValueError, match="several tables must all be pooled"):
        lookup([rows[0]] * 2, *rest[:3], text, *rest[4:])


def test_rows_in_other_strides_are_copied() -> None:
    frozen = frozen_bag()
    expected = frozen(*batch())
    frozen.rows = frozen.rows.t().contiguous().t()
    assert not frozen.rows.is_contiguous()
    assert torch.equal(frozen(*batch()), expected)


# ---- export ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_export_of_a_table_that_can_be_trained_is_refused(training: bool, strict: bool) -> None:
    model = nn.Sequential(bag(), nn.Linear(6, 1)).train(training)
    with pytest.raises(Exception, match=r"export mpembed\.torch\.freeze\(model\)"):
        torch.export.export(model, (torch.zeros(2, 3, dtype=torch.int64),), strict=strict)


# PyTorch's own file, which it leaves open where an export fails.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_draft_export_of_a_table_that_can_be_trained_is_refused() -> None:
    for module in (bag().eval(), mt.Embedding(5, 2, optimizer=mpe.SGD())):
        with pytest.raises(RuntimeError, match=r"export mpembed\.torch\.freeze\(model\)"):
            torch.export.draft_export(module, (torch.zeros(2, 3, dtype=torch.int64),))


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_program_takes_batches_of_any_size(strict: bool) -> None:
    frozen = mt.freeze(Scores())
    example = torch.randint(50, (3, 4)), torch.rand(3, 4)
    dims = {0: Dim("bags", min=0), 1: Dim("items", min=1)}
    exported = torch.export.export(frozen, example, dynamic_shapes=(dims, dims), strict=strict)
    assert torch.export.export(frozen, example).module()(*example).shape == (3, 50)
    run = exported.module()
    for shape in ((3, 4), (1, 1), (7, 2), (0, 3)):
        given = torch.randint(50, shape), torch.rand(shape)
        assert torch.equal(run(*given), frozen(*given))
    with pytest.raises(IndexError, match="index 50 at position 0"):
        run(torch.full((1, 1), 50), torch.ones(1, 1))


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_collection_takes_batches_of_any_size(strict: bool) -> None:
    names = {**NAMES, "t0": ["a", "d"]}
    model = FromLengths(collection(cache=None, feature_names=names), "dcab").eval()
    frozen = mt.freeze(model)
    run = export_by_lengths(frozen, strict).module()
    for given in lengths_batches():
        assert torch.equal(run(*given), model(*given))


SERVE = """
import json, torch
path, ids = {path!r}, torch.tensor({ids})
refused = ""
try:
    torch.export.load(path).module()(ids)
except Exception as error:
    refused = str(error)
import mpembed.torch
other = mpembed.torch.Embedding(50, 6, optimizer=mpembed.SGD())
out = torch.export.load(path).module()(ids).tolist()
print(json.dumps({{"out": out, "refused": refused}}))
"""


def test_a_saved_program_serves_its_own_table_in_another_process(tmp_path: Path) -> None:
    model = nn.Sequential(bag(cache=None), nn.Linear(6, 2))
    frozen = mt.freeze(model)
    example = torch.tensor([[1, 2, 3], [4, 5, 6]])
    path = str(tmp_path / "model.pt2")
    torch.export.save(torch.export.export(frozen, (example,)), path)
    found = in_another_process(SERVE.format(path=path, ids=example.tolist()), tmp_path)
    assert found["out"] == frozen(example).tolist()
    assert "deserializing" in found["refused"]  # the operator is not known


#: What a process does before it loads a compiled program.
FIRST = {"mpembed": "import mpembed.torch", "torch": "sys.modules['mpembed'] = None"}
SERVE_COMPILED = """
import json, sys
{first}
import torch
run = torch._inductor.aoti_load_package({path!r})
print(json.dumps({{"out": run(torch.tensor({ids}), torch.tensor({weights})).tolist()}}))
"""


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("operators", ["mpembed", "torch"])
def test_ahead_of_time_compilation(
    operators: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    names = {**NAMES, "t0": ["a", "d"]}
    several = mt.freeze(
        FromLengths(collection(cache=None, feature_names=names), "dcab"), operators=operators
    )
    scores = mt.freeze(Scores(), operators=operators)
    dims = {0: Dim("bags", min=0), 1: Dim("items", min=1)}
    example = torch.randint(50, (3, 4)), torch.rand(3, 4)
    for number, (frozen, exported, batches) in enumerate(
        [
            (several, export_by_lengths(several), lengths_batches()[:3]),
            (
                scores,
                torch.export.export(scores, example, dynamic_shapes=(dims, dims)),
                [example, (torch.randint(50, (1, 2)), torch.rand(1, 2))],
            ),
        ]
    ):
        path = str(tmp_path / f"{number}.pt2")
        torch._inductor.aoti_compile_and_package(exported, package_path=path)
        run = torch._inductor.aoti_load_package(path)
        for given in batches:
            torch.testing.assert_close(run(*given), frozen(*given))
    ids, weights = example
    code = SERVE_COMPILED.format(
        first=FIRST[operators], path=path, ids=ids.tolist(), weights=weights.tolist()
    )
    found = torch.tensor(in_another_process(code, tmp_path)["out"])
    torch.testing.assert_close(found, scores(*example).detach())


# ---- other compilers ---------------------------------------------------------------------------


def test_a_compiled_module_gives_the_gradient_of_the_weights() -> None:
    frozen = frozen_bag(mode="mean")
    run = torch.compile(frozen, fullgraph=True, backend="aot_eager", dynamic=True)
    for seed in (1, 2):
        indices, offsets = batch(seed, bags=6)
        grads: list[Any] = []
        for one in (frozen, run):
            weights = torch.linspace(-1, 1, len(indices)).requires_grad_()
            out = one(indices, offsets, weights)
            assert torch.equal(out, frozen(indices, offsets, weights.detach()))
            out.square().sum().backward()
            grads.append(weights.grad)
        assert grads[0] is not None
        assert torch.equal(*grads)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_traced_module_is_right_for_other_batches() -> None:
    frozen = frozen_bag()
    for example, given in (
        ((torch.randint(50, (2, 3)),), (torch.randint(50, (4, 5)),)),
        (batch(1, bags=3), batch(2, bags=6)),
    ):
        traced = torch.jit.trace(frozen, example)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        assert torch.equal(torch.jit.load(file)(*given), frozen(*given))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripts_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"torch\.jit\.script does not take frozen modules"):
        torch.jit.script(nn.Sequential(frozen_bag()))
