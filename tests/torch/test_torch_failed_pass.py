"""Backward passes in which something fails: what is updated, and what may be repeated."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch_modules import bag, batch, looked_up, loss_of, one_update, open_batches, state, updates

import mpembed as mpe
from mpembed import torch as mt
from mpembed.torch import _backward_pass

pytestmark = pytest.mark.torch


class Broken(torch.autograd.Function):
    """The identity; its backward raises as often as it is told to."""

    times = 1

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if Broken.times > 0:
            Broken.times -= 1
            raise KeyError("broken")
        return grads[0]


def three_of_which_the_last_to_come_back_is_broken(module: Any) -> torch.Tensor:
    Broken.times = 1
    first: torch.Tensor = Broken.apply(module(*batch(0)))  # type: ignore[no-untyped-call]
    return loss_of([first, *looked_up(module, (1, 2))])  # autograd takes the latest call first


def test_a_pass_that_raises_updates_nothing() -> None:
    module, twin = bag(), bag()
    loss = three_of_which_the_last_to_come_back_is_broken(module)
    before = state(module)
    with pytest.raises(KeyError, match="broken"):
        loss.backward()
    assert state(module) == before
    assert not _backward_pass._passes
    del loss
    assert open_batches(module) == 0
    looked_up(twin, range(3))
    for one in (module, twin):
        loss_of(looked_up(one, range(2))).backward()
    assert state(module) == state(twin)


def test_a_pass_that_raised_may_be_repeated() -> None:
    module, twin = bag(), bag()
    loss = three_of_which_the_last_to_come_back_is_broken(module)
    with pytest.raises(KeyError, match="broken"):
        loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    one_update(twin, range(3))
    assert state(module) == state(twin)
    with pytest.raises(RuntimeError, match="used already"):
        loss.backward()
    assert state(module) == state(twin)


def test_a_gradient_of_weights_comes_again_in_a_repeated_pass() -> None:
    module = bag()
    weights = torch.ones(1, 2, requires_grad=True)
    first = Broken.apply(module(*batch(0)))  # type: ignore[no-untyped-call]
    second = module(torch.tensor([[1, 2]]), None, weights)
    loss = loss_of([first, second])
    Broken.times = 1
    with pytest.raises(KeyError, match="broken"):
        loss.backward(retain_graph=True)
    first_try = weights.grad
    assert first_try is not None
    first_try = first_try.clone()
    loss.backward()
    assert weights.grad is not None
    assert torch.equal(weights.grad, 2 * first_try)


def test_hundreds_of_passes_that_raise_pin_nothing() -> None:
    module = bag()
    for _ in range(100):  # 127 lookups may be open
        with pytest.raises(KeyError):
            three_of_which_the_last_to_come_back_is_broken(module).backward()
    assert open_batches(module) == 0


def test_an_update_that_is_not_finite_is_raised_when_all_are_made() -> None:
    bad, good, twin = bag(), bag(), bag()
    outs = looked_up(bad, range(2))
    loss = loss_of(looked_up(good, range(2))) + outs[0].square().sum()
    with pytest.raises(mpe.NonFiniteUpdateError):
        (loss + (outs[1] * torch.nan).sum()).backward()
    one_update(twin, range(2))
    assert state(good) == state(twin)
    assert updates(bad) == 1
    assert bad.tables.stats()["table"]["nonfinite"] > 0


@pytest.mark.parametrize("at", range(3))
def test_a_scaled_gradient_that_is_not_finite_leaves_out_the_whole_pass(at: int) -> None:
    options: Any = {"optimizer": mpe.SGD(0.1), "cache": None}  # whose slots would count pins
    modules: Any = torch.nn.ModuleList([bag(**options) for _ in range(2)])
    alone, twins = bag(), [bag(**options) for _ in range(2)]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    fused = mt.FusedOptimizer(modules, grad_scaler=scaler, update="backward")
    for broken_one in (True, False):
        fused.zero_grad()
        outs = [*looked_up(modules[0], range(3)), *looked_up(modules[1], [3])]
        before = [state(module) for module in modules]
        apart = updates(alone)
        factors = [torch.inf if broken_one and k == at else 1.0 for k in range(4)]
        loss = loss_of([out * factor for out, factor in zip(outs, factors, strict=True)])
        weights = torch.ones(1, 2, requires_grad=True)
        (scaler.scale(loss) + alone(torch.tensor([[1, 2]]), None, weights).sum()).backward()
        scaler.step(fused)
        scaler.update()
        assert scaler.get_scale() == 2.0
        assert updates(alone) == apart + 1  # it has another optimizer
        if broken_one:
            assert [state(module) for module in modules] == before
            assert [open_batches(module) for module in modules] == [0, 0]
    for twin, seeds in zip(twins, (range(3), [3]), strict=True):
        looked_up(twin, seeds)
        one_update(twin, seeds)
    for module, twin in zip(modules, twins, strict=True):
        assert state(module) == state(twin)


def test_the_rate_is_that_of_the_group_and_a_wrong_one_changes_nothing() -> None:
    module, twin = bag(), bag()
    fused = mt.FusedOptimizer(module, update="backward")
    fused.param_groups[0]["lr"] = twin.optimizer.lr = 0.3
    loss_of(looked_up(module, range(2))).backward()
    one_update(twin, range(2))
    assert state(module) == state(twin)
    fused.param_groups[0]["lr"] = -1.0
    outs = looked_up(module, range(2))
    before = state(module)
    with pytest.raises(ValueError, match="lr must be"):
        loss_of(outs).backward()
    assert state(module) == before
