"""The overhead of a call through Python and DLPack: the batch is one bag of one index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fbgemm_peer
import numpy as np
import ours
import peers
import pytest
from arena import Entry
from rounds import OURS, Contender
from workloads import Shape

import mpembed as mpe

SHAPE = Shape(1, 1000, 64, 1, bags=1)
CALLS = 200
INDEX, OFFSETS = np.array([17]), np.array([0, 1])
Call = Callable[[], Any]


def repeated(name: str, build: Callable[[], Call]) -> Entry:
    """Return an entry that makes many calls a round."""

    def join(call: Call) -> Contender:
        def run(_: int) -> None:
            for _ in range(CALLS):
                call()

        return Contender(name, run)

    return Entry(name, (name, build), build, join)


def with_numpy() -> Call:
    emb = ours.collection(SHAPE, "int4")
    return lambda: emb.forward(INDEX, OFFSETS, training=False)


def with_torch() -> Call:
    torch = peers.torch()
    emb, out = ours.collection(SHAPE, "int4"), torch.empty(1, SHAPE.dim)
    index, offsets = torch.from_numpy(INDEX), torch.from_numpy(OFFSETS)
    return lambda: emb.forward(index, offsets, out=out, training=False)


def stateless() -> Call:
    rows = mpe.ops.quantize(np.ones((SHAPE.rows, SHAPE.dim), np.float32), "int4")
    return lambda: mpe.ops.embedding_bag(rows, "int4", SHAPE.dim, INDEX, OFFSETS)


def torch_module() -> Call:
    torch = peers.torch()
    bag = torch.nn.EmbeddingBag(
        SHAPE.rows, SHAPE.dim, mode="sum", include_last_offset=True
    ).requires_grad_(False)
    index, offsets = torch.from_numpy(INDEX), torch.from_numpy(OFFSETS)
    return lambda: bag(index, offsets)


def torch_quantized() -> Call:
    torch = peers.torch()
    ops = torch.ops.quantized
    rows = ops.embedding_bag_4bit_prepack(torch.ones(SHAPE.rows, SHAPE.dim))
    lookup = ops.embedding_bag_4bit_rowwise_offsets
    index, offsets = torch.from_numpy(INDEX), torch.from_numpy(OFFSETS)
    return lambda: lookup(rows, index, offsets, include_last_offset=True)


def fbgemm_module() -> Call:
    torch, bag = peers.torch(), fbgemm_peer.inference(SHAPE, "int4")
    index, offsets = torch.from_numpy(INDEX), torch.from_numpy(OFFSETS)
    return lambda: bag(index, offsets)


OURS_BY = {"numpy": with_numpy, "torch": with_torch, "ops": stateless}


@pytest.mark.parametrize("arrays", OURS_BY)
def test_call(benchmark: Any, arena: Any, arrays: str) -> None:
    if arrays == "torch":
        pytest.importorskip("torch")
    entries = [
        repeated(OURS, OURS_BY[arrays]),
        repeated("torch nn.EmbeddingBag", torch_module),
        repeated("torch quantized", torch_quantized),
        repeated("FBGEMM int4", peers.fbgemm(fbgemm_module)),
    ]
    what = {"operation": "call", "arrays": arrays, "threads": 1}
    arena.compare(benchmark, "call", what, CALLS, entries)
