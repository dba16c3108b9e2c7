"""The overhead of mpembed.torch over bare calls, and of a torch tensor over a NumPy array.

The batch is one bag of one index, so nearly all of the time is the overhead of the calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import ours
import peers
import pytest
from rounds import OURS
from test_call import CALLS, INDEX, OFFSETS, SHAPE, Call, repeated

BARE, NUMPY = "bare calls", "NumPy arguments"
ARGUMENTS = 2  # of a forward


def tensors() -> tuple[Any, Any, Any]:
    torch = peers.torch()
    grad = torch.ones(1, SHAPE.dim)
    return torch.from_numpy(INDEX), torch.from_numpy(OFFSETS), grad


def module() -> Call:
    """Train with the module: autograd calls the update."""
    peers.torch()
    from mpembed.torch import EmbeddingBag

    index, offsets, grad = tensors()
    bag = EmbeddingBag.from_collection(ours.collection(SHAPE, "int4"), include_last_offset=True)
    return lambda: (bag(index, offsets) * 1.0).backward(grad)


def bare_in_a_loop() -> Call:
    """Train with PyTorch and the collection, as the guide shows."""
    torch, emb = peers.torch(), ours.collection(SHAPE, "int4")
    index, offsets, grad = tensors()

    def step() -> None:
        out = torch.from_numpy(emb.forward(index, offsets)).requires_grad_()
        (out * 1.0).backward(grad)
        emb.backward(out.grad)

    return step


def without_autograd() -> Call:
    """Make the two calls alone."""
    emb = ours.collection(SHAPE, "int4")
    index, offsets, grad = tensors()

    def step() -> None:
        emb.forward(index, offsets)
        emb.backward(grad)

    return step


def torchs_own() -> Call:
    torch = peers.torch()
    index, offsets, grad = tensors()
    bag = torch.nn.EmbeddingBag(SHAPE.rows, SHAPE.dim, mode="sum", include_last_offset=True)
    return lambda: (bag(index, offsets) * 1.0).backward(grad)


def lookup(indices: Any, offsets: Any) -> Callable[[], Call]:
    def build() -> Call:
        emb, out = ours.collection(SHAPE, "int4"), np.empty((1, SHAPE.dim), np.float32)
        return lambda: emb.forward(indices, offsets, out=out, training=False)

    return build


def test_step_of_a_module(benchmark: Any, arena: Any) -> None:
    pytest.importorskip("torch")
    entries = [
        repeated(OURS, module),
        repeated(BARE, bare_in_a_loop),
        repeated("the calls without autograd", without_autograd),
        repeated("torch nn.EmbeddingBag", torchs_own),
    ]
    what = {"operation": "module step", "threads": 1}
    arena.compare(benchmark, "module", what, CALLS, entries)


def test_argument(benchmark: Any, arena: Any) -> None:
    pytest.importorskip("torch")
    index, offsets, _ = tensors()
    entries = [
        repeated(OURS, lookup(index, offsets)),
        repeated(NUMPY, lookup(INDEX, OFFSETS)),
    ]
    what = {"operation": "argument", "threads": 1, "arguments": ARGUMENTS}
    arena.compare(benchmark, "module", what, CALLS * ARGUMENTS, entries)
