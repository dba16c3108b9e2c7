"""FusedOptimizer(update="step"): gradients of all lookups since the last step are one update."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn
from torch_modules import bag, batch, open_batches, state

import mpembed as mpe
from mpembed import torch as mt
from mpembed.torch import _pending

pytestmark = pytest.mark.torch
ROWS, DIM = 60, 8
EXACT: dict[str, Any] = {"precision": "fp32", "cache": None}


class Sequences(nn.Module):
    """Self-attention over items; inputs, positives and negatives share one table."""

    def __init__(self, items: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.items = items
        self.attention = nn.MultiheadAttention(DIM, 2, batch_first=True)

    def forward(self, inputs: Any, positive: Any, negative: Any) -> torch.Tensor:
        rows = self.items(inputs)
        found, _ = self.attention(rows, rows, rows, need_weights=False)
        scores = [(found * self.items(one)).sum(-1) for one in (positive, negative)]
        return -torch.nn.functional.logsigmoid(scores[0] - scores[1]).mean()


def items(optimizer: Any, **options: Any) -> mt.Embedding:
    """A table with the rows of `dense`."""
    made = mt.Embedding(ROWS, DIM, optimizer=optimizer, padding_idx=0, **options)
    made.weight = dense().weight.detach()
    return made


def dense(*, sparse: bool = False) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(ROWS, DIM, padding_idx=0, sparse=sparse)


def sequences(seed: int, size: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(ROWS, (size, 5), generator=generator) for _ in range(3)]


def others(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if not name.startswith("items")]


def test_a_sequence_model_has_the_losses_of_sparse_adam() -> None:
    ours, theirs = Sequences(items(mpe.Adam(0.01))), Sequences(dense(sparse=True))
    fused: Any = mt.FusedOptimizer(ours)
    sparse: Any = torch.optim.SparseAdam(theirs.items.parameters(), 0.01)
    losses: list[list[float]] = [[], []]
    for k, (model, of_items) in enumerate(((ours, fused), (theirs, sparse))):
        rest = torch.optim.Adam(others(model), 0.01)
        for step in range(50):
            loss = model(*sequences(step % 3))
            loss.backward()
            for one in (of_items, rest):
                one.step()
                one.zero_grad()
            losses[k].append(loss.item())
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    assert losses[0][-1] < 0.9 * losses[0][0]


def dense_and_ours(lr: float = 0.2) -> Any:
    """Return pairs of (model, its optimizers): PyTorch's and ours."""
    ours, theirs = Sequences(items(mpe.SGD(lr))), Sequences(dense())
    of_ours = [mt.FusedOptimizer(ours), torch.optim.SGD(others(ours), lr)]
    return (ours, of_ours), (theirs, [torch.optim.SGD(theirs.parameters(), lr)])


def assert_equal(pairs: Any) -> None:
    (ours, _), (theirs, _) = pairs
    for one, other in zip(others(ours), others(theirs), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(ours.items.weight.detach(), theirs.items.weight.detach())


def test_accumulation_is_one_update_of_the_sum() -> None:
    pairs = dense_and_ours()
    for model, optimizers in pairs:
        for step in range(4):
            for part in range(20):  # more than one update of the collection takes
                (model(*sequences(20 * step + part)) / 20).backward()
            for one in optimizers:
                one.step()
                one.zero_grad()
    assert_equal(pairs)
    ours = pairs[0][0]
    assert open_batches(ours.items) == 0
    assert ours.items.tables.state_arrays()["updates"] == 4


def test_a_row_is_rounded_once_a_step() -> None:
    module, twin = bag(), bag()
    fused = mt.FusedOptimizer(module)
    for seed in range(3):
        module(*batch(seed)).sum().backward()
    assert state(module) == state(bag())  # a lookup changes nothing, not even the cache
    fused.step()
    indices = torch.cat([batch(seed)[0] for seed in range(3)])
    bags = torch.cat([batch(seed)[1] + 100 * seed for seed in range(3)])
    assert len(indices) == sum(len(batch(seed)[0]) for seed in range(3))
    starts = np.cumsum([0] + [len(batch(seed)[0]) for seed in range(3)])
    bags = torch.cat([batch(seed)[1] + int(starts[seed]) for seed in range(3)])
    twin(indices, bags).sum().backward()
    assert state(module) == state(twin)


@pytest.mark.parametrize("limit", [1e-3, 0.5, 1e3])
def test_clip_grad_norm_sees_tables_and_parameters_together(limit: float) -> None:
    pairs = dense_and_ours()
    norms = []
    for model, optimizers in pairs:
        for step in range(5):
            for part in range(2):
                model(*sequences(2 * step + part)).backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit)))
            for one in optimizers:
                one.step()
                one.zero_grad()
    assert norms[:5] == pytest.approx(norms[5:], rel=1e-5)
    assert_equal(pairs)


def test_gradients_that_come_after_a_clip_are_not_clipped() -> None:
    pairs = dense_and_ours()
    for model, optimizers in pairs:
        model(*sequences(1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        model(*sequences(2)).backward()
        for one in optimizers:
            one.step()
    assert_equal(pairs)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_the_norm_is_that_of_the_rows_whatever_pools_them(mode: str) -> None:
    module = bag(mode=mode, padding_idx=3, **EXACT)
    theirs = nn.EmbeddingBag(50, 6, mode=mode, padding_idx=3, _weight=module.weight.detach())
    weights = torch.rand(len(batch()[0]))
    given = (weights,) if mode == "sum" else ()
    attached = mt.FusedOptimizer(module)
    for one in (module, theirs):
        for seed in (0, 1):
            one(*batch(seed)).square().sum().backward()
        one(*batch(0), *given).sum().backward()
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1e9)
    torch.testing.assert_close(torch.nn.utils.clip_grad_norm_(module.parameters(), 1e9), expected)
    attached.step()


def test_the_norm_leaves_out_tables_that_are_frozen() -> None:
    tables = [
        mpe.TableConfig(name, 10, 4, precision="fp32", trainable=name == "a") for name in "ab"
    ]
    module = mt.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1))
    attached = mt.FusedOptimizer(module)
    module(torch.tensor([1, 2]), torch.tensor([0, 1, 2])).sum().backward()
    assert float(torch.nn.utils.clip_grad_norm_(module.parameters(), 1e9)) == 2.0
    attached.step()


@pytest.mark.parametrize("unscaling", [True, False])
def test_a_scaler_unscales_and_skips_steps(unscaling: bool) -> None:
    pairs, lr = dense_and_ours(), []
    for model, optimizers in pairs:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=9)
        for step, broken in enumerate((False, True, False, False, False, False)):
            loss = model(*sequences(step)) * (torch.inf if broken else 1.0)
            scaler.scale(loss).backward()
            if unscaling:
                for one in optimizers:
                    scaler.unscale_(one)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            for one in optimizers:
                scaler.step(one)
            scaler.update()
            for one in optimizers:
                one.zero_grad()
        lr.append(scaler.get_scale())
    assert lr[0] == lr[1] != 1024.0
    assert_equal(pairs)


@pytest.mark.parametrize("explicit", [True, False])
def test_a_scale_is_taken_out_once_though_two_optimizers_have_the_parameter(explicit: bool) -> None:
    models: list[Any] = [nn.ModuleList([bag(**EXACT), nn.Linear(6, 1)]) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for model, scaled in zip(models, (True, False), strict=True):
        fused: Any = mt.FusedOptimizer(model)
        of_all = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(4):
            loss = model[1](model[0](*batch())).square().sum()
            if scaled:
                scaler.scale(loss * (torch.inf if step == 1 else 1.0)).backward()
                for one in (of_all, fused):
                    if explicit:
                        scaler.unscale_(one)
                    scaler.step(one)
                scaler.update()
            elif step != 1:
                loss.backward()
                of_all.step()
                fused.step()
            fused.zero_grad()
            of_all.zero_grad()
    assert scaler.get_scale() == 4.0
    torch.testing.assert_close(models[0][0].weight.detach(), models[1][0].weight.detach())
    module = bag()
    fused, of_all = mt.FusedOptimizer(module), torch.optim.SGD(module.parameters(), 0.1)
    scaler.scale(module(*batch()).sum()).backward()
    scaler.unscale_(fused)
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    other.scale(torch.ones(1))
    with pytest.raises(RuntimeError, match="two scalers with different scales"):
        other.unscale_(of_all)


def test_a_scale_that_was_not_taken_out_is_an_error() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    module = bag()
    fused = mt.FusedOptimizer(module, grad_scaler=scaler)
    before = state(module)
    scaler.scale(module(*batch()).sum()).backward()
    with pytest.raises(RuntimeError, match=r"call scaler\.step\(optimizer\)"):
        fused.step()
    assert state(module) == before
    scaler.step(fused)
    assert state(module) != before


def test_scaling_after_the_update_is_not_silent() -> None:
    module = bag(**EXACT)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    fused = mt.FusedOptimizer(module, update="backward")
    scaler.scale(module(*batch()).sum()).backward()
    with pytest.raises(RuntimeError, match="after the backward had updated"):
        scaler.step(fused)
    alone = bag(**EXACT)
    alone(*batch()).sum().backward()
    torch.nn.utils.clip_grad_norm_(alone.parameters(), 1e-30)
    with pytest.warns(UserWarning, match=r"make a FusedOptimizer\(model\)"):
        alone(*batch())
    alone(*batch())  # once


@pytest.mark.parametrize("deferred", [True, False, None])
def test_a_penalty_on_all_parameters_moves_no_table(deferred: bool | None) -> None:
    model, twin = (nn.Sequential(bag(**EXACT), nn.Linear(6, 1)) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    losses: list[list[float]] = [[], []]
    for k, (one, parameters) in enumerate(
        ((model, list(model.parameters())), (twin, list(twin[1].parameters())))
    ):
        dense_one: Any = torch.optim.AdamW(parameters, 0.1, weight_decay=0.1)
        optimizers = [dense_one]
        if deferred is not None:
            optimizers.append(mt.FusedOptimizer(one, update="step" if deferred else "backward"))
        for step in range(10):
            penalty = sum(p.square().sum() for p in parameters)
            out = one[1](one[0](*batch(step)))
            loss = out.square().mean() + 0.1 * penalty
            loss.backward()
            losses[k].append(loss.item())
            for optimizer in optimizers:
                optimizer.step()
            for optimizer in optimizers:
                optimizer.zero_grad()
    assert losses[0] == losses[1]
    assert state(model[0]) == state(twin[0])


@pytest.mark.parametrize("kernels", ["foreach", "fused"])
@pytest.mark.parametrize("late", [True, False])
def test_a_penalty_over_all_parameters_is_no_scaling(late: bool, kernels: str) -> None:
    module = bag(**EXACT)
    model = nn.ModuleList([module, nn.Linear(6, 1)])
    fused: Any = mt.FusedOptimizer(model, update="backward")
    kinds: Any = {kernels: True}
    of_all = torch.optim.Adam(model.parameters(), 1e-3, **kinds)  # moves the tables' parameter too
    for _ in range(4):
        if late:
            loss = model[1](module(*batch())).sum()
        penalty = sum(one.square().sum() for one in model.parameters())
        if not late:
            loss = model[1](module(*batch())).sum()
        (loss + 1e-5 * penalty).backward()
        of_all.step()
        fused.step()
        of_all.zero_grad()
        fused.zero_grad()
    module(*batch())
    assert not module.anchor.any()


@pytest.mark.parametrize("order", [1.0, torch.inf])
@pytest.mark.parametrize("foreach", [True, False])
def test_another_norm_than_l2_is_an_error(order: float, foreach: bool) -> None:
    module = bag(**EXACT)
    fused = mt.FusedOptimizer(module)
    module(*batch()).sum().backward()
    before, clip = module.weight.detach().clone(), torch.nn.utils.clip_grad_norm_
    with pytest.raises(RuntimeError, match="use norm_type=2"):
        clip(module.parameters(), 1.0, norm_type=order, foreach=foreach)
    norm = clip(module.parameters(), 1e9, foreach=foreach)
    assert type(norm) is torch.Tensor
    assert module.anchor.grad is not None
    for one in (module.anchor.grad.norm(), torch.linalg.vector_norm(module.anchor.grad)):
        torch.testing.assert_close(one, norm)
    fused.step()
    assert not torch.equal(module.weight, before)


def test_clipping_by_value_is_an_error_that_names_the_option() -> None:
    module = bag()
    fused = mt.FusedOptimizer(module)
    module(*batch()).sum().backward()
    torch.nn.utils.clip_grad_value_(module.parameters(), 1e-3)
    before = state(module)
    for _ in range(2):  # and not the gradients as they were at the second call
        with pytest.raises(RuntimeError, match="clip_grad_value= of the module"):
            fused.step()
    with pytest.raises(RuntimeError, match="clip_grad_value= of the module"):
        module(*batch()).sum().backward()
    fused.zero_grad()
    assert state(module) == before
    module(*batch()).sum().backward()
    fused.step()


@pytest.mark.parametrize("factor", [1.0, torch.inf, torch.nan])
def test_gradients_that_are_set_to_zero_are_gone(factor: float) -> None:
    module, alone = bag(), bag()
    fused, of_one = mt.FusedOptimizer(module), mt.FusedOptimizer(alone)
    (factor * module(*batch(1)).sum()).backward()
    module.zero_grad(set_to_none=False)
    for one in (module, alone):
        one(*batch()).sum().backward()
    fused.step()
    of_one.step()
    assert state(module) == state(alone)


def test_zero_grad_drops_what_waits_and_losing_it_is_not_silent() -> None:
    module = bag()
    fused = mt.FusedOptimizer(module)
    dense_one = torch.optim.SGD(module.parameters(), 0.1)
    before = state(module)
    module(*batch()).sum().backward()
    fused.zero_grad()
    with pytest.warns(UserWarning, match="found no gradients"):
        fused.step()
    module(*batch()).sum().backward()
    dense_one.zero_grad()  # has the module's parameter too
    with pytest.warns(UserWarning, match="found no gradients"):
        fused.step()
    assert state(module) == before
    module(*batch()).sum().backward()
    module.anchor.grad = None
    assert not module.anchor.grad
    module(*batch()).sum().backward()
    with pytest.raises(RuntimeError, match="not replaced"):
        module.anchor.grad = torch.zeros(2)


def test_a_second_one_takes_over_and_the_first_says_so() -> None:
    module = bag()
    first = mt.FusedOptimizer(module)
    with pytest.warns(UserWarning, match="have a FusedOptimizer already"):
        second = mt.FusedOptimizer(module)
    module(*batch()).sum().backward()
    with pytest.raises(RuntimeError, match="a newer FusedOptimizer has taken"):
        first.step()
    before = state(module)
    second.step()
    assert state(module) != before


def test_an_update_that_fails_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    module, twin = bag(), bag()
    fused = [mt.FusedOptimizer(one) for one in (module, twin)]
    for given in (module, twin):
        given(*batch()).sum().backward()

    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(type(module.tables), "forward", no_memory)
        with pytest.raises(MemoryError):
            fused[0].step()
    for one in fused:
        one.step()
    assert state(module) == state(twin)


def test_an_update_that_is_not_finite_is_raised_at_the_step_and_forgotten() -> None:
    module = bag()
    fused = mt.FusedOptimizer(module)
    (module(*batch()) * torch.nan).sum().backward()
    with pytest.raises(mpe.NonFiniteUpdateError):
        fused.step()
    fused.zero_grad()
    module(*batch()).sum().backward()
    fused.step()


def test_the_optimizer_may_be_gone_before_the_backward() -> None:
    module = bag()
    fused = mt.FusedOptimizer(module)
    out = module(*batch())
    del fused
    before = state(module)
    out.sum().backward()
    assert state(module) != before


def test_what_waits_is_gone_with_the_optimizer() -> None:
    module = bag(**EXACT)
    fused = mt.FusedOptimizer(module)
    module(*batch()).sum().backward()
    assert module.anchor.grad is not None
    assert module.anchor.grad.norm() > 1
    del fused
    assert not module.calls.pending
    assert module.anchor.grad.norm() < 1e-9


def test_gradients_of_other_inputs_alone_leave_the_tables_alone() -> None:
    module, alone = bag(**EXACT), bag(**EXACT)
    fused, of_one = mt.FusedOptimizer(module), mt.FusedOptimizer(alone)
    weights = torch.ones(len(batch()[0]), requires_grad=True)
    other = torch.ones(6, requires_grad=True)
    loss = (module(*batch(), weights) * other).square().sum()
    (found,) = torch.autograd.grad(loss, [weights], retain_graph=True)
    loss.backward(inputs=[weights, other], retain_graph=True)
    assert weights.grad is not None
    assert torch.equal(weights.grad, found)
    assert not module.calls.pending
    for one in (loss, module.weight.sum()):
        with pytest.raises(RuntimeError, match=r"leave module\.anchor out"):
            torch.autograd.grad(one, [other, module.anchor], retain_graph=True, allow_unused=True)
    assert not module.calls.pending
    loss.backward()
    alone(*batch(), weights.detach()).square().sum().backward()
    fused.step()
    of_one.step()
    assert state(module) == state(alone)


def test_weights_have_their_gradient_before_the_step() -> None:
    module, twin = bag(**EXACT), bag(**EXACT)
    fused = mt.FusedOptimizer(module)
    given = [torch.rand(len(batch()[0]), requires_grad=True) for _ in range(2)]
    with torch.no_grad():
        given[1].copy_(given[0])
    for one, weights in zip((module, twin), given, strict=True):
        one(*batch(), weights).square().sum().backward()
    torch.testing.assert_close(given[0].grad, given[1].grad)
    fused.step()
    torch.testing.assert_close(module.weight, twin.weight)


def test_compiled_code_defers_as_well() -> None:
    module, twin = bag(), bag()
    both = [mt.FusedOptimizer(one) for one in (module, twin)]
    run = torch.compile(
        lambda *given: module(*given).square().sum(), fullgraph=True, backend="aot_eager"
    )
    for seed in range(3):
        run(*batch(seed)).backward()
        twin(*batch(seed)).square().sum().backward()
    for fused in both:
        fused.step()
    assert state(module) == state(twin)
    torch._dynamo.reset()


def test_a_shallow_copy_in_the_model_is_updated_once() -> None:
    module, alone = bag(**EXACT), bag(**EXACT)
    model = nn.ModuleList([module, copy.copy(module)])
    fused: Any = mt.FusedOptimizer(model)
    assert [len(group["params"]) for group in fused.param_groups] == [1]
    assert fused.param_groups[0]["tables"] == ["table"]
    of_one: Any = mt.FusedOptimizer(alone)
    for one in (*model, alone, alone):
        one(*batch()).square().sum().backward()
    fused.step()
    of_one.step()
    assert state(module) == state(alone)


def test_losing_what_was_scaled_too_late_is_not_silent() -> None:
    module = bag(**EXACT)
    of_all = torch.optim.SGD(module.parameters(), 0.1)
    module(*batch()).sum().backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1e-30)
    of_all.zero_grad()  # before the next forward, as in most loops
    with pytest.warns(UserWarning, match=r"make a FusedOptimizer\(model\)"):
        module(*batch())
    module(*batch())  # once


@pytest.mark.parametrize("clearing", [True, False])
def test_a_forgotten_step_is_not_silent(clearing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pending, "_MANY_WAITING", 5)
    monkeypatch.setattr(_pending, "_MANY_LOST", 5)
    module = bag()
    fused = mt.FusedOptimizer(module)
    of_all = torch.optim.SGD(module.parameters(), 0.1)

    def backward() -> None:
        module(*batch()).sum().backward()
        if clearing:
            of_all.zero_grad()

    for _ in range(4):
        backward()
    with pytest.warns(UserWarning, match=r"step\(\) of the FusedOptimizer"):
        backward()
    backward()
    fused.zero_grad()


def test_a_scaler_that_is_none_is_refused() -> None:
    wrong: Any = mpe.Adam(1e-3)
    with pytest.raises(TypeError, match=r"grad_scaler must be a torch\.amp\.GradScaler"):
        mt.FusedOptimizer(bag(), wrong)
