"""Outputs and gradients in FP16 and BF16: FP32 sums, rounded once, and gradients taken exactly."""

from __future__ import annotations

from typing import Any

import halves
import kinds
import numpy as np
import on_device
import pytest
from drive import make_cache, make_pair
from helpers import digest
from reference.pair import Batches, Pair

import mpembed as mpe

pytestmark = pytest.mark.torch
on_every_device = pytest.mark.usefixtures("each_device")
FORMATS = list(mpe.registry.OUTPUT_FORMATS)


def forward(pair: Pair, precision: str, *batch: Any, **options: Any) -> Any:
    """Look up in both in their own ways; compare the outputs, return the bits."""
    ref = pair.ref.forward(*batch, **options)
    expected, ref_ticket = ref if options.get("ticket") else (ref, None)
    shapes = _each(expected, np.shape)
    if on_device.used() == "cpu":
        out = _each(shapes, lambda shape: halves.empty(precision, shape))
        got = pair.emb.forward(*batch, out=out, **options)
    else:
        sent = [None if one is None else mpe.to_device(one, on_device.used()) for one in batch]
        got = pair.emb.emb.forward(*sent, output_dtype=precision, **options)
    got, ticket = got if options.get("ticket") else (got, None)
    codes = _each(got, lambda one: halves.bits_of(precision, one))
    wanted = _each(expected, lambda one: halves.narrowed(precision, one))
    for a, b in zip(_parts(codes), _parts(wanted), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    pair.check("state after forward")
    return (wanted, (ticket, ref_ticket)) if ticket is not None else wanted


def gradients(batches: Batches, precision: str, out: Any) -> tuple[Any, Any]:
    """Return a gradient of an output, as the collection takes it and in FP32."""
    codes = _each(out, lambda one: halves.narrowed(precision, batches.grad(one)))
    given = _each(codes, lambda one: halves.array_of(precision, one))
    return given, _each(codes, lambda one: halves.widened(precision, one))


def backward(pair: Pair, given: Any, values: Any) -> None:
    """Update both; compare the weights' gradients and the state."""
    emb = pair.emb if on_device.used() == "cpu" else pair.emb.emb
    got, expected = on_device.fetch(emb.backward(given)), pair.ref.backward(values)
    if expected is not None:
        np.testing.assert_array_equal(got, expected, strict=True)
    pair.check("state after backward")


def _each(value: Any, function: Any) -> Any:
    if isinstance(value, dict):
        return {name: function(one) for name, one in value.items()}
    return function(value)


def _parts(value: Any) -> list[Any]:
    return [value[name] for name in sorted(value)] if isinstance(value, dict) else [value]


@on_every_device
@pytest.mark.parametrize("policy", [None, "lfu"])
@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("unpooled", [False, True])
def test_bytes(precision: str, policy: str | None, unpooled: bool) -> None:
    """Every format of rows, dimensions with and without whole vectors, weights, both poolings."""
    dims = (1, 3, 8, 12, 16, 31, 33, 64, 129)
    poolings = ("sum", "mean", "none") if unpooled else ("sum", "mean")
    tables = [
        mpe.TableConfig(f"t{i}", 9 + i, dim, name, poolings[i % len(poolings)])
        for i, (name, dim) in enumerate(zip(mpe.registry.FORMATS, dims, strict=True))
    ]
    pair = make_pair(tables, make_cache(policy), kinds.named("rowwise_adagrad"))
    batches = Batches(pair.ref, 3)
    for step in range(3):
        indices, offsets = batches.inputs(4, 4)
        weights = batches.weights(len(indices)) if step else None
        out = forward(pair, precision, indices, offsets, weights)
        backward(pair, *gradients(batches, precision, out))
    forward(pair, precision, *batches.inputs(3, 3), training=False)


@on_every_device
@pytest.mark.parametrize("dim", [20, 300])
@pytest.mark.parametrize("precision", FORMATS)
def test_rows_that_occur_often(precision: str, dim: int) -> None:
    """Their gradients are summed in blocks, and over several batches."""
    tables = [mpe.TableConfig("a", 3, dim, "int8"), mpe.TableConfig("b", 3, dim, "int4", "mean")]
    pair = make_pair(tables, make_cache("lru"), kinds.named("adam"))
    batches = Batches(pair.ref, 4)
    given, values = [], []
    for _ in range(2):
        out, tickets = forward(pair, precision, *batches.inputs(60, 5), None, ticket=True)
        half, grad = gradients(batches, precision, out)
        given.append((half, tickets[0]))
        values.append((grad, tickets[1]))
    emb = pair.emb if on_device.used() == "cpu" else pair.emb.emb
    emb.backward(given)
    pair.ref.backward(values)
    pair.check("state after backward")


@on_every_device
@pytest.mark.parametrize("dim", [5, 16])
@pytest.mark.parametrize("precision", FORMATS)
def test_every_kind_of_value(precision: str, dim: int) -> None:
    """Ties, subnormals, what is too large, infinities and NaNs; columns in vectors and alone."""
    edges = [0.0, 65504.0, 65519.99, 65520.0, 65536.0, 1e38, 3.4028235e38, 3.39e38, 6e-8, 2.98e-8]
    edges += [2.0**-24, 2.0**-25, 1.5 * 2.0**-24, 6.1e-5, 1e-40, 1.0 + 2**-11, 1.0 + 3 * 2**-11]
    edges += [1.0 + 2**-8, 1.0 + 3 * 2**-8]
    random = np.random.default_rng(5).integers(0, 2**32, 4000, np.uint32).view(np.float32)
    values = np.array([*edges, *(-np.array(edges)), *random[np.isfinite(random)]], np.float32)
    rows = len(values) // dim
    emb = on_device.make([mpe.TableConfig("a", rows, dim, "fp32", "none")], optimizer=mpe.SGD(0.1))
    emb.set_rows("a", np.arange(rows), values[: rows * dim].reshape(rows, dim))
    indices, offsets = np.arange(rows).repeat(3), np.array([0, 3 * rows])
    weights = np.tile(np.array([1, np.inf, np.nan], np.float32), rows)
    with np.errstate(all="ignore"):
        whole = on_device.fetch(emb.forward(indices, offsets, weights, training=False))["a"]
        wanted = halves.narrowed(precision, whole)
    if on_device.used() == "cpu":
        out = {"a": halves.empty(precision, whole.shape)}
        got = emb.forward(indices, offsets, weights, out=out, training=False)["a"]
    else:
        sent = [mpe.to_device(one, on_device.used()) for one in (indices, offsets, weights)]
        got = emb.emb.forward(*sent, training=False, output_dtype=precision)["a"]
    found = halves.bits_of(precision, got)
    if precision == "fp32":
        found, wanted = found[~np.isnan(found)], wanted[~np.isnan(wanted)]
    np.testing.assert_array_equal(found, wanted, strict=True)


def collection(**options: Any) -> Any:
    tables = [mpe.TableConfig("a", 20, 8, "int4"), mpe.TableConfig("b", 20, 4, "int8", "mean")]
    return on_device.make(tables, optimizer=mpe.SGD(0.1), seed=3, **options)


BATCH = np.arange(12) % 20, np.arange(0, 13, 2)


@on_every_device
@pytest.mark.parametrize("precision", [None, *FORMATS])
def test_the_type_of_an_output(precision: str | None) -> None:
    emb = collection()
    if on_device.used() == "cpu" and precision == "bf16":
        with pytest.raises(ValueError, match="'bf16' needs out on the CPU, since NumPy has no"):
            emb.forward(*BATCH, output_dtype=precision)
        assert emb.stats()["a"]["accesses"] == 0
        return
    sent = on_device.send(BATCH)
    whole = emb if on_device.used() == "cpu" else emb.emb
    out = whole.forward(*sent, output_dtype=precision)
    wanted = {None: "float32", "fp32": "float32", "fp16": "float16"}.get(precision, "uint16")
    assert out.dtype == wanted
    assert precision != "bf16" or "bfloat16" in repr(out)


@on_every_device
@pytest.mark.parametrize("given", ["int8", "float16", "bfloat16", 16, np.float16])
def test_other_names_are_refused(given: Any) -> None:
    emb = collection()
    before = digest(emb)
    with pytest.raises(ValueError, match="output_dtype must be one of 'fp32', 'fp16', 'bf16', got"):
        emb.forward(*BATCH, output_dtype=given)
    assert digest(emb) == before


def test_an_output_of_another_type_than_asked_for_is_refused() -> None:
    emb = collection()
    before = digest(emb)
    for dtype, name in ((np.float32, "fp16"), (np.float16, "fp32"), (np.float64, None)):
        with pytest.raises(TypeError, match="out: expected dtype"):
            emb.forward(*BATCH, out=np.empty((3, 12), dtype), output_dtype=name)
    assert digest(emb) == before


@on_every_device
def test_gradients_of_two_types_in_one_update_are_refused() -> None:
    emb = collection()
    tickets = [emb.forward(*BATCH, ticket=True)[1] for _ in range(2)]
    before = digest(emb)
    grads = [np.ones((3, 12), dtype) for dtype in (np.float32, np.float16)]
    match = r"grad\[1\] is float16, grad\[0\] is float32; all gradients of an update have one dtype"
    with pytest.raises(TypeError, match=match):
        emb.backward(list(zip(grads, tickets, strict=True)))
    assert digest(emb) == before
    emb.backward([(np.ones((3, 12), np.float16), ticket) for ticket in tickets])
    assert digest(emb) != before


def test_outputs_of_two_types_in_one_call_are_refused() -> None:
    tables = [mpe.TableConfig("a", 20, 8, "int4", "none"), mpe.TableConfig("b", 20, 4, "int8")]
    emb = on_device.make(tables, optimizer=mpe.SGD(0.1))
    before = digest(emb)
    out = {"a": np.empty((6, 8), np.float16), "b": np.empty((3, 4), np.float32)}
    match = "out of table 'b' is float32, out of table 'a' is float16; all tables of a call have"
    with pytest.raises(TypeError, match=match):
        emb.forward(*BATCH, out=out)
    assert digest(emb) == before


@pytest.mark.parametrize("dim", [8, 13, 16])
def test_bf16_anywhere_in_memory(dim: int) -> None:
    two_bytes_of_alignment("bf16", dim)


@on_every_device
@pytest.mark.parametrize("dim", [8, 13, 16])
def test_fp16_anywhere_in_memory(dim: int) -> None:
    two_bytes_of_alignment("fp16", dim)


def two_bytes_of_alignment(precision: str, dim: int) -> None:
    """Write an output that is aligned to no more than its elements, and read it as a gradient."""
    emb, twin = (
        on_device.make([mpe.TableConfig("a", 20, dim, "int8")], optimizer=mpe.SGD(0.1), seed=1)
        for _ in range(2)
    )
    batch = np.arange(10), np.array([0, 5, 10])
    whole = halves.narrowed(precision, twin.forward(*batch))
    out = halves.empty(precision, (2, dim), skipped=1)
    emb.forward(*batch, out=out)
    np.testing.assert_array_equal(halves.bits_of(precision, out), whole)
    emb.backward(out)
    twin.backward(halves.widened(precision, whole))
    assert digest(emb) == digest(twin)
