"""The export of a later argument takes memory of an array away that stays where it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from exporters import Exporter

import mpembed as mpe
from mpembed import devices, ops
from mpembed._bindings.dlpack import refuse_moved, view
from mpembed._collection.packed import PackedTables

MANY = 200_000  # of 8 bytes: malloc maps so much by itself, and shrinks it in place
Arguments = dict[str, Any]


def collection() -> mpe.EmbeddingBagCollection:
    table = mpe.TableConfig("a", 2 * MANY, 2, "fp32")
    return mpe.EmbeddingBagCollection([table], optimizer=mpe.Adam(0.1))


def train(emb: Any, a: Arguments) -> None:
    emb.forward(a["ids"], a["offsets"], a["weights"], a["out"])


def backward(emb: Any, a: Arguments) -> None:
    _, ticket = emb.forward(np.arange(MANY), np.arange(MANY + 1), a["plain"], ticket=True)
    try:
        emb.backward(a["values"], ticket, out=a["column"])
    finally:
        ticket.drop()


def of_a_dict(emb: Any, a: Arguments) -> None:
    weights = {"a": a["weights"]}
    emb.forward({"a": (a["ids"], a["offsets"])}, per_sample_weights=weights, training=False)


def set_states(emb: Any, a: Arguments) -> None:
    emb.set_state("a", a["ids"], {"exp_avg": a["values"], "exp_avg_sq": a["out"]})


def look_up_packed(emb: Any, a: Arguments) -> None:
    on = devices.get("cpu").stream(None)
    PackedTables(emb.tables, [emb.export("a")], on, drop=False).lookup(
        a["ids"], a["offsets"], a["weights"]
    )


CALLS: dict[str, tuple[Callable[[Any, Arguments], Any], tuple[str, ...]]] = {
    "forward": (train, ("out", "ids", "offsets", "weights")),
    "forward of a dict": (of_a_dict, ("ids", "offsets", "weights")),
    "prefetch": (lambda e, a: e.prefetch(a["ids"], a["offsets"]).drop(), ("ids", "offsets")),
    "backward": (backward, ("values", "column")),
    "set_rows": (lambda e, a: e.set_rows("a", a["ids"], a["values"]), ("ids", "values")),
    "set_state": (set_states, ("ids", "values", "out")),
    "packed": (look_up_packed, ("ids", "offsets", "weights")),
    "embedding_bag": (
        lambda _, a: ops.embedding_bag(a["rows"], "fp32", 2, a["ids"], a["offsets"], out=a["out"]),
        ("rows", "out", "ids", "offsets"),
    ),
    "dequantize": (
        lambda _, a: ops.dequantize(a["rows"], "fp32", 2, out=a["out"]),
        ("rows", "out"),
    ),
    "sgd_": (
        lambda _, a: ops.sgd_(a["table"], a["ids"], a["values"], lr=1.0),
        ("table", "ids", "values"),
    ),
}


def arguments() -> Arguments:
    return {
        "ids": np.arange(MANY),
        "offsets": np.arange(MANY + 1),
        "weights": np.ones(MANY, np.float32),
        "plain": np.ones(MANY, np.float32),
        "column": np.zeros(MANY, np.float32),
        "values": np.ones((MANY, 2), np.float32),
        "table": np.ones((MANY, 2), np.float32),
        "out": np.zeros((MANY, 2), np.float32),
        "rows": np.zeros((MANY, 8), np.uint8),
    }


def shrink(array: Any) -> None:
    array.resize((1,) * array.ndim, refcheck=False)


@pytest.mark.parametrize("part", [False, True], ids=["array", "part of an array"])
@pytest.mark.parametrize("name", CALLS)
def test_an_array_shrinks_in_place(name: str, part: bool) -> None:
    """Its address stays: the shape says it, or for a part of an array that of the whole one."""
    emb = collection()
    call, roles = CALLS[name]
    before = emb.rows("a", np.arange(MANY)).tobytes()
    for at, taken in enumerate(roles[:-1]):
        given = arguments()
        array = given[taken]
        if part:
            given[taken] = array[: len(array)]
        later = roles[at + 1]
        given[later] = Exporter(given[later], partial(shrink, array))
        with pytest.raises(BufferError, match="its memory was moved or freed"):
            call(emb, given)
    assert emb.rows("a", np.arange(MANY)).tobytes() == before


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a[::-1],
        lambda a: a[5:],
        lambda a: np.asfortranarray(a.reshape(-1, 2)).T[0],
        lambda a: np.frombuffer(a.tobytes(), a.dtype),
        lambda a: np.broadcast_to(a[:1], a.shape),
        lambda a: a[:0],
        lambda a: a.view(np.int32)[3::7],
        lambda a: np.lib.stride_tricks.as_strided(a, (4,), (16,)),
    ],
)
def test_an_array_of_any_layout_is_in_its_memory(make: Callable[[Any], Any]) -> None:
    lent = make(np.arange(100.0))
    refuse_moved([view(lent, "lent")])


def test_the_end_of_an_array_is_no_longer_in_it() -> None:
    whole = np.arange(2 * MANY)
    first, last = view(whole[: MANY // 2], "first"), view(whole[:MANY:-1], "last")
    whole.resize(MANY, refcheck=False)
    if whole.ctypes.data == first.address:  # else all of it has moved
        refuse_moved([first])
    with pytest.raises(BufferError, match="^last: its memory was moved or freed"):
        refuse_moved([first, last])
