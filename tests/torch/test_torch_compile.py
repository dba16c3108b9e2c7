"""The operators behind mpembed.torch under compilers: the bytes of code that runs as written."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import torch._inductor.config
from torch.library import opcheck
from torch_modules import NAMES, Jagged, bag, batch, collection, features, open_batches, state

import mpembed as mpe
from mpembed import torch as mt
from mpembed.torch import _lookup

pytestmark = pytest.mark.torch
Loss = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._inductor.config.patch(compile_threads=1):
        yield
    torch._dynamo.reset()


def compiled(function: Loss, **options: Any) -> Loss:
    made: Loss = torch.compile(function, fullgraph=True, backend="aot_eager", **options)
    return made


def weighted_bag(lr: float = 0.0, **options: Any) -> Any:
    module = bag(optimizer=mpe.SGD(lr=lr), precision="fp32", **options)
    indices, offsets = torch.tensor([1, 2, 2, 3]), torch.tensor([0, 2, 4])
    return module, indices, offsets, torch.rand(4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_opcheck_of_the_lookup(training: bool, weighted: bool, dtype: torch.dtype) -> None:
    module, indices, offsets, weights = weighted_bag()  # a rate of 0: each run looks up the same
    anchor = module.anchor if training else module.anchor.detach()
    given = weights.requires_grad_(training) if weighted else None
    facts: Any = module._handle, [], training, 2, 6, dtype
    arguments: Any = anchor, indices, offsets, given, *facts
    results = opcheck(torch.ops.mpembed.lookup.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
    assert open_batches(module) == 0


@pytest.mark.parametrize("weighted", [True, False])
def test_opcheck_of_the_update(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module, indices, offsets, weights = weighted_bag()

    # A ticket is good for one update and opcheck makes many, of copies: each gets its own.
    def another(_: torch.Tensor) -> Any:
        given = weights if weighted else None
        return module._calls.train_forward(indices, offsets, given, (), torch.float32)[1]

    monkeypatch.setattr(_lookup, "forward_of", another)
    ticket = torch.zeros(1, dtype=torch.int64)
    arguments = torch.ones(2, 6), ticket, module._handle, 4 if weighted else 0
    results = opcheck(torch.ops.mpembed.update.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_the_operators_have_effects_and_no_handle_outlives_its_module() -> None:
    module, indices, offsets, _ = weighted_bag()
    arguments = [indices, offsets, None, module._handle, [], False, 2, 6, torch.float32]
    del module
    with pytest.raises(RuntimeError, match="no longer exists"):
        torch.ops.mpembed.lookup(torch.zeros(()), *arguments)


def test_a_ticket_that_was_copied_is_not_taken() -> None:
    module, indices, offsets, _ = weighted_bag()
    arguments = [indices, offsets, None, module._handle, [], True, 2, 6, torch.float32]
    out, ticket = torch.ops.mpembed.lookup(module.anchor, *arguments)
    with pytest.raises(RuntimeError, match="is not known"):
        torch.ops.mpembed.update(torch.ones(2, 6), ticket.clone(), module._handle, 0)
    torch.ops.mpembed.update(torch.ones(2, 6), ticket, module._handle, 0)
    with pytest.raises(RuntimeError, match="used already"):
        torch.ops.mpembed.update(torch.ones(2, 6), ticket, module._handle, 0)
    del out, ticket
    assert open_batches(module) == 0
    assert not _lookup._open_forwards


def twice(module: Any) -> Loss:
    def loss(indices: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        # The same arguments twice, and a result that nobody uses: three calls all the same. The
        # gradients are powers of two, so that they do not depend on how a compiler adds.
        first = module(indices, offsets, weights)
        second = module(indices, offsets, weights)
        module(indices, offsets)
        result: torch.Tensor = (first * 0.5 + second * 2).sum()
        return result

    return loss


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize(
    ("backend", "dynamic"),
    [
        ("aot_eager", None),
        ("aot_eager", True),
        pytest.param("inductor", None, marks=pytest.mark.exhaustive),
    ],
)
def test_training_gives_the_bytes_of_eager(
    backend: str, dynamic: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    module = bag()
    twin = copy.deepcopy(module)
    run = torch.compile(twice(twin), fullgraph=True, backend=backend, dynamic=dynamic)
    plain = twice(module)
    for seed in (1, 1, 2) if dynamic else (1, 1, 1):
        indices, offsets = batch(seed)
        grads, values = [], []
        for one in (plain, run):
            weights = torch.ones(len(indices), requires_grad=True)
            loss = one(indices, offsets, weights)
            loss.backward()
            assert weights.grad is not None
            grads.append(weights.grad)
            values.append(loss.detach())
        torch.testing.assert_close(*values)
        assert torch.equal(grads[0], grads[1])
        assert state(module) == state(twin)
    del loss
    assert open_batches(twin) == 0
    assert not _lookup._open_forwards


def test_each_lookup_is_updated_where_autograd_is_compiled() -> None:
    from torch._dynamo import compiled_autograd

    module = bag()
    first, second = batch(0), batch(1)
    run = compiled(lambda: module(*first).sum() + module(*second).sum())
    run().backward()
    assert module.tables.state_arrays()["updates"].item() == 1
    with compiled_autograd._enable(torch.compile(backend="aot_eager")):
        run().backward()
    assert module.tables.state_arrays()["updates"].item() == 3
    assert open_batches(module) == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.exhaustive)]
)
def test_lookups_come_in_the_order_that_is_written(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # Inductor of PyTorch 2.13 has no other way to keep it: pytorch/pytorch#189209.
    options: Any = {"reorder_for_peak_memory": False} if backend == "inductor" else None
    module = bag()
    twin = copy.deepcopy(module)

    def loss(module: Any, first: Any, second: Any) -> torch.Tensor:
        # Gradients of 1, so that they do not depend on how a compiler adds; it would like to make
        # the third lookup before the second, whose batch is another.
        outs = module(*first), module(*second), module(*first)
        result: torch.Tensor = outs[0].sum() + outs[1].sum() + outs[2].sum()
        return result

    run = torch.compile(loss, fullgraph=True, backend=backend, options=options)
    for seed in range(3):
        for one, which in ((loss, module), (run, twin)):
            one(which, batch(seed), batch(seed + 5)).backward()
        assert state(module) == state(twin)


@pytest.mark.parametrize("called", [False, True])
def test_a_copy_of_a_compiled_module_trains_its_own_tables(called: bool) -> None:
    module = bag()
    module.compile(fullgraph=True, backend="aot_eager")
    if called:
        module(*batch()).sum().backward()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        before = state(module)
        assert state(twin) == before
        twin(*batch()).sum().backward()
        assert state(module) == before
        assert twin.tables.step == module.tables.step + 2


def test_a_compiled_forward_without_a_backward_pins_nothing() -> None:
    module = bag()
    run = compiled(lambda indices, offsets: module(indices, offsets).sum())
    for _ in range(130):  # 127 may be open
        run(*batch())
    assert open_batches(module) == 0


def test_a_lost_compiled_backward_is_told_at_the_second_one() -> None:
    module = bag()
    loss = compiled(lambda indices, offsets: module(indices, offsets).sum())(*batch())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used already"):
        loss.backward()


def test_evaluation_and_freezing_change_nothing_when_compiled() -> None:
    module = bag()
    run = compiled(lambda indices, offsets: module(indices, offsets))
    run(*batch()).sum().backward()
    before = state(module)
    expected = copy.deepcopy(module).eval()(*batch())
    with torch.no_grad():
        assert torch.equal(run(*batch()), expected)
    module.eval()
    assert torch.equal(run(*batch()), expected)
    module.train().requires_grad_(False)
    assert torch.equal(run(*batch()), expected)
    assert state(module) == before
    module.requires_grad_()
    run(*batch()).sum().backward()
    assert state(module) != before


@pytest.mark.parametrize("shape", [(4,), (3, 2)])
def test_an_embedding_and_bags_of_one_size_compile(shape: tuple[int, ...]) -> None:
    modules = [mt.Embedding(50, 6, optimizer=mpe.SGD(lr=0.5))]
    if len(shape) == 2:
        modules.append(bag(output_dtype=torch.bfloat16))  # type: ignore[arg-type]
    for module in modules:
        twin = copy.deepcopy(module)
        run = compiled(lambda indices, twin=twin: twin(indices).square().sum())
        for number in range(3):
            indices = torch.arange(6)[: shape[0] * shape[-1] if len(shape) > 1 else 4] + number
            indices = indices.view(shape)
            loss, expected = run(indices), module(indices).square().sum()
            assert torch.equal(loss, expected)
            loss.backward()
            expected.backward()
        assert state(module) == state(twin)


@pytest.mark.parametrize("keys", ["abcd", "dcab"])
def test_features_compile(keys: str) -> None:
    names = {**NAMES, "t0": ["a", "d"]}
    for options in ({}, {"feature_names": names}):
        module = collection(**options)
        twin = copy.deepcopy(module)

        def loss(module: Any, features: Jagged) -> torch.Tensor:
            result: torch.Tensor = module(features).values().square().sum()
            return result

        run = compiled(loss)
        for _ in range(2):
            got, expected = run(twin, features(*keys)), loss(module, features(*keys))
            assert torch.equal(got, expected)
            got.backward()
            expected.backward()
        assert state(module) == state(twin)


def test_errors_of_a_compiled_batch_are_those_of_eager() -> None:
    module = bag()
    before = state(module)
    run = compiled(lambda indices, offsets: module(indices, offsets).sum())
    with pytest.raises(IndexError, match="index 77 at position 1"):
        run(torch.tensor([1, 77]), torch.tensor([0, 1]))
    assert state(module) == before
