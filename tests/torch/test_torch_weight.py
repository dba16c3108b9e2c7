"""``weight`` of a module: all rows as a tensor, its gradient, and writes to it."""

from __future__ import annotations

import copy
import pickle
import weakref
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn
from torch_modules import bag, batch, state

import mpembed as mpe
from mpembed import torch as mt

pytestmark = pytest.mark.torch


def table(**options: Any) -> mt.Embedding:
    options = {"optimizer": mpe.SGD(0.1), "precision": "fp32", "seed": 0, **options}
    return mt.Embedding(20, 4, **options)


def rows_of(module: Any) -> torch.Tensor:
    return torch.from_numpy(module.tables.rows("table", np.arange(module.num_embeddings)))


@pytest.mark.parametrize("precision", mpe.registry.FORMATS)
@pytest.mark.parametrize("cached", [True, False])
def test_it_is_the_rows_as_they_are_now(precision: str, cached: bool) -> None:
    cache = mpe.CacheConfig(num_sets=1, ways=8) if cached else None
    module = bag(precision=precision, cache=cache)
    for seed in range(3):
        assert torch.equal(module.weight, rows_of(module))
        module(*batch(seed)).sum().backward()
    assert module.weight.shape == (50, 6)
    assert (module.weight.dtype, module.weight.device.type) == (torch.float32, "cpu")
    before = state(module)
    assert module.weight.detach().data_ptr() == module.weight.detach().data_ptr()
    assert state(module) == before
    module.half()
    assert module.weight.dtype == torch.float16


def test_its_gradient_is_an_update_of_the_rows_it_reached() -> None:
    module, theirs = table(optimizer=mpe.Adagrad(0.1)), nn.Embedding(20, 4)
    module.weight = theirs.weight
    optimizer = torch.optim.Adagrad(theirs.parameters(), 0.1)
    user = torch.randn(3, 4)
    for _ in range(3):
        for one in (module, theirs):
            scores = user @ one.weight[2:9].T
            loss = (
                scores.logsumexp(1).sum() + one.weight[15].norm() + one(torch.tensor([3, 4])).sum()
            )
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(rows_of(module), theirs.weight.detach())
    assert module.tables.state_arrays()["updates"] == 3  # with the lookup in the same backward
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        torch.autograd.grad(module.weight.square().sum(), module.anchor, create_graph=True)


def test_rows_whose_gradient_is_zero_keep_their_moments_and_do_not_decay() -> None:
    module = table(optimizer=mpe.Adam(0.1, weight_decay=0.1, weight_decay_mode="decoupled"))
    before = rows_of(module)
    (module.weight * torch.eye(20)[5].unsqueeze(1)).sum().backward()
    changed = (rows_of(module) != before).any(1)
    assert changed.nonzero().tolist() == [[5]]


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_the_weight_of_a_bag_trains_alike(mode: str) -> None:
    module = bag(mode=mode, precision="fp32", cache=None, optimizer=mpe.SGD(0.5))
    before = rows_of(module)
    (module.weight[3:6] * 2).sum().backward()
    expected = before.clone()
    expected[3:6] -= 1
    torch.testing.assert_close(rows_of(module), expected)


def test_a_sparse_gradient_reaches_its_rows() -> None:
    module, twin = (table(seed=1) for _ in range(2))
    indices = torch.tensor([[3, 7], [7, 19]])
    for one, sparse in ((module, True), (twin, False)):
        rows = torch.nn.functional.embedding(indices, one.weight, sparse=sparse)
        (rows * torch.arange(4)).sum().backward()
    assert state(module) == state(twin)
    assert state(module) != state(table(seed=1))


def test_it_waits_for_the_step_where_lookups_do() -> None:
    module = table()
    fused = mt.FusedOptimizer(module)
    before = rows_of(module)
    (module.weight.sum() + module(torch.tensor([1])).sum()).backward()
    assert torch.equal(rows_of(module), before)
    fused.step()
    expected = before - 0.1
    expected[1] -= 0.1
    torch.testing.assert_close(rows_of(module), expected)


def test_nothing_is_trained_through_it_where_nothing_is() -> None:
    module = table()
    assert [module.train(mode).weight.requires_grad for mode in (True, False)] == [True, False]
    module.train()
    with torch.no_grad():
        assert not module.weight.requires_grad
    assert module.weight.grad is None
    for flag in (False, True):
        module.weight.requires_grad = flag  # freezes the table
        assert [p.requires_grad for p in module.parameters()] == [flag]
    module.weight.requires_grad_(False)
    assert not module.weight.requires_grad


def fill_by_parts(weight: Any) -> None:
    for k in range(len(weight)):
        weight.data[k].fill_(k)
    weight.data[:, 1] = 7
    weight.data.t()[2].zero_()
    weight.data.view(-1)[:3].add_(1)


WRITES: dict[str, Any] = {
    "copy": lambda w, x: w.data.copy_(x),
    "under no_grad": lambda w, x: torch.no_grad()(w.copy_)(x),
    "operator": lambda w, x: w.data.__imul__(3),
    "slice": lambda w, x: w.data.__setitem__(slice(2, 5), x[2:5]),
    "mask": lambda w, x: w.data.__setitem__(x > 0, 0.5),
    "row": lambda w, x: w.data[3].zero_(),
    "parts": lambda w, x: fill_by_parts(w),
    "out": lambda w, x: torch.mul(x, 2, out=w.data),
    "init": lambda w, x: nn.init.constant_(w, 0.25),
    "init of data": lambda w, x: nn.init.zeros_(w.data),
    "data": lambda w, x: setattr(w, "data", x),
    "foreach": lambda w, x: torch._foreach_mul_([w.data], 2.0),
}


@pytest.mark.parametrize("way", WRITES)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_writing_to_it_sets_the_rows(way: str, precision: str) -> None:
    module, theirs = table(precision=precision), nn.Embedding(20, 4)
    theirs.weight.data.copy_(module.weight)
    values = torch.randn(20, 4)
    updates = module.tables.state_arrays()["updates"]
    for one in (module, theirs):
        WRITES[way](one.weight, values)
    tolerance = 0.0 if precision == "fp32" else 0.1
    torch.testing.assert_close(rows_of(module), theirs.weight.detach(), atol=tolerance, rtol=0)
    assert torch.equal(module.weight, rows_of(module))
    assert module.tables.state_arrays()["updates"] == updates


def test_rows_that_were_not_written_keep_their_bytes() -> None:
    module = bag(precision="int4", cache=None)
    before = module.tables.export("table")
    module.weight.data[7] = 0.125
    changed = (module.tables.export("table") != before).any(1)
    assert np.flatnonzero(changed).tolist() == [7]


def test_initialisation_by_apply_reaches_it() -> None:
    def initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            nn.init.constant_(module.weight.data, 0.5)
            if module.padding_idx is not None:
                module.weight.data[module.padding_idx].zero_()

    model: Any = nn.ModuleList([table(padding_idx=2), bag(precision="fp32")])
    model.apply(initialise)
    expected = torch.full((20, 4), 0.5)
    expected[2] = 0
    assert torch.equal(rows_of(model[0]), expected)
    assert (rows_of(model[1]) == 0.5).all()
    model[0].reset_parameters()  # PyTorch's own, which draws rows and clears the padding
    assert (rows_of(model[0])[2] == 0).all()
    assert not torch.equal(rows_of(model[0]), expected)


def test_assigning_a_tensor_sets_every_row_or_none() -> None:
    module = table(precision="fp16")
    module.weight = nn.Parameter(torch.ones(20, 4))
    assert (rows_of(module) == 1).all()
    wrong: list[tuple[Any, type[Exception]]] = [
        (torch.ones(20, 5), ValueError),
        (torch.ones(20, 4, dtype=torch.int64), ValueError),
        (None, ValueError),
        (torch.full((20, 4), 1e30), ValueError),
    ]
    for values, error in wrong:
        with pytest.raises(error):
            module.weight = values
        assert (rows_of(module) == 1).all()


def test_values_that_cannot_be_stored_are_refused_before_anything_changes() -> None:
    module = table(precision="int4")
    before = module.tables.export("table")
    for value in (torch.nan, torch.inf, 1e30):
        with pytest.raises(ValueError, match="values"):
            module.weight.data[3].fill_(value)
    np.testing.assert_array_equal(module.tables.export("table"), before)
    assert torch.equal(module.weight, rows_of(module))


def test_writes_that_pytorch_refuses_or_that_would_be_lost_are_errors() -> None:
    module = table()
    with pytest.raises(RuntimeError, match=r"do it under torch\.no_grad\(\)"):
        module.weight[0] = 1.0
    module.weight.detach().zero_()
    with pytest.raises(RuntimeError, match="through weight.detach"):
        module(torch.tensor([1]))
    module(torch.tensor([1]))
    module.weight.detach().zero_()
    with pytest.raises(RuntimeError, match="through weight.detach"):
        _ = module.weight
    with pytest.raises(TypeError, match="cannot assign"):
        nn.Linear(4, 20).weight = module.weight  # a copy that would never change


def test_writes_that_cannot_be_seen_are_errors() -> None:
    module, other = table(), table()
    array = module.weight.data[2:].numpy()
    with pytest.raises(ValueError, match="read-only"):
        array[1] = 5.0
    assert module.weight.tolist() == rows_of(module).tolist()
    with pytest.raises(RuntimeError, match=r"written to by .*dropout"):
        torch.nn.functional.dropout(module.weight.data, 1.0, inplace=True)
    with pytest.raises(RuntimeError, match="weights of several tables"):
        torch._foreach_zero_([module.weight.data, other.weight.data])
    for one in (module, other):
        assert torch.equal(one.weight, rows_of(one))
        assert one.weight.abs().sum() > 0


def test_a_write_to_rows_that_have_changed_since_is_an_error() -> None:
    module = table()
    weight = module.weight.data
    module(torch.tensor([1])).sum().backward()
    before = state(module)
    with pytest.raises(RuntimeError, match=r"read module\.weight anew"):
        weight.mul_(0.5)
    assert state(module) == before
    for row in (5, 6):  # which have not changed
        weight[row].zero_()
        assert not rows_of(module)[row].any()
    with pytest.raises(RuntimeError, match=r"read module\.weight anew"):
        weight.mul_(0.5)


def test_its_memory_is_free_after_an_update() -> None:
    module = table()
    rows = weakref.ref(module._weight_source.read(torch.float32).values)
    module(torch.tensor([1])).sum().backward()
    module(torch.tensor([1]))
    assert rows() is None


def test_an_assigned_parameter_trains_or_not() -> None:
    module = table()
    for trains in (False, True):
        module.weight = nn.Parameter(torch.ones(20, 4), requires_grad=trains)
        assert module.anchor.requires_grad == trains
        assert module(torch.tensor([1])).requires_grad == trains
    module.requires_grad_(False)
    module.weight = torch.zeros(20, 4)
    assert not module.anchor.requires_grad


def test_a_state_that_is_loaded_shows_in_it_though_the_step_is_the_same() -> None:
    module, other = table(seed=1), table(seed=2)
    before = module.weight.detach().clone()
    module.load_state_dict(other.state_dict())
    assert not torch.equal(module.weight, before)
    assert torch.equal(module.weight, rows_of(module))


def test_a_write_to_the_tensors_of_a_state_shows_in_it() -> None:
    module, other = table(seed=1), table(seed=2)
    for _ in range(2):
        assert module.weight.any()  # and keeps the rows
        given, rows = module.state_dict(), other.state_dict()
        for name, tensor in given.items():
            tensor.copy_(rows[name])
        assert torch.equal(module.weight, other.weight)
        module.weight.data.add_(1)
        with pytest.warns(UserWarning, match="written in place"):
            module.state_dict()
        assert torch.equal(module.weight, rows_of(module))


def test_copies_of_it_are_ordinary_tensors() -> None:
    module = table()
    others = [
        copy.deepcopy(module.weight),
        pickle.loads(pickle.dumps(module.weight)),
        module.weight.clone(),
        module.weight.detach(),
        module.weight @ torch.eye(4),
    ]
    for one in others:
        assert type(one) is torch.Tensor
        assert torch.equal(one.detach(), rows_of(module))
    assert type(nn.Parameter(module.weight.detach())) is nn.Parameter
    assert torch.equal(nn.Embedding.from_pretrained(module.weight.detach()).weight, rows_of(module))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # TorchDynamo's own access
def test_compiled_code_leaves_its_graph_for_it() -> None:
    module, twin = table(), table()

    def scores(one: Any, user: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = user @ one.weight.T + one(torch.arange(20)).sum(1)
        return found

    run = torch.compile(scores, backend="aot_eager")
    user = torch.randn(3, 4)
    for _ in range(2):
        expected = scores(twin, user)
        expected.sum().backward()
        found = run(module, user)
        found.sum().backward()
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(rows_of(module), rows_of(twin))
    torch._dynamo.reset()
