"""Several lookups in one backward pass are one update, as the collection makes it of a list."""

from __future__ import annotations

import itertools
import threading
import types
from collections.abc import Callable
from typing import Any

import kinds
import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch.utils.checkpoint import checkpoint
from torch_modules import (
    bag,
    batch,
    collection,
    ended,
    features,
    looked_up,
    loss_of,
    one_update,
    open_batches,
    opened,
    state,
    updates,
)

import mpembed as mpe
from mpembed import torch as mt
from mpembed.torch import _backward_pass

pytestmark = pytest.mark.torch
EXACT: dict[str, Any] = {"precision": "fp32", "cache": None}


# ---- the one update ------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", kinds.ONE_EACH)
def test_the_lookups_of_a_backward_are_one_update(optimizer: str) -> None:
    module, twin = (bag(optimizer=kinds.named(optimizer)) for _ in range(2))
    for start in range(3):
        seeds = range(3 * start, 3 * start + 3)
        loss_of(looked_up(module, seeds)).backward()
        one_update(twin, seeds)
        assert state(module) == state(twin)
    assert updates(module) == 3
    assert open_batches(module) == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_is_that_of_the_forwards_whatever_autograds_is(order: Any) -> None:
    module, twin = bag(), bag()
    calls = module._calls
    forwards = []
    for seed in range(3):
        indices, offsets = batch(seed)
        forwards.append(
            calls.train_forward(indices, ended(indices, offsets), None, (), torch.float32)
        )

    class InThisOrder(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
            return values.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            for k in order:
                out, forward = forwards[k]
                calls.backward(forward, [2 * out])
            return grads[0]

    InThisOrder.apply(torch.ones((), requires_grad=True)).backward()  # type: ignore[no-untyped-call]
    one_update(twin, range(3))
    assert state(module) == state(twin)


@pytest.mark.parametrize("kind", ["SGD", "Adagrad"])
def test_it_trains_as_pytorchs_embedding_that_is_looked_up_three_times(kind: str) -> None:
    make: Any = {
        "SGD": (mpe.SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
        "Adagrad": (mpe.Adagrad(0.1), lambda p: torch.optim.Adagrad(p, 0.1)),
    }[kind]
    dense = torch.nn.EmbeddingBag(50, 6, mode="sum")
    optimizer = make[1](dense.parameters())
    module, apart = (bag(optimizer=make[0], **EXACT) for _ in range(2))
    for one in (module, apart):
        one.tables.set_rows("table", np.arange(50), dense.weight.detach().clone())
    for start in range(5):
        seeds = range(3 * start, 3 * start + 3)
        optimizer.zero_grad()
        loss_of(looked_up(dense, seeds)).backward()
        optimizer.step()
        loss_of(looked_up(module, seeds)).backward()
        for out in looked_up(apart, seeds):
            out.square().sum().backward()
    rows, others = (one.tables.rows("table", np.arange(50)) for one in (module, apart))
    expected = dense.weight.detach().numpy()
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)
    if kind == "Adagrad":  # three steps are not one
        assert np.abs(others - expected).max() > 1e-2


def test_more_than_sixteen_lookups_are_updated_sixteen_at_a_time() -> None:
    module, twin = bag(), bag()
    loss_of(looked_up(module, range(20))).backward()
    pairs = [(2 * out, ticket) for out, ticket in opened(twin, range(20))]
    twin.tables.backward(pairs[:16])
    twin.tables.backward(pairs[16:])
    assert state(module) == state(twin)


def test_modules_of_one_collection_share_the_update() -> None:
    module, twin = bag(), bag()
    other = mt.EmbeddingBag.from_collection(module.tables)
    loss_of([module(*batch(0)), other(*batch(1)), module(*batch(2))]).backward()
    one_update(twin, range(3))
    assert state(module) == state(twin)


def test_a_read_of_all_rows_by_another_module_of_the_collection_joins_the_update() -> None:
    module, alone = (bag(optimizer=mpe.Adagrad(0.1), precision="fp32") for _ in range(2))
    other = mt.EmbeddingBag.from_collection(module.tables)
    (module(*batch()).sum() + other.weight[3:9].square().sum()).backward()
    (alone(*batch()).sum() + alone.weight[3:9].square().sum()).backward()
    assert state(module) == state(alone)


def test_each_collection_of_a_model_gets_its_own_update() -> None:
    modules, twins = [bag(seed=k) for k in range(2)], [bag(seed=k) for k in range(2)]
    outs = [modules[k % 2](*batch(k)) for k in range(4)]
    loss_of(outs).backward()
    one_update(twins[0], (0, 2))
    one_update(twins[1], (1, 3))
    for module, twin in zip(modules, twins, strict=True):
        assert state(module) == state(twin)


def test_features_looked_up_twice_are_one_update() -> None:
    module = collection()
    first, second = module(features("a", "b", "c")), module(features("c", "a", "b"))
    (first.values().square().sum() + second.values().square().sum()).backward()
    assert updates(module) == 1


def test_each_backward_is_an_update_of_its_own() -> None:
    module, twin = bag(), bag()
    outs = looked_up(module, range(4))
    loss_of(outs[:2]).backward()
    loss_of(outs[2:]).backward()
    pairs = opened(twin, range(4))
    for half in (pairs[:2], pairs[2:]):
        twin.tables.backward([(2 * out, ticket) for out, ticket in half])
    assert state(module) == state(twin)


def test_a_lookup_alone_is_updated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module, twin = bag(), bag()
    one_update(twin, [0])
    monkeypatch.setattr(_backward_pass, "BackwardPass", None)  # nothing waits
    loss_of(looked_up(module, [0])).backward()
    assert state(module) == state(twin)


def test_a_gradient_of_the_weights_is_returned_at_once() -> None:
    module, twin = bag(), bag()
    batches = [batch(seed) for seed in range(3)]
    scales = [torch.tensor(1.5, requires_grad=True) for _ in batches]
    weights = [torch.linspace(-1, 2, len(indices)) for indices, _ in batches]
    outs = [
        module(*one, weight * scale)  # the gradient goes on within the pass
        for one, weight, scale in zip(batches, weights, scales, strict=True)
    ]
    loss_of(outs).backward()
    pairs = [
        twin.tables.forward(indices, ended(indices, offsets), 1.5 * weight, ticket=True)
        for (indices, offsets), weight in zip(batches, weights, strict=True)
    ]
    grads = twin.tables.backward([(2 * out, ticket) for out, ticket in pairs])
    assert state(module) == state(twin)
    for scale, grad, weight in zip(scales, grads, weights, strict=True):
        assert scale.grad is not None
        assert torch.equal(scale.grad, (torch.from_numpy(grad) * weight).sum())


def test_the_gradient_of_weights_alone_updates_once() -> None:
    module = bag()
    weights = torch.ones(1, 2, requires_grad=True)
    outs = [module(torch.tensor([[1, 2]]), None, weights) for _ in range(2)]
    (grad,) = torch.autograd.grad(loss_of(outs), weights)
    assert grad.shape == weights.shape
    assert updates(module) == 1
    assert open_batches(module) == 0


def test_what_others_do_to_a_gradient_afterwards_does_not_matter() -> None:
    module, twin = bag(), bag()
    shift = torch.zeros(30, requires_grad=True)

    def clear(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.zero_()

    shift.register_post_accumulate_grad_hook(clear)
    shifted = shift.view(5, 6)  # before the lookups: its backward comes after theirs
    first, second = looked_up(module, range(2))
    # One gradient for both of the sum; autograd gives its memory to `shift.grad`.
    loss_of([first + shifted, second]).backward()
    one_update(twin, range(2))
    assert state(module) == state(twin)


def test_a_profile_names_the_update_at_the_end() -> None:
    module = bag()
    outs = looked_up(module, range(2))
    with torch.profiler.profile() as profile:
        loss_of(outs).backward()
    assert "mpembed::update" in {event.key for event in profile.key_averages()}


def test_an_output_without_a_gradient_takes_no_part() -> None:
    module, twin = bag(), bag()
    used, unused, late = looked_up(module, range(3))
    loss_of([used, late]).backward()
    del unused
    pairs = opened(twin, range(3))
    pairs[1][1].drop()
    twin.tables.backward([(2 * out, ticket) for out, ticket in (pairs[0], pairs[2])])
    assert state(module) == state(twin)


def test_each_gradient_is_clipped_before_the_sum() -> None:
    module, twin = bag(clip_grad_value=0.5, clip_grad_norm=1.0), bag()
    grads = [torch.linspace(-2, 2, 30).view(5, 6), torch.full((5, 6), 0.01)]
    outs = looked_up(module, range(2))
    torch.autograd.backward(outs, grads)
    first = grads[0].clamp(-0.5, 0.5)
    first = first * (1.0 / float(first.norm()))
    (_, one), (_, other) = opened(twin, range(2))
    twin.tables.backward([(first, one), (grads[1], other)])
    assert state(module) == state(twin)


# ---- passes inside of passes ---------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_lookups_of_a_checkpoint_are_one_update(reentrant: bool) -> None:
    module, plain = bag(**EXACT), bag(**EXACT)
    scale = torch.ones((), requires_grad=True)

    def loss(one: Any, factor: torch.Tensor) -> torch.Tensor:
        return loss_of([out * factor for out in looked_up(one, range(3))])

    checkpoint(loss, module, scale, use_reentrant=reentrant).backward()
    loss(plain, scale).backward()
    names = [name for name in state(plain) if name.startswith("table.")]
    assert [state(module)[name] for name in names] == [state(plain)[name] for name in names]
    assert updates(module) == 1
    assert open_batches(module) == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_lookups_outside_of_a_checkpoint(reentrant: bool) -> None:
    """A reentrant checkpoint is a pass of its own; the other kind belongs to the pass around it."""
    module = bag()
    scale = torch.ones((), requires_grad=True)

    def inner(factor: torch.Tensor) -> torch.Tensor:
        return loss_of([out * factor for out in looked_up(module, range(2))])

    before, after = module(*batch(5)), module(*batch(6))
    loss = checkpoint(inner, scale, use_reentrant=reentrant) + loss_of([before, after])
    loss.backward()
    assert updates(module) == (2 if reentrant else 1)
    del loss, before, after
    assert open_batches(module) == 0


def test_passes_of_several_threads_do_not_mix() -> None:
    modules, twins = [bag(seed=k) for k in range(3)], [bag(seed=k) for k in range(3)]

    def train(module: Any) -> None:
        for start in range(20):
            loss_of(looked_up(module, range(start, start + 3))).backward()

    threads = [threading.Thread(target=train, args=(module,)) for module in modules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for module, twin in zip(modules, twins, strict=True):
        train(twin)
        assert state(module) == state(twin)
        assert updates(module) == 20


def test_threads_with_one_module_update_once_for_each_backward() -> None:
    module = bag()

    def train() -> None:
        for start in range(20):
            loss_of(looked_up(module, range(start, start + 3))).backward()

    threads = [threading.Thread(target=train) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert updates(module) == 60
    assert open_batches(module) == 0


# ---- devices -------------------------------------------------------------------------------------


def test_gradients_of_other_streams_are_waited_for() -> None:
    calls: list[Any] = []

    def stream(number: int) -> Any:
        def wait(other: Any) -> None:
            calls.append((number, "waits for", other.cuda_stream))

        return types.SimpleNamespace(cuda_stream=number, wait_stream=wait)

    def grad(number: int) -> Any:
        def record(on: Any) -> None:
            calls.append((number, "is used on", on.cuda_stream))

        return types.SimpleNamespace(record_stream=record)

    def backward(pairs: Any, stream: int, weight_grad: bool) -> None:
        assert not weight_grad
        calls.append(([ticket for _, ticket in pairs], stream))

    tables: Any = types.SimpleNamespace(backward=backward)
    one, other = stream(1), stream(2)
    finish: Callable[[Any], None] = _backward_pass._update
    finish(
        [
            _backward_pass.Waiting(
                number=k,
                calls=tables,
                collection=tables,
                ticket=f"t{k}",  # type: ignore[arg-type]
                lookup=None,
                grads=[grad(k)],
                values={},
                stream=on,
                optimizer=None,
                groups=(),
                keep=False,
            )
            for k, on in enumerate((one, other, one))
        ]
    )
    assert calls == [(1, "waits for", 2), (1, "is used on", 1), (["t0", "t1", "t2"], 1)]
