"""The same test on every device: calls with NumPy arrays, whatever device they run on.

`use` says which one; the fixture `each_device` calls it. On a device, arrays are copied there and
results back, and errors that are found later are asked for at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import mpembed as mpe
from mpembed.collection import collection_state

_device = "cpu"


def use(device: str) -> None:
    """Make collections on this device from now on."""
    global _device
    _device = device


def used() -> str:
    """Return the device in use."""
    return _device


def make(tables: Any, **options: Any) -> Any:
    """Return a collection on the device in use."""
    emb = mpe.EmbeddingBagCollection(tables, **{"device": _device} | options)
    return emb if emb.device == "cpu" else OnDevice(emb)


def send(value: Any) -> Any:
    """Copy NumPy arrays to the device in use, in dicts, lists and tuples as well."""
    if isinstance(value, np.ndarray):
        return mpe.to_device(value, _device)
    if isinstance(value, Mapping):
        return {key: send(one) for key, one in value.items()}
    if isinstance(value, list):
        return [send(one) for one in value]
    return tuple(map(send, value)) if isinstance(value, tuple) else value


def fetch(value: Any) -> Any:
    """Copy tensors to NumPy arrays, in dicts, lists and tuples as well."""
    if isinstance(value, mpe.Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {key: fetch(one) for key, one in value.items()}
    if isinstance(value, list):
        return [fetch(one) for one in value]
    return tuple(map(fetch, value)) if isinstance(value, tuple) else value


class OnDevice:
    """A collection on a device, called with NumPy arrays."""

    def __init__(self, emb: mpe.EmbeddingBagCollection) -> None:
        self.emb = emb
        self._prefetched: dict[Any, tuple[Any, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.emb, name)

    def _batch(self, indices: Any, offsets: Any, *, keep: bool) -> tuple[Any, Any]:
        """Send a batch; one that was prefetched lies where it lay then."""
        if not isinstance(indices, np.ndarray):
            return send(indices), send(offsets)
        key = self._contents(indices, offsets)
        sent = self._prefetched.get(key) or (send(indices), send(offsets))
        if keep:
            self._prefetched[key] = sent
        return sent

    def _contents(self, indices: Any, offsets: Any) -> tuple[bytes, bytes]:
        """Return what makes two batches the same to the CPU, where all dropped indices are."""
        size = (len(offsets) - 1) // len(self.emb.tables)
        counts = np.diff(offsets[:: size or 1]) if size else 0
        rows = np.repeat([table.num_embeddings for table in self.emb.tables], counts)
        values = indices.astype(np.int64)
        values = np.where((values < 0) | (values >= rows), -1, values)
        return values.tobytes(), offsets.astype(np.int64).tobytes()

    def prefetch(self, indices: Any, offsets: Any = None) -> Any:
        ticket = self.emb.prefetch(*self._batch(indices, offsets, keep=True))
        self.emb.check()
        return ticket

    def forward(
        self, indices: Any, offsets: Any = None, weights: Any = None, **options: Any
    ) -> Any:
        batch = self._batch(indices, offsets, keep=False)
        result = self.emb.forward(*batch, send(weights), **options)
        self.emb.check()
        return fetch(result)

    def backward(self, grad: Any, ticket: Any = None, **options: Any) -> Any:
        result = self.emb.backward(send(grad), ticket, **options)
        self.emb.check()
        return fetch(result)

    def weight_grad(self, grad: Any, ticket: Any = None) -> Any:
        return fetch(self.emb.weight_grad(send(grad), ticket))

    def rows(self, name: str, ids: Any) -> Any:
        return fetch(self.emb.rows(name, send(np.asarray(ids))))

    def set_rows(self, name: str, ids: Any, values: Any) -> None:
        self.emb.set_rows(name, send(ids), send(values))

    def state(self, name: str, ids: Any) -> Any:
        return fetch(self.emb.state(name, send(ids)))

    def set_state(self, name: str, ids: Any, states: Any) -> None:
        self.emb.set_state(name, send(ids), send(states))

    def state_arrays(self) -> Any:
        return fetch(self.emb.state_arrays())


def poke(emb: Any, name: str, values: Any) -> None:
    """Overwrite one of a collection's arrays."""
    state = collection_state(emb)
    stored = state.arrays()[name]
    stored.write(0, np.asarray(values, stored.dtype).reshape(stored.shape), state.engine.calls.last)


def set_step(emb: Any, step: int) -> None:
    """Let the write step go on from here."""
    state = collection_state(emb)
    with state.writing() as on:
        state.set_counters(state.counters(on)._replace(step=step), on)
