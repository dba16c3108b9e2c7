"""Bad input: the right error, a message that names the culprit, and nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import Array, batch, collection, digest, train

import mpembed as mpe

INDICES, OFFSETS = batch()
BACKWARDS = np.array([0, 2, 1, 3])
Emb = mpe.EmbeddingBagCollection


def changed(array: Array, position: int, value: Any) -> Array:
    copy = array.copy()
    copy[position] = value
    return copy


def read_only(array: Array) -> Array:
    array.setflags(write=False)
    return array


FORWARD: dict[str, tuple[Callable[[Emb], Any], type[Exception], str]] = {
    "index too large": (
        lambda e: e.forward(changed(INDICES, 2, 40), OFFSETS),
        IndexError,
        r"table 'a'.*index 40 at position 2.*1 such",
    ),
    "index negative": (
        lambda e: e.forward(changed(INDICES, 6, -3), OFFSETS),
        IndexError,
        r"table 'b'.*index -3 at position 6",
    ),
    "index far out": (
        lambda e: e.forward(changed(INDICES, 0, 2**62), OFFSETS),
        IndexError,
        r"index 4611686018427387904 at position 0",
    ),
    "index beyond int64": (
        lambda e: e.forward(changed(INDICES.astype("u8"), 3, 2**64 - 2), OFFSETS),
        IndexError,
        "table 'a'.*index 18446744073709551614 at position 3 of indices is out of range; 1 such",
    ),
    "index beyond int32": (
        lambda e: e.forward(changed(INDICES.astype("u4"), 3, 2**32 - 2), OFFSETS),
        IndexError,
        "table 'a'.*index 4294967294 at position 3 of indices",
    ),
    "dict index beyond int64": (
        lambda e: e.forward(
            {
                "a": (INDICES[:5], OFFSETS[:4]),
                "b": (changed(INDICES[5:].astype("u8"), 1, 2**63), OFFSETS[3:] - 5),
            },
            per_sample_weights={"a": np.ones(5, "f4"), "b": np.ones(3, "f4")},
        ),
        IndexError,
        "table 'b'.*index 9223372036854775808 at position 1 of its indices",
    ),
    "dict index negative": (
        lambda e: e.forward(
            {
                "a": (INDICES[:5].astype("u8"), OFFSETS[:4]),
                "b": (changed(INDICES[5:], 1, -1), OFFSETS[3:] - 5),
            }
        ),
        IndexError,
        "table 'b'.*index -1 at position 1 of its indices",
    ),
    "float indices": (
        lambda e: e.forward(INDICES.astype("f4"), OFFSETS),
        TypeError,
        r"indices: expected dtype .*, got float32; convert it.*\.long\(\).*\.astype\('int64'\)",
    ),
    "bool indices": (
        lambda e: e.forward(INDICES.astype("?"), OFFSETS),
        TypeError,
        r"indices: expected dtype .*, got bool; convert it",
    ),
    "float offsets": (
        lambda e: e.forward(INDICES, OFFSETS.astype("f8")),
        TypeError,
        "offsets: expected dtype int32 or int64, got float64; convert it",
    ),
    "dict dtype": (
        lambda e: e.forward(
            {"a": (INDICES[:5].astype("i2"), OFFSETS[:4]), "b": (INDICES[5:], OFFSETS[3:] - 5)}
        ),
        TypeError,
        "indices of table 'a': expected dtype .*, got int16; convert it",
    ),
    "list": (lambda e: e.forward(INDICES.tolist(), OFFSETS), TypeError, "indices"),
    "uint16": (lambda e: e.forward(INDICES.astype("u2"), OFFSETS), TypeError, "indices"),
    "uint64 offsets": (lambda e: e.forward(INDICES, OFFSETS.astype("u8")), TypeError, "offsets"),
    "strided uint32": (
        lambda e: e.forward(np.repeat(INDICES.astype("u4"), 2)[::2], OFFSETS),
        ValueError,
        "indices",
    ),
    "big endian": (lambda e: e.forward(INDICES.astype(">i8"), OFFSETS), TypeError, "indices"),
    "2-D indices": (lambda e: e.forward(INDICES[None], OFFSETS), ValueError, "indices"),
    "strided": (lambda e: e.forward(np.repeat(INDICES, 2)[::2], OFFSETS), ValueError, "indices"),
    "no offsets": (lambda e: e.forward(INDICES), TypeError, "offsets"),
    "offsets length": (
        lambda e: e.forward(INDICES, OFFSETS[:-1]),
        ValueError,
        r"offsets must have 2 x batch size \+ 1 entries .*include_last_offset=True\), got 6",
    ),
    "no entry": (lambda e: e.forward(INDICES, OFFSETS[:0]), ValueError, "offsets"),
    "offsets start": (
        lambda e: e.forward(INDICES, changed(OFFSETS, 0, 1)),
        ValueError,
        "start at 0, got 1",
    ),
    "offsets of no bag": (
        lambda e: e.forward(INDICES, OFFSETS[:1]),
        ValueError,
        "end at the number of indices, 8, got 0",
    ),
    "offsets end": (
        lambda e: e.forward(INDICES, changed(OFFSETS, 6, 7)),
        ValueError,
        r"end at the number of indices, 8, got 7 \(as PyTorch's include_last_offset=True\)",
    ),
    "offsets decrease": (
        lambda e: e.forward(INDICES, changed(OFFSETS, 2, 6)),
        ValueError,
        r"offsets\[3\] is 5",
    ),
    "offsets beyond": (
        lambda e: e.forward(INDICES, changed(OFFSETS, 3, 2**60)),
        ValueError,
        "offsets",
    ),
    "weights dtype": (
        lambda e: e.forward(INDICES, OFFSETS, np.ones(8)),
        TypeError,
        "per_sample_weights",
    ),
    "weights length": (
        lambda e: e.forward(INDICES, OFFSETS, np.ones(7, "f4")),
        ValueError,
        "per_sample_weights",
    ),
    "out shape": (
        lambda e: e.forward(INDICES, OFFSETS, out=np.empty((3, 11), "f4")),
        ValueError,
        "out",
    ),
    "out dtype": (lambda e: e.forward(INDICES, OFFSETS, out=np.empty((3, 12))), TypeError, "out"),
    "out read-only": (
        lambda e: e.forward(INDICES, OFFSETS, out=read_only(np.empty((3, 12), "f4"))),
        BufferError,
        "out",
    ),
    "out strided": (
        lambda e: e.forward(INDICES, OFFSETS, out=np.empty((12, 3), "f4").T),
        ValueError,
        "out",
    ),
    "stream": (lambda e: e.forward(INDICES, OFFSETS, stream=1), ValueError, "stream"),
    "training": (
        lambda e: e.forward(INDICES, OFFSETS, training=1),  # type: ignore[arg-type]
        TypeError,
        "training",
    ),
    "eval ticket": (
        lambda e: e.forward(INDICES, OFFSETS, training=False, ticket=True),
        ValueError,
        "ticket",
    ),
    "dict names": (lambda e: e.forward({"a": (INDICES, OFFSETS)}), ValueError, "tables"),
    "dict shape": (lambda e: e.forward({"a": 1, "b": 2}), TypeError, "table 'a'"),
    "dict offsets": (
        lambda e: e.forward({"a": (INDICES, OFFSETS[:3]), "b": (INDICES, OFFSETS)}),
        ValueError,
        "offsets of table 'a'",
    ),
    "dict offsets decrease": (
        lambda e: e.forward({"a": (INDICES[:5], OFFSETS[:4]), "b": (INDICES[5:], BACKWARDS)}),
        ValueError,
        r"offsets of table 'b' must not decrease: offsets\[2\] is 1",
    ),
    "dict index": (
        lambda e: e.forward(
            {"a": (INDICES[:5], OFFSETS[:4]), "b": (changed(INDICES[5:], 1, 9), OFFSETS[3:] - 5)}
        ),
        IndexError,
        r"table 'b'.*index 9 at position 1 of its indices is out of range; 1 such",
    ),
    "positional training": (
        lambda e: e.forward(INDICES, OFFSETS, None, None, None, True),  # type: ignore[call-arg]
        TypeError,
        "positional",
    ),
    "positional stream": (
        lambda e: e.forward(INDICES, OFFSETS, None, None, 1),
        ValueError,
        "stream",
    ),
    "prefetch index": (
        lambda e: e.prefetch(changed(INDICES, 2, 40), OFFSETS),
        IndexError,
        "position 2",
    ),
    "rows name": (lambda e: e.rows("c", INDICES), KeyError, "no table 'c'"),
    "rows id": (lambda e: e.rows("b", np.array([0, 9])), IndexError, "id 9 at position 1"),
    "rows id beyond int64": (
        lambda e: e.rows("b", np.array([0, 2**63], np.uint64)),
        IndexError,
        "id 9223372036854775808 at position 1",
    ),
    "rows dtype": (lambda e: e.rows("b", np.array([0.5])), TypeError, "ids"),
    "set_rows twice": (
        lambda e: e.set_rows("b", np.array([1, 1]), np.zeros((2, 6), "f4")),
        ValueError,
        "duplicates",
    ),
    "set_rows nan": (
        lambda e: e.set_rows("b", np.array([1, 2]), np.full((2, 6), np.nan, "f4")),
        ValueError,
        "row 0 is not finite",
    ),
    "set_rows range": (
        lambda e: e.set_rows("a", np.array([1]), np.full((1, 6), 7e4, "f4")),
        ValueError,
        "range of int4",
    ),
    "set_rows shape": (
        lambda e: e.set_rows("a", np.array([1]), np.zeros((1, 5), "f4")),
        ValueError,
        "values",
    ),
    "lr nan": (lambda e: setattr(e.optimizer, "lr", float("nan")), ValueError, "lr"),
    "lr negative": (lambda e: setattr(e.optimizer, "lr", -1.0), ValueError, "lr"),
    "lr text": (lambda e: setattr(e.optimizer, "lr", "0.1"), TypeError, "lr"),
}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", list(FORWARD))
def test_bad_call_changes_nothing(name: str, cached: bool) -> None:
    call, error, message = FORWARD[name]
    emb = collection() if cached else collection(cache=None)
    train(emb)
    emb.forward(INDICES, OFFSETS)  # an open batch that must survive
    before, lr = digest(emb), emb.optimizer.lr
    with pytest.raises(error, match=message):
        call(emb)
    assert digest(emb) == before
    assert emb.optimizer.lr == lr
    emb.backward(np.ones((3, 12), np.float32))


BACKWARD: dict[str, tuple[Any, type[Exception]]] = {
    "shape": (np.ones((3, 11), "f4"), ValueError),
    "dtype": (np.ones((3, 12)), TypeError),
    "strided": (np.ones((12, 3), "f4").T, ValueError),
    "none": (None, TypeError),
    "dict": ({}, TypeError),
}


@pytest.mark.parametrize("name", list(BACKWARD))
def test_bad_gradient_changes_nothing(name: str) -> None:
    value, error = BACKWARD[name]
    emb = collection()
    emb.forward(INDICES, OFFSETS)
    before = digest(emb)
    with pytest.raises(error, match="grad"):
        emb.backward(value)
    assert digest(emb) == before
    emb.backward(np.ones((3, 12), np.float32))


def test_drop_adds_zero_trains_nothing_and_counts() -> None:
    emb = collection(bounds="drop", cache=None)
    bad = changed(changed(INDICES, 2, 40), 5, -1)
    kept = bad.copy()
    before = emb.rows("a", np.arange(40))
    out = emb.forward(bad, OFFSETS)
    values = emb.rows("a", np.array([2, 7]))
    np.testing.assert_array_equal(out[2, :6], (values[0] + values[1]).astype(np.float32))
    assert not out[0, 6:].any()  # a mean over one dropped index
    emb.backward(np.ones_like(out))
    after = emb.rows("a", np.arange(40))
    changed_rows = np.flatnonzero((before != after).any(axis=1))
    assert set(changed_rows) <= {1, 2, 7}
    assert np.array_equal(bad, kept)
    stats = emb.stats()
    assert stats["a"]["dropped"] == 1
    assert stats["b"]["dropped"] == 1
    assert stats["a"]["accesses"] == 4


def test_an_index_error_is_about_the_whole_batch() -> None:
    """Tables of different dimension are separate groups, in the order of their dimensions."""
    tables = [mpe.TableConfig("wide", 9, 8), mpe.TableConfig("narrow", 5, 2)]
    emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1))
    with pytest.raises(IndexError, match=r"'wide' .*index 9 at position 1 of indices.*; 3 such"):
        emb.forward(np.array([0, 9, 5, -1]), np.array([0, 2, 4]))


def test_backward_needs_an_open_forward() -> None:
    emb, grad = collection(), np.ones((3, 12), np.float32)
    emb.forward(INDICES, OFFSETS, training=False)
    message = r"without a training forward \(training=False leaves nothing to train\)"
    with pytest.raises(RuntimeError, match=message):
        emb.backward(grad)
    emb.forward(INDICES, OFFSETS)
    emb.backward(grad)
    with pytest.raises(RuntimeError, match="used already"):
        emb.backward(grad)


def test_wrong_device_is_named() -> None:
    class Device:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, **_: Any) -> Any:
            raise AssertionError("must not be called")

    emb = collection()
    with pytest.raises(BufferError, match=r"indices.*cuda"):
        emb.forward(Device(), OFFSETS)


@pytest.mark.torch
def test_a_tensor_that_autograd_watches_is_refused() -> None:
    torch = pytest.importorskip("torch")
    emb, weights = collection(), torch.ones(8, requires_grad=True)
    before = digest(emb)
    with pytest.raises(BufferError, match=r"^per_sample_weights: requires grad"):
        emb.forward(INDICES, OFFSETS, weights)
    loss = (torch.from_numpy(emb.forward(INDICES, OFFSETS, training=False)) * weights[0]).sum()
    emb.forward(INDICES, OFFSETS)
    before = digest(emb)
    with pytest.raises(BufferError, match=r"^grad: is a scalar .* pass the gradient of the output"):
        emb.backward(loss)
    with pytest.raises(ValueError, match=r"^grad: expected 2 dimensions, got shape \(\)"):
        emb.backward(loss.detach())
    assert digest(emb) == before


def test_unpooled_tables_need_dicts_of_the_right_tables() -> None:
    tables = [mpe.TableConfig("a", 9, 2, pooling="none"), mpe.TableConfig("b", 9, 3)]
    emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1))
    indices, offsets = np.array([1, 2, 3, 4]), np.array([0, 3, 3, 3, 4])
    out = emb.forward(indices, offsets)
    assert {name: part.shape for name, part in out.items()} == {"a": (3, 2), "b": (2, 3)}
    before = digest(emb)
    for bad, message in (
        (np.ones((2, 5), "f4"), "grad must be a dict"),
        ({"a": out["a"]}, "grad must be a dict"),
        ({**out, "c": out["a"]}, "grad must be a dict"),
        ({**out, "a": out["a"][:2]}, "grad of table 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            emb.backward(bad)
        with pytest.raises(ValueError, match=message.replace("grad", "out")):
            emb.forward(indices, offsets, out=bad)
    assert digest(emb) == before
    emb.backward(out)


@pytest.mark.parametrize("index_type", [np.int32, np.int64])
def test_empty_batches_and_bags(index_type: type) -> None:
    emb = collection()
    none: Array = np.empty(0, index_type)
    assert emb.forward(none, np.zeros(1, index_type)).shape == (0, 12)
    emb.backward(np.empty((0, 12), np.float32))
    out = emb.forward(none, np.zeros(7, index_type))
    assert out.shape == (3, 12)
    assert not out.any()
    emb.backward(np.ones((3, 12), np.float32))
    one = mpe.EmbeddingBagCollection([mpe.TableConfig("t", 1, 1)], optimizer=mpe.SGD(lr=1.0))
    out = one.forward(np.zeros(1, index_type), np.arange(2, dtype=index_type))
    np.testing.assert_array_equal(out, one.rows("t", np.zeros(1, index_type)))


@pytest.mark.parametrize("unsigned", [np.uint32, np.uint64])
@pytest.mark.parametrize("as_dict", [False, True])
def test_unsigned_indices_train_as_signed_ones(unsigned: type, as_dict: bool) -> None:
    emb, twin = collection(), collection()
    for one, indices in ((emb, read_only(INDICES.astype(unsigned))), (twin, INDICES)):
        batch: Any = (indices, OFFSETS)
        if as_dict:
            batch = ({"a": (indices[:5], OFFSETS[:4]), "b": (indices[5:], OFFSETS[3:] - 5)},)
        one.prefetch(*batch)
        one.backward(one.forward(*batch))
    assert digest(emb) == digest(twin)
    assert np.array_equal(emb.rows("a", INDICES[:5].astype(unsigned)), twin.rows("a", INDICES[:5]))
    emb.set_rows("a", np.array([3], unsigned), np.ones((1, 6), np.float32))
    assert np.array_equal(emb.rows("a", np.array([3])), np.ones((1, 6)))


def test_unsigned_indices_out_of_range_are_dropped() -> None:
    emb = collection(bounds="drop")
    indices = changed(INDICES.astype(np.uint64), 3, 2**64 - 2)
    out = emb.forward(indices, OFFSETS, training=False)
    assert np.array_equal(out, emb.forward(changed(INDICES, 3, -2), OFFSETS, training=False))


def test_inputs_are_never_modified() -> None:
    emb = collection()
    indices, offsets = read_only(INDICES.copy()), read_only(OFFSETS.copy())
    weights = read_only(np.linspace(0, 1, 8, dtype=np.float32))
    out = emb.forward(indices, offsets, weights)
    assert emb.backward(read_only(np.ones_like(out))).shape == (8,)
    assert np.array_equal(indices, INDICES)
    assert np.array_equal(offsets, OFFSETS)
