"""The lookup as autograd sees it: an autograd function in eager mode, operators for compilers.

Both make the same calls of the same collection, so they give the same bytes. The function costs a
fraction of what an operator written in Python does.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpembed.torch._backward_pass import adds_gradient
from mpembed.torch._batch import prepare
from mpembed.torch._forward_calls import OpenForward, Outputs
from mpembed.torch._module_calls import ModuleCalls, calls_of
from mpembed.torch._parameter import MARK, mark

_NO_SECOND_DERIVATIVE = (
    "the backward of mpembed's tables updates rows and cannot be differentiated: call it without "
    "create_graph=True"
)


def _first(outputs: Outputs) -> Tensor:
    """Return the only output; operators have no others."""
    if isinstance(outputs, Tensor):
        return outputs
    raise RuntimeError(
        "torch.compile does not take a collection of several tables of which one is unpooled: call "
        "it outside of compiled code (torch.compiler.disable)"
    )


class Lookup(torch.autograd.Function):
    """A training forward, whose backward updates the rows. Between them a batch is open."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        weights: Tensor | None,
        calls: ModuleCalls,
        indices: Tensor,
        offsets: Tensor,
        order: Sequence[int],
        dtype: torch.dtype,
    ) -> Outputs:
        """Look up; `anchor` requires grad, so that the backward is reached."""
        ctx.set_materialize_grads(False)
        if weights is not None:
            weights = weights.detach()
        out, ctx.open_forward = calls.train_forward(indices, offsets, weights, order, dtype)
        ctx.calls, ctx.device = calls, anchor.device
        ctx.shapes = None if isinstance(out, Tensor) else [one.shape for one in out]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Update; give the anchor an infinite gradient where a scaled one was not finite."""
        if torch.is_grad_enabled():
            raise RuntimeError(_NO_SECOND_DERIVATIVE)
        reached = [grad for grad in grads if grad is not None]
        if not reached:  # no gradient reaches the rows, not even decay
            ctx.open_forward.drop()
            return None, None, None, None, None, None, None
        if ctx.shapes is not None:
            grads = tuple(
                reached[0].new_zeros(shape) if grad is None else grad
                for grad, shape in zip(grads, ctx.shapes, strict=True)
            )
        if ctx.calls.defers and ctx.open_forward.ticket is None and not adds_gradient(ctx):
            batch = ctx.open_forward.batch
            found = None if batch.weights is None else ctx.calls.weight_grad_of(batch, grads)
            return None, found, None, None, None, None, None
        weight_grad, updated = ctx.calls.backward(ctx.open_forward, grads)
        anchor_grad = mark(ctx.device) if updated else mark(ctx.device, torch.inf)
        return anchor_grad, weight_grad, None, None, None, None, None


class WeightedLookup(torch.autograd.Function):
    """A lookup that trains no rows, whose backward gives the gradient of the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        calls: ModuleCalls,
        indices: Tensor,
        offsets: Tensor,
        order: Sequence[int],
        dtype: torch.dtype,
    ) -> Outputs:
        """Look up; the batch is copied for the backward."""
        padding = calls.padding_idx
        batch = prepare(indices, offsets, weights.detach(), order, padding)
        ctx.batch, ctx.calls = batch.kept_for_later(), calls
        return calls.evaluate(indices, offsets, weights.detach(), order, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradient of the weights, from the rows as they are now."""
        if torch.is_grad_enabled():
            raise RuntimeError(_NO_SECOND_DERIVATIVE)
        return ctx.calls.weight_grad_of(ctx.batch, grads), None, None, None, None, None


# ---- operators -----------------------------------------------------------------------------------
#
# Operators take and return tensors. So an open forward goes from the lookup to the update as a
# tensor of one zero, whose address finds it: a copy of the tensor does not. The forward is kept as
# long as the tensor's memory.

_open_forwards: dict[int, tuple[OpenForward, weakref.ref[Any]]] = {}


def _ticket_tensor(forward: OpenForward) -> Tensor:
    memory = np.zeros(1, np.int64)
    address = memory.ctypes.data

    # The dictionary as an argument: at the interpreter's exit the global may be gone.
    def forget(_: object, forwards: dict[int, Any] = _open_forwards) -> None:
        forwards.pop(address, None)

    _open_forwards[address] = forward, weakref.ref(memory, forget)
    return torch.from_numpy(memory)


def forward_of(ticket: Tensor) -> OpenForward:
    """Return the forward that a ticket's tensor stands for."""
    found = _open_forwards.get(ticket.data_ptr())
    if found is None:
        raise RuntimeError(
            "the ticket of this backward is not known: its tensor was copied; use no saved-tensor "
            "hooks that copy, such as save_on_cpu, around a compiled module"
        )
    return found[0]


@torch.library.custom_op(
    "mpembed::lookup",
    mutates_args=(),
    schema="(Tensor anchor, Tensor indices, Tensor offsets, Tensor? weights, int handle, "
    "int[] order, bool training, SymInt rows, int width, ScalarType dtype) -> (Tensor, Tensor)",
)
def lookup(
    anchor: Tensor,
    indices: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    handle: int,
    order: Sequence[int],
    training: bool,
    rows: int,
    width: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Look up (rows, width) values in the tables of a handle; return them and a ticket."""
    calls = calls_of(handle)
    if weights is not None:
        weights = weights.detach()
    if not training:
        out = _first(calls.evaluate(indices, offsets, weights, order, dtype))
        return out, torch.zeros(1, dtype=torch.int64, device="cpu")
    outputs, forward = calls.train_forward(indices, offsets, weights, order, dtype)
    return _first(outputs), _ticket_tensor(forward)


@lookup.register_fake
def _(
    anchor: Tensor,
    indices: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    handle: int,
    order: Sequence[int],
    training: bool,
    rows: int,
    width: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    out = indices.new_empty((rows, width), dtype=dtype)
    return out, torch.empty(1, dtype=torch.int64, device="cpu")


@torch.library.custom_op(
    "mpembed::update",
    mutates_args=(),
    schema="(Tensor grad, Tensor ticket, int handle, SymInt weights) -> (Tensor, Tensor)",
)
def update(grad: Tensor, ticket: Tensor, handle: int, weights: int) -> tuple[Tensor, Tensor]:
    """Update the rows of a ticket; return the gradients of the anchor and of the weights."""
    weight_grad, updated = calls_of(handle).backward(forward_of(ticket), [grad.detach()])
    if weight_grad is None:
        weight_grad = grad.new_empty(0, dtype=torch.float32)
    # A compiler may write to an operator's results: they are nobody else's.
    return mark(grad.device, MARK if updated else torch.inf).clone(), weight_grad


@update.register_fake
def _(grad: Tensor, ticket: Tensor, handle: int, weights: int) -> tuple[Tensor, Tensor]:
    anchor = torch.empty(2, dtype=torch.float32, device=grad.device)
    return anchor, grad.new_empty((weights,), dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.handle = inputs[4]
    ctx.weights = None if inputs[3] is None else inputs[3].shape[0]
    ctx.training = inputs[6]


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    if not ctx.training:
        raise RuntimeError("a lookup in evaluation has no backward: call train() of the module")
    count = 0 if ctx.weights is None else ctx.weights
    ops = torch.ops.mpembed
    anchor, weight_grad = ops.update(grad, ctx.saved_tensors[0], ctx.handle, count)
    weights = None if ctx.weights is None else weight_grad
    return anchor, None, None, weights, None, None, None, None, None, None


lookup.register_autograd(_backward, setup_context=_setup)

# They change state outside of tensors: a compiler may not drop, merge or reorder their calls.
COMPILES = hasattr(lookup, "register_effect")
if COMPILES:
    from torch._library.effects import EffectType

    for _op in (lookup, update):
        _op.register_effect(EffectType.ORDERED)
