"""The lookups of a module's collection: tensors in, tensors out."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from mpembed._collection.state import CollectionState
from mpembed.collection import EmbeddingBagCollection, collection_state
from mpembed.tickets import Ticket
from mpembed.torch._backward_pass import PassOptimizer
from mpembed.torch._batch import PreparedBatch, prepare
from mpembed.torch._exchange import tensor_of
from mpembed.torch._pending import Pending
from mpembed.torch._replicas import Replicas, replicas_of

#: Of a lookup: a tensor, or one of each table where one of several is unpooled.
Outputs: TypeAlias = Tensor | tuple[Tensor, ...]

#: Types of outputs and gradients that the kernels write and read themselves.
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class AttachedOptimizer(PassOptimizer, Protocol):
    """What a backward asks of the optimizer that its module is attached to."""

    @property
    def scales(self) -> bool:
        """Whether the loss is scaled."""

    @property
    def defers(self) -> bool:
        """Whether the update waits for the optimizer's step."""

    def unscale(self, grad: Tensor) -> Tensor | None:
        """Return a gradient without the loss's scale; None where it is not finite."""


class OpenForward:
    """A training forward that waits for its backward.

    Attributes
    ----------
    ticket : Ticket or None
        The collection's, of the open batch. None where the update will not come before the end of
        a step: then the rows are not pinned.
    batch : PreparedBatch
        What was looked up.
    number : int
        Forwards are numbered in the order of their calls.
    """

    __slots__ = ("batch", "number", "ticket")

    def __init__(self, ticket: Ticket | None, batch: PreparedBatch) -> None:
        self.ticket, self.batch = ticket, batch
        self.number = next(_forwards)

    def drop(self) -> None:
        """Unpin the rows, if they are pinned."""
        if self.ticket is not None:
            self.ticket.drop()


class ForwardCalls:
    """The half of `ModuleCalls` that looks up.

    Parameters
    ----------
    collection : mpembed.EmbeddingBagCollection
        The tables.
    clip_value, clip_norm : float or None
        Limits of the gradient of an output.
    padding_idx : int or None
        The row that is neither pooled nor updated, of the only table.

    Attributes
    ----------
    pending : Pending
        Lookups whose update waits for a step.
    reads : set
        Of all rows as a tensor, as long as a backward may come; modules that share a collection
        share it.
    sharded : bool
        Whether each process has other rows: then a data-parallel model around the module does not
        make them replicas. Set by who shards tables.
    """

    __slots__ = (
        "__weakref__",
        "_device",
        "_engine",
        "_gradient_as_is",
        "_groups",
        "_names",
        "_optimizer",
        "_pools",
        "_replicas",
        "clip_norm",
        "clip_value",
        "collection",
        "padding_idx",
        "pending",
        "reads",
        "sharded",
    )

    def __init__(
        self,
        collection: EmbeddingBagCollection,
        clip_value: float | None = None,
        clip_norm: float | None = None,
        padding_idx: int | None = None,
    ) -> None:
        self.collection = collection
        self._engine = collection_state(collection).engine
        tables = collection.tables
        self._pools = all(table.pooling != "none" for table in tables)
        self._names = tuple(table.name for table in tables)
        self._device = None if collection.device == "cpu" else torch.device(collection.device)
        self._optimizer: weakref.ref[AttachedOptimizer] | None = None
        self._groups: tuple[int, ...] = ()
        self._replicas: Replicas | None = None
        self.padding_idx, self.sharded = padding_idx, False
        self.pending = Pending(collection)
        self.reads = _reads.setdefault(collection_state(collection), weakref.WeakSet())
        self.set_clipping(clip_value, clip_norm)

    def set_clipping(self, value: float | None, norm: float | None) -> None:
        """Set the limits of the gradient of an output."""
        self.clip_value, self.clip_norm = value, norm
        self._gradient_as_is = self._optimizer is None and value is None and norm is None

    @property
    def optimizer(self) -> AttachedOptimizer | None:
        """The attached optimizer, if it still exists."""
        return None if self._optimizer is None else self._optimizer()

    def attach_optimizer(self, optimizer: AttachedOptimizer, groups: Sequence[int]) -> None:
        """Take learning rates and scale from an optimizer's groups as long as it lives."""
        pending = self.pending  # what waits for its step is gone with it
        callback = (lambda _: pending.clear()) if optimizer.defers else None
        self._optimizer = weakref.ref(optimizer, callback)
        self._groups = tuple(groups)
        self._gradient_as_is = False

    # ---- forward ---------------------------------------------------------------------------

    def _stream(self) -> Any:
        return None if self._device is None else torch.cuda.current_stream(self._device)

    def current_stream(self) -> int | None:
        """Return the handle of PyTorch's current stream on the tables' device."""
        return None if self._device is None else int(self._stream().cuda_stream)

    def _outputs(self, result: Any) -> Outputs:
        if self._pools:
            return tensor_of(result)
        found = tuple(tensor_of(result[name]) for name in self._names)
        return found if len(found) > 1 else found[0]

    def evaluate(
        self,
        indices: Tensor,
        offsets: Tensor,
        weights: Tensor | None,
        order: Sequence[int],
        dtype: torch.dtype,
    ) -> Outputs:
        """Look up without any change of state.

        Parameters
        ----------
        indices, offsets, weights, order
            `order` as in `_feature_order`.
        dtype : torch.dtype
            The output's, one that it `gives`.
        """
        padding = self.padding_idx if self._pools else None  # the row itself is read as it is
        batch = prepare(indices, offsets, weights, order, padding)
        return self._outputs(self._forward(batch, indices, offsets, dtype, training=False))

    def gives(self, dtype: torch.dtype) -> bool:
        """Whether lookups give this type by themselves."""
        # One of several unpooled outputs has a size that only the collection knows.
        return dtype in KERNEL_DTYPES and (self._pools or len(self._names) == 1)

    def _room(self, batch: PreparedBatch, dtype: torch.dtype) -> Any:
        """Return memory for an output that the collection does not make itself."""
        if dtype is torch.float32:
            return None
        device, width = batch.indices.device, self._engine.width
        if width is not None:
            bags = (batch.offsets.shape[0] - 1) // len(self._names)
            return torch.empty((bags, width), dtype=dtype, device=device)
        shape = batch.indices.shape[0], self.collection.tables[0].embedding_dim
        return {self._names[0]: torch.empty(shape, dtype=dtype, device=device)}

    def _forward(
        self,
        batch: PreparedBatch,
        indices: Tensor,
        offsets: Tensor,
        dtype: torch.dtype,
        **kind: Any,
    ) -> Any:
        """Look up; an error speaks of the caller's indices and offsets."""
        forward, stream = self.collection.forward, self.current_stream()
        out = self._room(batch, dtype)
        try:
            return forward(batch.indices, batch.offsets, batch.weights, out, stream, **kind)
        except IndexError:
            if batch.padded:
                forward(indices.contiguous(), offsets.contiguous(), stream=stream, training=False)
            raise

    def train_forward(
        self,
        indices: Tensor,
        offsets: Tensor,
        weights: Tensor | None,
        order: Sequence[int],
        dtype: torch.dtype,
    ) -> tuple[Outputs, OpenForward]:
        """Look up a training batch; its rows are pinned until `backward` or its ticket's end.

        `dtype` as in `evaluate`.
        """
        self.meet_replicas()
        batch = prepare(indices, offsets, weights, order, self.padding_idx)
        if self._keeps():
            if self._pools or not batch.padded:
                result = self._forward(batch, indices, offsets, dtype, training=False)
                out = self._outputs(result)
            else:
                out = self.evaluate(indices, offsets, weights, order, dtype)
            return out, OpenForward(None, batch.kept_for_later())
        result, ticket = self._forward(batch, indices, offsets, dtype, ticket=True)
        # The autograd graph alone decides how long the batch stays open.
        self._engine.detach(ticket)
        found = self._outputs(result)
        if batch.padded and not self._pools and isinstance(found, Tensor):
            found = batch.among_padding(found, self._padding_row().to(found.dtype))
        return found, OpenForward(ticket, batch)

    def meet_replicas(self) -> None:
        """See whether a data-parallel model's forward is running."""
        if self.sharded:
            return
        self._replicas = replicas_of(self._replicas, self.collection)
        if self._replicas is not None and self.optimizer is not None and self.optimizer.scales:
            # A process that skips its gradients would leave the others waiting for them.
            raise RuntimeError(
                "a FusedOptimizer with update='backward' and a grad_scaler does not work under "
                "DistributedDataParallel: use update='step' and scaler.step(optimizer)"
            )

    @property
    def has_replicas(self) -> bool:
        """Whether the module is part of a data-parallel model."""
        return self._replicas is not None

    @property
    def defers(self) -> bool:
        """Whether the update waits for an optimizer's step."""
        optimizer = self.optimizer
        return optimizer is not None and optimizer.defers

    def _keeps(self) -> bool:
        """Whether lookups are kept for a later update, so that their rows are not pinned."""
        return self._replicas is not None or self.defers

    def _padding_row(self) -> Tensor:
        ids = torch.tensor([self.padding_idx], dtype=torch.int64, device=self._device or "cpu")
        return tensor_of(self.collection.rows(self._names[0], ids, stream=self.current_stream()))


_forwards = itertools.count()
_reads: weakref.WeakKeyDictionary[CollectionState, weakref.WeakSet[Any]]
_reads = weakref.WeakKeyDictionary()
