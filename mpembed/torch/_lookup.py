"""The lookup as autograd sees it: a function where code runs as written, operators for compilers.

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

from mpembed.torch._calls import Calls, Opened, live

_NO_GRAPH = (
    "the backward of mpembed's tables cannot be differentiated (create_graph=True): it updates rows"
)


def _anchor_grad(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device="cpu")


class Lookup(torch.autograd.Function):
    """A training forward; its backward updates the rows. Nothing but an open ticket is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        weights: Tensor | None,
        calls: Calls,
        indices: Tensor,
        offsets: Tensor,
        order: Sequence[int],
    ) -> Tensor:
        """Look up; `anchor` requires grad, so that the backward is reached."""
        ctx.set_materialize_grads(False)
        if weights is not None:
            weights = weights.detach()
        out, ctx.opened = calls.open(indices, offsets, weights, order)
        ctx.calls = calls
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Update; the anchor's gradient is infinite where a scaled gradient was."""
        if torch.is_grad_enabled():
            raise RuntimeError(_NO_GRAPH)
        if grads[0] is None:  # no gradient reaches the rows, not even decay
            ctx.opened[0].drop()
            return None, None, None, None, None, None
        weight_grad, done = ctx.calls.update(ctx.opened, grads[0])
        lost = None if done else _anchor_grad(torch.inf)
        return lost, weight_grad, None, None, None, None


# ---- operators -----------------------------------------------------------------------------------
#
# A ticket travels from one operator to the other as a tensor of one zero, known by its address: it
# may be neither copied nor kept by value. The ticket lives as long as the tensor's memory.

_tickets: dict[int, tuple[Opened, weakref.ref[Any]]] = {}


def _ticket_tensor(opened: Opened) -> Tensor:
    memory = np.zeros(1, np.int64)
    address = memory.ctypes.data

    def forget(_: object, tickets: dict[int, Any] = _tickets) -> None:
        tickets.pop(address, None)

    _tickets[address] = opened, weakref.ref(memory, forget)
    return torch.from_numpy(memory)


def opened_by(ticket: Tensor) -> Opened:
    """Return the forward that a ticket's tensor stands for."""
    found = _tickets.get(ticket.data_ptr())
    if found is None:
        raise RuntimeError(
            "the ticket of this backward is not known: its tensor was copied, for instance by "
            "saved-tensor hooks, or no forward made it"
        )
    return found[0]


@torch.library.custom_op(
    "mpembed::lookup",
    mutates_args=(),
    schema="(Tensor anchor, Tensor indices, Tensor offsets, Tensor? weights, int handle, "
    "int[] order, bool training, SymInt rows, int width) -> (Tensor, Tensor)",
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
) -> tuple[Tensor, Tensor]:
    """Look up (rows, width) values in the tables of a handle; return them and a ticket."""
    calls = live(handle)
    if weights is not None:
        weights = weights.detach()
    if not training:
        out = calls.evaluate(indices, offsets, weights, order)
        return out, torch.zeros(1, dtype=torch.int64, device="cpu")
    out, opened = calls.open(indices, offsets, weights, order)
    return out, _ticket_tensor(opened)


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
) -> tuple[Tensor, Tensor]:
    out = indices.new_empty((rows, width), dtype=torch.float32)
    return out, torch.empty(1, dtype=torch.int64, device="cpu")


@torch.library.custom_op(
    "mpembed::update",
    mutates_args=(),
    schema="(Tensor grad, Tensor ticket, int handle, SymInt weights) -> (Tensor, Tensor)",
)
def update(grad: Tensor, ticket: Tensor, handle: int, weights: int) -> tuple[Tensor, Tensor]:
    """Update the rows of a ticket; return the gradients of the anchor and of the weights."""
    weight_grad, done = live(handle).update(opened_by(ticket), grad.detach())
    if weight_grad is None:
        weight_grad = grad.new_empty(0, dtype=torch.float32)
    return _anchor_grad(0.0 if done else torch.inf), weight_grad


@update.register_fake
def _(grad: Tensor, ticket: Tensor, handle: int, weights: int) -> tuple[Tensor, Tensor]:
    anchor = torch.empty((), dtype=torch.float32, device="cpu")
    return anchor, grad.new_empty((weights,), dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.handle = inputs[4]
    ctx.weights = None if inputs[3] is None else inputs[3].shape[0]
    ctx.training = inputs[6]


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    if not ctx.training:
        raise RuntimeError("a lookup with training=False has no backward")
    count = 0 if ctx.weights is None else ctx.weights
    ops = torch.ops.mpembed
    anchor, weight_grad = ops.update(grad, ctx.saved_tensors[0], ctx.handle, count)
    weights = None if ctx.weights is None else weight_grad
    return anchor, None, None, weights, None, None, None, None, None


lookup.register_autograd(_backward, setup_context=_setup)

# What they change lies outside of tensors: a compiler may not drop, merge or reorder their calls.
COMPILES = hasattr(lookup, "register_effect")
if COMPILES:
    from torch._library.effects import EffectType

    for _op in (lookup, update):
        _op.register_effect(EffectType.ORDERED)
