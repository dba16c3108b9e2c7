"""Ctrl-C in the training loop of a model: each module's batch trains once, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from interrupts import Interrupt
from torch_modules import CACHE, batch, collection, features, state, updates

import mpembed as mpe
from mpembed import torch as mt
from mpembed.collection import collection_state

pytestmark = pytest.mark.torch

State = dict[str, bytes]


class Model(torch.nn.Module):
    """Two modules with a collection each, in INT8 with a cache."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"mode": "sum", "precision": "int8", "cache": CACHE}
        self.first = mt.EmbeddingBag(50, 6, optimizer=mpe.RowwiseAdagrad(0.1), seed=0, **options)
        self.second = mt.EmbeddingBag(50, 6, optimizer=mpe.Adam(0.1), seed=1, **options)

    def forward(self, seed: int) -> torch.Tensor:
        return torch.stack([self.first(*batch(seed)), self.second(*batch(seed))])

    def waits(self) -> list[bool]:
        """Return of each module whether gradients wait."""
        return [bool(one.calls.pending) for one in self.both()]

    def both(self) -> list[Any]:
        return [self.first, self.second]


class Run:
    """A model whose gradients of a batch wait for `step`, after a batch before it."""

    def __init__(self, scaler: bool) -> None:
        self.model = Model()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=scaler)
        self.optimizer = mt.FusedOptimizer(self.model, self.scaler)
        self.backward(0)
        self.step()
        self.scaler.update()
        self.backward(1)
        self.optimizer.param_groups[0]["lr"] = 0.05  # which step() applies

    def backward(self, seed: int) -> None:
        self.scaler.scale(self.model(seed).square().sum()).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1e3)

    def step(self) -> None:
        self.scaler.step(self.optimizer)

    def states(self) -> list[State]:
        return [state(one) for one in self.model.both()]

    def updates(self) -> list[int]:
        return [updates(one) for one in self.model.both()]


def looked_up_twice(scaler: bool) -> list[State]:
    """Return the states after a step whose lookup of the tables was interrupted and repeated."""
    run = Run(scaler)
    indices, offsets = batch(1)
    ended = torch.cat([offsets, torch.tensor([len(indices)])])
    for one in run.model.both():
        one.tables.forward(indices, ended, ticket=True)[1].drop()
    run.step()
    return run.states()


def check_steps(scaler: bool, *, opcodes: bool = False, stride: int = 1) -> int:
    """Interrupt `step` at every `stride`-th point; return how many left one module updated."""
    whole = Run(scaler)
    before = whole.updates()
    whole.step()
    after, once = whole.states(), whole.updates()
    again = looked_up_twice(scaler)
    n, between = 1, 0
    while True:
        run, interrupt = Run(scaler), Interrupt(n, opcodes=opcodes)
        interrupt.run(run.step)
        if not interrupt.happened:
            return between
        found = run.updates()
        for module, (waits, count) in enumerate(zip(run.model.waits(), found, strict=True)):
            assert count == (before if waits else once)[module], f"module {module}, point {n}"
        between += found not in (before, once)
        finish(run)
        assert run.updates() == once, f"point {n}"
        for one, same, twice in zip(run.states(), after, again, strict=True):
            assert one in (same, twice), f"other bytes after point {n}"
        engines = [collection_state(one.tables).engine for one in run.model.both()]
        assert [engine.num_open for engine in engines] == [0, 0], f"pinned rows after point {n}"
        n += stride


def finish(run: Run) -> None:
    """Try the step again, as one does who does not know how far it came."""
    if not run.scaler.is_enabled():
        run.step()
        return
    try:
        run.step()
    except RuntimeError as error:  # the scaler's own, where its step had been left
        assert "already been called" in str(error)


@pytest.mark.parametrize("scaler", [False, True])
def test_a_step_that_is_tried_again_updates_each_module_once(scaler: bool) -> None:
    assert check_steps(scaler, stride=47) > 0


@pytest.mark.exhaustive
def test_a_step_at_every_second_line() -> None:
    assert check_steps(scaler=True, stride=2) > 0


@pytest.mark.exhaustive
def test_a_step_at_bytecodes() -> None:
    assert check_steps(scaler=False, opcodes=True, stride=31) > 0


# ---- backward ---------------------------------------------------------------------------------


def train_in_backward(model: Model, *seeds: int) -> None:
    for seed in seeds:
        model(seed).square().sum().backward()


def test_after_a_backward_nothing_of_it_waits_for_the_next() -> None:
    whole, dropped = Model(), Model()
    train_in_backward(whole, 0, 1, 2)
    train_in_backward(dropped, 0)
    dropped(1)
    train_in_backward(dropped, 2)
    n, outcomes = 1, set()
    while True:
        model, interrupt = Model(), Interrupt(n)
        train_in_backward(model, 0)
        loss = model(1).square().sum()
        interrupt.run(loss.backward)
        if not interrupt.happened:
            break
        outcome = tuple(updates(one) for one in model.both())
        outcomes.add(outcome)
        del loss
        torch.zeros(1, requires_grad=True).backward()  # PyTorch keeps what it had not reached
        train_in_backward(model, 2)
        for one, count, twins in zip(
            model.both(), outcome, zip(whole.both(), dropped.both(), strict=True), strict=True
        ):
            assert state(one) == state(twins[0 if count == 2 else 1]), f"point {n}"
        n += 9
    assert {(1, 1), (2, 2)} < outcomes  # and between them one module alone


def test_a_backward_of_one_collection_has_happened_or_not() -> None:
    def lookup() -> tuple[Any, torch.Tensor]:
        made = collection()
        outputs = made(features("a", "b", "c")).values()
        return made, outputs.square().sum()

    whole, loss = lookup()
    before = updates(whole)
    loss.backward()
    after, n, outcomes = state(whole), 1, set()
    while True:
        (made, loss), interrupt = lookup(), Interrupt(n)
        interrupt.run(loss.backward)
        outcomes.add(updates(made) > before)
        assert state(made) == after or updates(made) == before, f"point {n}"
        if not interrupt.happened:
            break
        n += 9
    assert outcomes == {False, True}


def test_a_backward_is_repeated_after_zero_grad() -> None:
    whole = Run(scaler=False)
    whole.step()
    n, some = 5, 0
    while True:
        run, interrupt = Run(scaler=False), Interrupt(n)
        run.optimizer.zero_grad()
        interrupt.run(lambda: run.backward(1))  # noqa: B023 (called at once)
        if not interrupt.happened:
            break
        some += any(run.model.waits())
        run.optimizer.zero_grad()
        run.backward(1)
        run.step()
        assert run.states() == whole.states(), f"point {n}"
        n += 151
    assert some > 0
