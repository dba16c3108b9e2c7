"""A collection whose calls are part of compiled programs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from mpembed._bindings.xla import DIGITS, Handle
from mpembed.collection import EmbeddingBagCollection, collection_state
from mpembed.jax import _primitives
from mpembed.jax._layout import Batch, JitTicket, Layout, Shape

Array = Any
_STATE = ((DIGITS,), "float32")
_TICKET = ((DIGITS,), "int32")


class JitCollection:
    """A collection's forward, backward and evaluation inside ``jax.jit``.

    Parameters
    ----------
    collection : mpembed.EmbeddingBagCollection
        On the device of the programs; used, not copied. Make one JitCollection of it: the states of
        two do not order each other's programs. Its tables are pooled, or there is one table alone.

    Notes
    -----
    The tables stay where they are and change in place. A program gets a *state*, four numbers that
    name the collection and its version, and gives the next one; that is what orders its calls. Each
    state is good for one forward and its update: another use is a `StaleStateError`, and nothing
    changes.

    Errors in a program, that one too, arrive as ``jax.errors.JaxRuntimeError`` or ``ValueError``
    with the text of the collection's own error: at the call, or where its results are waited for.
    After one, take a new `state`.

    On a CUDA device the host does not wait to read a state: a stale one is found after its call was
    made, and raised by a later call, `collection` or `state`.
    """

    def __init__(self, collection: EmbeddingBagCollection) -> None:
        if not isinstance(collection, EmbeddingBagCollection):
            raise TypeError(
                "collection must be a mpembed.EmbeddingBagCollection, got "
                f"{type(collection).__name__}"
            )
        self._layout = Layout(collection.tables)
        engine = collection_state(collection).engine
        self._collection = collection
        self._handle = Handle(collection, engine.calls, engine.detach, self._layout.unpooled)
        ordinal = 0 if collection.device == "cpu" else self._handle.ordinal
        self._home = _primitives.Home(collection.device, ordinal)

    def state(self) -> Array:
        """Return a new state, float32 (4,), for the next program.

        Every earlier one becomes stale, and forwards without a backward are dropped. It waits for a
        running call, not for programs that have been started and not yet run: wait for those first.

        Raises
        ------
        StaleStateError
            On a device, if a program got a stale state and no call has raised that yet.
        """
        return jax.device_put(self._handle.new_state())

    def collection(self, state: Array) -> EmbeddingBagCollection:
        """Wait for the program that gives a state, and return the collection as it is then.

        For `stats`, `save`, `rows` and all other calls; they are ordered behind the program.

        Raises
        ------
        StaleStateError
            If it is not the latest state; on a device, also if an earlier program got a stale one.
        """
        self._handle.check_state(np.asarray(state))
        return self._collection

    def lookup(
        self, state: Array, indices: Array, offsets: Array, per_sample_weights: Array | None = None
    ) -> Array:
        """Look up and pool a batch for training, in a function that is differentiated.

        The backward updates the rows. The gradient with regard to `state` is the next state.

        Parameters
        ----------
        state : float32 (4,)
            The latest one. The loss must be differentiated with regard to it.
        indices, offsets, per_sample_weights
            As in `mpembed.EmbeddingBagCollection.forward`; int32, or int64 where JAX has them.

        Returns
        -------
        float32 (B, sum of D)
            Or (N, D) of one unpooled table.

        Raises
        ------
        TypeError, ValueError
            While the function is traced.
        """
        return self.lookups(state, [(indices, offsets, per_sample_weights)])[0]

    def lookups(self, state: Array, batches: Sequence[tuple[Array, ...]]) -> tuple[Array, ...]:
        """Look up several batches, which are trained in one update.

        Parameters
        ----------
        state
            As in `lookup`.
        batches : sequence of (indices, offsets) or (indices, offsets, per_sample_weights)
            At most 16; they may differ in size. Each row's gradient is summed over all of them.

        Returns
        -------
        tuple
            An output for each.
        """
        checked = self._layout.batches(batches)
        shapes = tuple(self._layout.output(batch) for batch in checked)
        return tuple(_lookups(shapes, self._home, self._layout.state(state), checked))

    def forward(
        self,
        state: Array | JitTicket,
        indices: Array,
        offsets: Array,
        per_sample_weights: Array | None = None,
    ) -> tuple[Array, JitTicket]:
        """Look up and pool a batch that a `backward` will train.

        Parameters
        ----------
        state : float32 (4,) or JitTicket
            The latest state; or the ticket of the forward before, to train both in one update.
        indices, offsets, per_sample_weights
            As in `lookup`.

        Returns
        -------
        output : float32 (B, sum of D)
            As in `lookup`.
        ticket : JitTicket
            For `backward`.
        """
        (batch,) = self._layout.batches([(indices, offsets, per_sample_weights)])
        first = self._layout.state_or_ticket(state)
        return _forward(self._layout.output(batch), self._home, first, batch)

    def backward(
        self,
        grad: Array | Sequence[tuple[Array, JitTicket]],
        ticket: JitTicket | None = None,
    ) -> tuple[Array, Any]:
        """Update the rows of all forwards since the last update, once.

        Parameters
        ----------
        grad : float32 (B, sum of D), or list of (gradient, ticket)
            The gradient of the output; or one for each forward since the last update, in their
            order.
        ticket : JitTicket, optional
            The forward's, where `grad` is no list.

        Returns
        -------
        state : float32 (4,)
            The next one.
        weight_grad : None, float32 (N,) or list
            The gradient of the per-sample weights, as `mpembed.EmbeddingBagCollection.backward`
            returns it.
        """
        if not isinstance(grad, list | tuple):
            state, (weight_grad,) = _backward(self._home, [self._pair("grad", grad, ticket)])
            return state, weight_grad
        if ticket is not None:
            raise TypeError("ticket must be None where grad is a list of (gradient, ticket)")
        if not grad or not all(map(_is_pair, grad)):
            raise TypeError("grad must be a gradient, or a list of (gradient, ticket), not empty")
        pairs = [self._pair(f"grad[{i}]", *pair) for i, pair in enumerate(grad)]
        return _backward(self._home, pairs)

    def _pair(self, name: str, grad: Any, ticket: Any) -> tuple[Array, JitTicket]:
        """Return a checked pair; `name` is the gradient's."""
        self._layout.ticket(ticket)
        return self._layout.gradient(name, grad), ticket

    def evaluate(
        self,
        state: Array,
        indices: Array,
        offsets: Array,
        per_sample_weights: Array | None = None,
    ) -> tuple[Array, Array]:
        """Look up and pool a batch, changing nothing.

        Parameters
        ----------
        state, indices, offsets, per_sample_weights
            As in `lookup`; nothing is differentiated.

        Returns
        -------
        output : float32 (B, sum of D)
            As in `lookup`.
        state : float32 (4,)
            The same state. A later call of the same program takes this one, to come after.
        """
        (batch,) = self._layout.batches([(indices, offsets, per_sample_weights)])
        results = (self._layout.output(batch), _STATE)
        checked = self._layout.state(state)
        output, after = _primitives.evaluate.bind(checked, *batch, results=results, home=self._home)
        return output, after

    def __repr__(self) -> str:
        return f"JitCollection({self._collection!r})"


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple | list) and len(given) == 2


def _forward(
    output: tuple[Shape, str], home: _primitives.Home, first: Array, batch: Batch
) -> tuple[Array, JitTicket]:
    results = (output, _TICKET)
    pooled, digits = _primitives.forward.bind(first, *batch, results=results, home=home)
    return pooled, JitTicket(digits, batch[2].shape[0] if len(batch) > 2 else None)


def _backward(
    home: _primitives.Home, pairs: Sequence[tuple[Array, JitTicket]]
) -> tuple[Array, list[Array | None]]:
    """Return the next state, and the gradient of the weights of each forward that had them."""
    counts = [ticket.num_weights for _, ticket in pairs]
    weights = tuple(((count,), "float32") for count in counts if count is not None)
    operands = [array for grad, ticket in pairs for array in (ticket.digits, grad)]
    results = (_STATE, *weights)
    state, *found = _primitives.backward.bind(*operands, results=results, home=home)
    given = iter(found)
    return state, [None if count is None else next(given) for count in counts]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _lookups(
    outputs: _primitives.Results,
    home: _primitives.Home,
    state: Array,
    batches: tuple[Batch, ...],
) -> tuple[Array, ...]:
    arrays = [array for batch in batches for array in batch]
    return tuple(_primitives.lookup.bind(state, *arrays, results=outputs, home=home))


def _lookups_forward(
    outputs: _primitives.Results,
    home: _primitives.Home,
    state: Array,
    batches: tuple[Batch, ...],
) -> tuple[tuple[Array, ...], tuple[JitTicket, ...]]:
    pooled, tickets, first = [], [], state
    for output, batch in zip(outputs, batches, strict=True):
        one, ticket = _forward(output, home, first, batch)
        pooled.append(one)
        tickets.append(ticket)
        first = ticket.digits
    return tuple(pooled), tuple(tickets)


def _lookups_backward(
    outputs: _primitives.Results,
    home: _primitives.Home,
    tickets: tuple[JitTicket, ...],
    grads: tuple[Array, ...],
) -> tuple[Array, tuple[tuple[Array | None, ...], ...]]:
    """Update the rows; the gradient of the state is the next one."""
    del outputs
    state, weight_grads = _backward(home, list(zip(grads, tickets, strict=True)))
    return state, tuple(
        (None, None) if grad is None else (None, None, grad) for grad in weight_grads
    )


_lookups.defvjp(_lookups_forward, _lookups_backward)
