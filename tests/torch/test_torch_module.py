"""What all modules of mpembed.torch do: training, evaluation, gradients, devices, profiles."""

from __future__ import annotations

import copy
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch.utils.checkpoint import checkpoint
from torch_modules import bag, batch, ended, open_batches, state, train

import mpembed as mpe
from mpembed import torch as mt

pytestmark = pytest.mark.torch


def rows_of(module: Any) -> torch.Tensor:
    return torch.from_numpy(module.tables.rows("table", np.arange(module.num_embeddings)))


def test_importing_mpembed_does_not_import_torch(tmp_path: Path) -> None:
    code = "import mpembed, sys; assert not {'torch', 'mpembed.torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_evaluation_and_no_grad_change_nothing() -> None:
    module = bag()
    train(module)
    before = state(module)
    trained = module(*batch())  # never back-propagated
    del trained
    assert open_batches(module) == 0
    before = state(module)
    with torch.no_grad():
        out = module(*batch())
    sized = torch.tensor([[1, 2], [3, 4]])
    with torch.inference_mode():
        assert torch.equal(module(*batch()), out)
        module(sized)
    assert torch.equal(module.eval()(*batch()), out)
    assert not out.requires_grad
    assert not module(*batch()).requires_grad
    assert state(module) == before
    assert module.train()(*batch()).requires_grad
    module(sized).sum().backward()  # whatever was kept of the call above


def test_a_frozen_module_is_not_trained() -> None:
    module = bag().requires_grad_(False)
    before = state(module)
    assert not module(*batch()).requires_grad
    assert state(module) == before
    assert "frozen" in repr(module)
    module.requires_grad_()
    train(module)
    assert state(module) != before


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("how", ["eval", "frozen"])
def test_weights_have_their_gradient_where_no_rows_are_trained(mode: str, how: str) -> None:
    module = bag(mode=mode, precision="int4", padding_idx=3)
    dense = torch.nn.EmbeddingBag(50, 6, mode=mode, padding_idx=3, _weight=module.weight.detach())
    module.eval() if how == "eval" else module.requires_grad_(False)
    before = state(module)
    indices, offsets = batch()
    given = [torch.rand(len(indices), requires_grad=True) for _ in range(2)]
    (module(indices, offsets, given[0]) * torch.arange(30).view(5, 6)).sum().backward()
    rows = dense.weight.detach()[indices] * (indices != 3).unsqueeze(1)
    lengths = torch.tensor([*offsets[1:].tolist(), len(indices)]) - offsets
    bags = torch.repeat_interleave(lengths)
    kept = torch.zeros(5).index_add(0, bags, (indices != 3).float()).clamp(min=1)
    grad = torch.arange(30.0).view(5, 6) / (kept.unsqueeze(1) if mode == "mean" else 1)
    torch.testing.assert_close(given[0].grad, (rows * grad[bags]).sum(1))
    assert state(module) == before


def test_several_forwards_may_be_open_and_come_back_in_any_order() -> None:
    module, twin = bag(), bag()
    outs = [module(*batch(seed)) for seed in range(3)]
    pairs = []
    for seed in range(3):
        indices, offsets = batch(seed)
        pairs.append(twin.tables.forward(indices, ended(indices, offsets), ticket=True))
    assert open_batches(module) == 3
    for k in (1, 2, 0):
        outs[k].square().sum().backward()
        out, ticket = pairs[k]
        twin.tables.backward(2 * out, ticket)
    assert state(module) == state(twin)
    assert open_batches(module) == 0


def test_hundreds_of_forwards_without_a_backward_pin_nothing() -> None:
    module = bag()
    for seed in range(300):  # 127 may be open
        module(*batch(seed))
    assert open_batches(module) == 0


def test_a_second_backward_of_a_graph_is_refused() -> None:
    module = bag()
    out = module(*batch()).sum()
    out.backward(retain_graph=True)
    before = state(module)
    with pytest.raises(RuntimeError, match="used already"):
        out.backward()
    assert state(module) == before


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_forward_trains_once(reentrant: bool) -> None:
    module, plain = bag(precision="fp32", cache=None), bag(precision="fp32", cache=None)
    scale = torch.ones((), requires_grad=True)

    def loss(one: Any, factor: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = (one(*batch()) * factor).square().sum()
        return result

    checkpoint(loss, module, scale, use_reentrant=reentrant).backward()
    loss(plain, scale).backward()
    assert torch.equal(rows_of(module), rows_of(plain))
    assert open_batches(module) == 0


def test_a_second_derivative_is_refused_before_anything_changes() -> None:
    module = bag()
    weights = torch.ones(1, 2, requires_grad=True)
    out = module(torch.tensor([[1, 2]]), None, weights).square().sum()
    before = state(module)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(out, weights, create_graph=True)
    assert state(module) == before


def test_gradients_of_any_layout_and_type_are_taken() -> None:
    grads = [torch.full((5, 6), 0.5), torch.full((1, 1), 0.5).expand(5, 6)]
    grads.append(torch.full((6, 5), 0.5).T)
    states = []
    for grad in grads:
        module = bag()
        module(*batch()).backward(grad)
        states.append(state(module))
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_output_and_gradient_in_half_precision(dtype: torch.dtype) -> None:
    module, plain = bag(output_dtype=dtype), bag()
    linear = torch.nn.Linear(6, 3)
    with torch.autocast("cpu", dtype=dtype):
        out, full = module(*batch()), plain(*batch())
        assert out.dtype is dtype
        assert full.dtype is torch.float32  # as nn.EmbeddingBag's, whatever autocast does after it
        assert torch.equal(out, full.to(dtype))
        for one in (out, full):
            linear(one).float().square().sum().backward()
    for one in (module, plain):
        assert one.tables.step == 2  # a forward and a backward
    assert state(module) == state(plain)  # linear() rounds its input in the same way


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("options", "whole"),
    [({}, False), ({"clip_grad_value": 100.0}, True), ({"padding_idx": 3}, False)],
)
def test_half_gradients_go_to_the_kernels_as_they_are(
    dtype: torch.dtype, options: Any, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless something is done to them first; the rows are the same."""
    seen = []
    backward = mpe.EmbeddingBagCollection.backward

    def spy(self: Any, grad: Any, *arguments: Any, **keywords: Any) -> Any:
        seen.append(grad.dtype)
        return backward(self, grad, *arguments, **keywords)

    monkeypatch.setattr(mpe.EmbeddingBagCollection, "backward", spy)
    module, plain = bag(output_dtype=dtype, **options), bag(**options)
    grad = torch.randn(5, 6).to(dtype)
    module(*batch()).backward(grad)
    plain(*batch()).backward(grad.float())
    assert seen == [torch.float32 if whole else dtype, torch.float32]
    assert state(module) == state(plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_embeddings_in_half_precision(dtype: torch.dtype) -> None:
    def make(**options: Any) -> mt.Embedding:
        settings: Any = {"precision": "int8", "optimizer": mpe.SGD(0.1), "seed": 1}
        return mt.Embedding(20, 5, padding_idx=2, **settings, **options)

    module, plain = make(output_dtype=dtype), make()
    for step in range(3):
        indices = torch.arange(step, 12 + step).view(3, 4) % 20
        out, full = module(indices), plain(indices)
        assert out.dtype is dtype
        assert torch.equal(out, full.to(dtype))
        grad = torch.randn(3, 4, 5).to(dtype)
        out.backward(grad)
        full.backward(grad.float())
    assert state(module) == state(plain)


def test_modules_of_two_types_share_a_collection() -> None:
    """Their gradients make one update, of FP32."""
    module = bag(output_dtype=torch.bfloat16)
    twin, plain = mt.EmbeddingBag.from_collection(module.tables), bag()
    loss = module(*batch()).float().sum() + twin(*batch(1)).sum()
    loss.backward()
    (plain(*batch()).sum() + plain(*batch(1)).sum()).backward()
    assert state(module) == state(plain)


def test_gradients_are_clipped_by_value_and_by_norm() -> None:
    grad = torch.linspace(-2, 2, 30).view(5, 6)
    limit = float(grad.norm()) / 4
    for options, same in (
        ({"clip_grad_value": 0.5}, grad.clamp(-0.5, 0.5)),
        ({"clip_grad_norm": limit}, grad * (limit / float(grad.norm()))),
        ({"clip_grad_norm": 100.0, "clip_grad_value": 100.0}, grad),
    ):
        clipped, plain = bag(**options), bag()
        clipped(*batch()).backward(grad)
        plain(*batch()).backward(same)
        assert state(clipped) == state(plain)


def test_limits_of_gradients_may_be_set_later() -> None:
    module, twin = bag(), bag(clip_grad_norm=0.5)
    module.clip_grad_value = 0.25
    assert copy.deepcopy(module).clip_grad_value == 0.25
    module.clip_grad_value, module.clip_grad_norm = None, 0.5
    train(module)
    train(twin)
    assert state(module) == state(twin)
    for limit in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="clip_grad_norm must be"):
            module.clip_grad_norm = limit
    assert (module.clip_grad_value, module.clip_grad_norm) == (None, 0.5)
    with pytest.raises(AttributeError, match="no setter"):
        module.mode = "mean"  # type: ignore[misc]


def test_an_undefined_gradient_updates_nothing() -> None:
    module = bag(optimizer=mpe.SGD(0.1, weight_decay=0.5, weight_decay_mode="l2"))
    before = rows_of(module)

    class Constant(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
            return values.sum()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> None:
            return None

    weights = torch.ones(1, 2, requires_grad=True)
    out = module(torch.tensor([[1, 2]]), None, weights)
    Constant.apply(out).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(rows_of(module), before)
    assert open_batches(module) == 0
    assert weights.grad is None


def test_an_update_that_is_not_finite_is_raised_or_skipped() -> None:
    module = bag()
    grad = torch.ones(5, 6)
    grad[0, 0] = torch.nan
    with pytest.raises(mpe.NonFiniteUpdateError):
        module(*batch()).backward(grad)
    bag(on_nonfinite="skip")(*batch()).backward(grad)


def test_its_parameter_stands_for_the_tables_and_it_stays_where_it_is() -> None:
    module = bag()
    assert [(name, p.numel()) for name, p in module.named_parameters()] == [("anchor", 2)]
    assert list(module.buffers()) == []
    twin, anchor = copy.deepcopy(module), module.anchor
    for same in (module.half(), module.double(), module.to("cpu"), module.to(torch.bfloat16)):
        assert same is module
    assert state(module) == state(twin)
    assert module.anchor is anchor
    with pytest.raises(ValueError, match="output_dtype must be one of"):
        module.output_dtype = torch.int8
    assert anchor.dtype == torch.float32
    with pytest.raises(RuntimeError, match="cannot be moved to meta"):
        module.to("meta")
    with pytest.raises(RuntimeError, match="cannot be shared"):
        module.share_memory()


def test_another_parameter_in_its_place_is_refused() -> None:
    model: Any = torch.nn.ModuleList([bag(), torch.nn.Linear(6, 1)])
    before = state(model[0])
    own = dict(model[0].named_parameters())
    torch.func.functional_call(model[0], own, batch()).sum().backward()
    assert state(model[0]) != before
    others = {name: one.detach().clone().requires_grad_() for name, one in own.items()}
    before = state(model[0])
    with pytest.raises(RuntimeError, match=r"anchor was replaced.*functional_call"):
        torch.func.functional_call(model[0], others, batch())
    assert state(model[0]) == before
    torch.func.functional_call(model[0], {}, batch()).sum().backward()


def test_it_may_be_moved_to_the_gpu_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    module = bag()
    monkeypatch.setattr(mt.EmbeddingBag, "device", torch.device("cuda:0"))
    there = types.SimpleNamespace(
        device=torch.device("cuda:0"), is_shared=lambda: True, dtype=torch.float32
    )
    assert module._apply(lambda _: there) is module  # type: ignore[arg-type,return-value]


def test_the_defaults_of_pytorch_do_not_matter() -> None:
    plain = bag()
    train(plain)
    try:
        torch.set_default_dtype(torch.float16)
        with torch.device("meta"):
            module = bag()
            assert module.half().float() is module
    finally:
        torch.set_default_dtype(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    fused = mt.FusedOptimizer(module, grad_scaler=scaler, update="backward")
    for seed in range(4):
        scaler.scale(module(*batch(seed)).square().sum()).backward()
        scaler.step(fused)
        scaler.update()
    assert state(module) == state(plain)


def test_a_profile_names_the_lookup_and_the_update() -> None:
    module = bag()
    with torch.profiler.profile() as profile:
        train(module, steps=1)
    names = {event.key for event in profile.key_averages()}
    assert "mpembed::forward" in names
    assert "LookupBackward" in names


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:A model attribute `anchor`:UserWarning")
def test_a_trace_which_would_keep_rows_as_constants_is_refused() -> None:
    module, example = bag().eval(), torch.tensor([[1, 2]])
    with pytest.raises(RuntimeError, match="use torch.export"):
        torch.jit.trace(module, (example,))
    with pytest.raises(RuntimeError, match=r"export mpembed\.torch\.freeze\(model\)"):
        torch.export.export(module, (example,))


def test_repr_says_what_there_is() -> None:
    text = repr(bag(output_dtype=torch.bfloat16))
    assert text.startswith("EmbeddingBag(50, 6, int4, device='cpu', RowwiseAdagrad(lr=0.1")
    assert "output_dtype=torch.bfloat16" in text
    assert "mode='sum'" in text


def test_a_module_of_a_given_collection_uses_it() -> None:
    emb = bag().tables
    module = mt.EmbeddingBag.from_collection(emb, include_last_offset=True)
    indices, offsets = batch()
    module(indices, ended(indices, offsets)).sum().backward()
    assert module.tables is emb
    assert emb.step == 2
    with pytest.raises(ValueError, match="must have one table"):
        mt.EmbeddingBag.from_collection(mt.Embedding(3, 2, optimizer=mpe.SGD(0.1)).tables)
    with pytest.raises(
        TypeError, match="collection must be an mpembed.EmbeddingBagCollection, got int"
    ):
        mt.EmbeddingBagCollection.from_collection(3)  # type: ignore[arg-type]


def test_modules_start_with_rows_of_their_own_which_pytorchs_seed_decides() -> None:
    def made() -> list[torch.Tensor]:
        both = [mt.Embedding(20, 4, optimizer=mpe.SGD(0.1)) for _ in range(2)]
        return [one.weight.detach().clone() for one in both]

    torch.manual_seed(5)
    first = made()
    torch.manual_seed(5)
    again = made()
    assert not torch.allclose(first[0], first[1])
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    fixed = [mt.Embedding(20, 4, optimizer=mpe.SGD(0.1), seed=3).weight for _ in range(2)]
    assert torch.equal(*fixed)


@pytest.mark.parametrize("name", ["num_embeddings", "embedding_dim", "max_norm", "sparse"])
def test_what_is_fixed_cannot_be_set(name: str) -> None:
    module = bag()
    setattr(module, name, getattr(module, name))
    with pytest.raises(AttributeError, match=f"{name} is fixed when the module is made"):
        setattr(module, name, 3)
    with pytest.raises(TypeError, match="then assign the rows"):
        mt.Embedding.from_pretrained(torch.zeros(3, 4))
