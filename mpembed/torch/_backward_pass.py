"""One backward pass of autograd: the lookups that it reaches are updated once, at its end."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.profiler import record_function

from mpembed._bindings.contract import MAX_GRADIENTS
from mpembed.collection import EmbeddingBagCollection
from mpembed.errors import NonFiniteUpdateError
from mpembed.tickets import Ticket
from mpembed.torch._kept_lookups import Lookup, Values

_number_of_pass = torch._C._current_graph_task_id
_will_run = torch._C._will_engine_execute_node
_profiling = torch._C._autograd._profiler_enabled


class PassOptimizer(Protocol):
    """What the end of a pass asks of the optimizer that a module is attached to."""

    def apply_lr(self, group: int) -> None:
        """Give the learning rate of a group of parameters to the tables of the group."""


class PassCalls(Protocol):
    """What the end of a pass asks of the calls of a module whose lookups it keeps."""

    def keep(self, number: int, lookup: Lookup) -> None:
        """Keep a lookup until all of a step, or of all replicas, are there."""

    def end_of_pass(self) -> bool:
        """Gather those of all replicas; return whether to update, and not at a step."""

    def update_all(self, several: Sequence[Any], stream: int | None) -> None:
        """Make one update from what the calls of modules with one collection have kept."""


class Waiting(NamedTuple):
    """A lookup whose gradient is known and whose update waits for the end of the pass.

    Attributes
    ----------
    number : int
        Forwards are numbered in the order of their calls.
    calls : PassCalls
        Of the module.
    collection : mpembed.EmbeddingBagCollection
        Whose rows are updated.
    ticket : Ticket or None
        Of the forward; None where its rows are not pinned, and `lookup` has the batch.
    lookup : Lookup or None
        The batch, if there is no ticket.
    grads : sequence of Tensor
        Memory that nobody else writes to: kept longer than autograd promises to leave it alone.
    values : Tensor or dict of str -> Tensor
        The same as the collection takes it.
    stream : torch.cuda.Stream or None
        On which the gradient was computed.
    optimizer : PassOptimizer or None
        The attached one.
    groups : sequence of int
        Its groups with tables of the collection.
    keep : bool
        Whether the update waits longer than for the end of this pass.
    """

    number: int
    calls: PassCalls
    collection: EmbeddingBagCollection
    ticket: Ticket | None
    lookup: Lookup | None
    grads: Sequence[Tensor]
    values: Values
    stream: Any
    optimizer: PassOptimizer | None
    groups: Sequence[int]
    keep: bool

    def drop(self) -> None:
        """Unpin the rows, if they are pinned."""
        if self.ticket is not None:
            self.ticket.drop()


class BackwardPass:
    """What waits for the end of one pass.

    Autograd alone keeps it, as a callback. If the pass raises, it dies with the pass: nothing is
    updated, and the forwards stay open as long as their graph.
    """

    __slots__ = ("__weakref__", "_overflowed", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []
        self._overflowed: list[PassOptimizer] = []

    def add(self, lookup: Waiting) -> None:
        """Update the rows of a lookup at the end."""
        self._waiting.append(lookup)

    def skip(self, optimizer: PassOptimizer) -> None:
        """Update no table of this optimizer: a scaled gradient was not finite."""
        self._overflowed.append(optimizer)

    def finish(self) -> None:
        """Update each collection once, from its lookups in the order of their forwards.

        The first MAX_GRADIENTS make one update, the next another. A NonFiniteUpdateError is raised
        when all have been updated.
        """
        if _profiling():
            with record_function("mpembed::update"):
                self._finish()
        else:
            self._finish()

    def _finish(self) -> None:
        waiting, self._waiting = sorted(self._waiting, key=lambda one: one.number), []
        kept: dict[int, Waiting] = {}
        by_collection: dict[int, list[Waiting]] = {}
        for one in waiting:
            if any(one.optimizer is optimizer for optimizer in self._overflowed):
                one.drop()
            elif one.keep and one.lookup is not None:
                one.calls.keep(one.number, one.lookup)
                kept[id(one.calls)] = one
            else:
                if one.optimizer is not None:
                    for group in one.groups:
                        one.optimizer.apply_lr(group)
                by_collection.setdefault(id(one.collection), []).append(one)
        error: NonFiniteUpdateError | None = None
        for lookups in by_collection.values():
            for start in range(0, len(lookups), MAX_GRADIENTS):
                try:
                    _update(lookups[start : start + MAX_GRADIENTS])
                except NonFiniteUpdateError as found:
                    error = found if error is None else error
        due: dict[int, list[Waiting]] = {}
        for one in kept.values():
            if one.calls.end_of_pass():
                due.setdefault(id(one.collection), []).append(one)
        for several in due.values():
            first = several[0]
            try:
                first.calls.update_all([one.calls for one in several], _handle(first.stream))
            except NonFiniteUpdateError as found:
                error = found if error is None else error
        if error is not None:
            raise error


def _handle(stream: Any) -> int | None:
    return None if stream is None else int(stream.cuda_stream)


def _update(lookups: list[Waiting]) -> None:
    """Make one update from lookups of one collection."""
    first = lookups[0]
    if first.stream is not None:
        for one in lookups[1:]:
            if one.stream != first.stream:
                first.stream.wait_stream(one.stream)
                for grad in one.grads:
                    grad.record_stream(first.stream)
    stream = _handle(first.stream)
    pairs = [(one.values, _ticket(one, stream)) for one in lookups]
    first.collection.backward(pairs, stream=stream, weight_grad=False)


def _ticket(one: Waiting, stream: int | None) -> Ticket:
    """Return the ticket of a lookup; make one where its rows are not pinned yet."""
    if one.ticket is not None:
        return one.ticket
    if one.lookup is None:
        raise AssertionError("a lookup without a ticket has its batch")
    batch = one.lookup
    made: Ticket
    _, made = one.collection.forward(
        batch.indices, batch.offsets, batch.weights, stream=stream, ticket=True
    )
    return made


_passes: weakref.WeakValueDictionary[int, BackwardPass] = weakref.WeakValueDictionary()
_lock = threading.Lock()  # of one pass, several threads may be running: one a device


def _is_compiled_pass() -> bool:
    """Whether compiled autograd runs the pass: it calls no callbacks at the end."""
    module = sys.modules.get("torch._dynamo.compiled_autograd")
    return module is not None and bool(module.in_compiled_autograd_region)


def adds_gradient(node: Any) -> bool:
    """Whether the pass adds to the gradient of a function's first input, a parameter.

    False where the gradients of others alone were asked for. RuntimeError where the gradient is to
    be returned.
    """
    if _number_of_pass() < 0 or _is_compiled_pass():
        return True
    try:
        return bool(_will_run(node.next_functions[0][0]))
    except RuntimeError:
        raise RuntimeError(
            "torch.autograd.grad cannot return the gradient of tables, which waits for the step of "
            "their FusedOptimizer: leave module.anchor out of its inputs, or call backward()"
        ) from None


def current_pass() -> BackwardPass | None:
    """Return the backward pass that this thread is in; None where its end is not known."""
    number = _number_of_pass()
    if number < 0 or _is_compiled_pass():
        return None
    with _lock:
        found = _passes.get(number)
        if found is None:
            found = _passes[number] = BackwardPass()
            torch.autograd.Variable._execution_engine.queue_callback(found.finish)
    return found
