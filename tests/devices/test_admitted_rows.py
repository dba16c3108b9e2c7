"""Rows that a forward admits: a device reads them in their tables, until somebody writes rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from copied_backend import CopiedBackend
from on_device import fetch

import mpembed as mpe
from mpembed import devices
from mpembed._bindings import array_ops
from mpembed.collection import collection_state

pytestmark = pytest.mark.gpu
ROWS, DIM, LONG = 40, 16, 264  # a long row takes a tile several rounds
OFFSETS = np.arange(0, 25, 3)
FIRST = np.tile([3, 1, 30, 3, 7, 7, 2, 39, 3, 11, 12, 13], 2)
OTHER = np.tile([30, 5, 6, 3, 8, 9, 14, 15, 16, 1, 17, 18], 2)
GRAD = np.linspace(-2, 1, 4 * (DIM + LONG), dtype=np.float32).reshape(4, DIM + LONG)
VALUES = np.linspace(-0.3, 0.4, 2 * DIM, dtype=np.float32).reshape(2, DIM)
Call = Callable[[Any, Callable[[Any], Any], Path], None]


def send(device: str, *arrays: Any) -> list[Any]:
    """Return arrays of a device that nothing else has."""
    return [a.copy() if device == "cpu" else mpe.to_device(a, device) for a in arrays]


def train(emb: Any, put: Callable[[Any], Any]) -> None:
    _, ticket = emb.forward(put(OTHER), put(OFFSETS), ticket=True)
    emb.backward(put(3 * GRAD), ticket)


def set_states(emb: Any, put: Callable[[Any], Any]) -> None:
    """Set the states of two rows, one of them just admitted."""
    ids = put(np.array([3, 20]))
    states = {name: fetch(values) + 1 for name, values in emb.state("t", ids).items()}
    emb.set_state("t", ids, {name: put(values) for name, values in states.items()})


BETWEEN: dict[str, Call] = {
    "nothing": lambda *_: None,
    "evaluation": lambda emb, put, _: emb.forward(put(OTHER), put(OFFSETS), training=False),
    "flush": lambda emb, *_: emb.flush(),
    "save": lambda emb, _, folder: emb.save(folder / "file"),
    "rows": lambda emb, put, _: emb.set_rows("t", put(np.array([3, 20])), put(VALUES)),
    "states": lambda emb, put, _: set_states(emb, put),
    "prefetch": lambda emb, put, _: emb.prefetch(put((OTHER + emb.step) % ROWS), put(OFFSETS)),
    "training": lambda emb, put, _: train(emb, put),
}


def trained(
    device: str, precision: str, optimizer: Any, policy: str, between: Call, folder: Path
) -> list[Any]:
    """Return outputs and state of a training in which something happens before each backward."""
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig("t", ROWS, DIM, precision), mpe.TableConfig("u", ROWS, LONG, precision)],
        cache=mpe.CacheConfig(num_sets=1, policy=policy),
        optimizer=optimizer,
        device=device,
    )

    def put(array: Any) -> Any:
        return send(device, array)[0]

    outputs = []
    for k in range(3):
        out, ticket = emb.forward(put((FIRST + 9 * k) % ROWS), put(OFFSETS), ticket=True)
        between(emb, put, folder)
        emb.backward(put(GRAD), ticket)
        outputs.append(fetch(out))
    emb.drop_prefetched()
    emb.check()
    return [*outputs, *fetch(emb.state_arrays()).values()]


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
@pytest.mark.parametrize("policy", ["lru", "lfu"])
@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [("int8", mpe.SGD(0.1)), ("int4", mpe.RowwiseAdagrad(0.1)), ("fp16", mpe.Adam(0.1))],
    ids=["int8", "int4", "fp16"],
)
def test_what_comes_before_an_update_does_not_change_its_bytes(
    precision: str, optimizer: Any, policy: str, between: Call, tmp_path: Path, cuda: str
) -> None:
    there, here = (
        trained(device, precision, optimizer, policy, between, tmp_path) for device in (cuda, "cpu")
    )
    for mine, its in zip(there, here, strict=True):
        np.testing.assert_array_equal(mine, its)


SPOILED = 9.0  # unlike any row


class SpoiledSlots:
    """A device that leaves other values in the slots of the rows that it admits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.emb: Any = None
        backend = CopiedBackend(devices.cuda_backend())
        backend.wrap("cache_admit", 8, self.admit)
        self.device = backend.device()
        monkeypatch.setitem(devices._known, name, self.device)

    def admit(self, real: Callable[..., int], *arguments: Any) -> int:
        status = real(*arguments)
        arrays = collection_state(self.emb).arrays()
        for name, rows in arrays.items():
            if re.fullmatch(r"cache\..*\.rows", name):
                values = np.full(rows.memory.shape, SPOILED, np.float32)
                array_ops.assign(rows.memory, values, self.device.stream(None))
        return status


@pytest.mark.parametrize(
    ("placement", "flushes", "forward_in_table", "update_in_table"),
    [("device", 0, True, True), ("device", 1, True, False), ("host", 0, False, False)],
    ids=["at once", "a step later", "host"],
)
def test_an_admitted_row_is_read_in_its_table(
    placement: str,
    flushes: int,
    forward_in_table: bool,
    update_in_table: bool,
    cuda: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But not once another write step was taken, nor where it would cross the bus again."""
    spoiled = SpoiledSlots(monkeypatch, cuda)
    here, there = (
        mpe.EmbeddingBagCollection(
            [
                mpe.TableConfig(name, ROWS, dim, "int8", placement=where)
                for name, dim in (("t", DIM), ("u", LONG))
            ],
            cache=mpe.CacheConfig(num_sets=2),
            optimizer=mpe.SGD(0.1),
            device=device,
        )
        for device, where in (("cpu", "device"), (cuda, placement))
    )
    spoiled.emb = there
    used = np.unique(FIRST)
    expected, out = here.forward(FIRST, OFFSETS), there.forward(*send(cuda, FIRST, OFFSETS))
    for _ in range(flushes):
        there.flush()
    here.backward(GRAD)
    there.backward(*send(cuda, GRAD))
    there.check()
    if forward_in_table:
        np.testing.assert_array_equal(out.numpy(), expected)
    else:
        np.testing.assert_array_equal(out.numpy(), 3 * SPOILED)
    for name in ("t", "u"):
        rows, rows_here = there.rows(name, *send(cuda, used)).numpy(), here.rows(name, used)
        if update_in_table:
            np.testing.assert_array_equal(rows, rows_here)
        else:
            assert (np.abs(rows - SPOILED) < 1).all()
