"""Rows for inference: what a flush would write, in the layouts that other operators read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import digest

import mpembed as mpe
from mpembed import ops

E, D = 70, 12
FBGEMM = ("fp32", "fp16", "int8_fp16", "int4", "int2")


def trained(precision: str, optimizer: Any = None, dim: int = D) -> mpe.EmbeddingBagCollection:
    """Return a collection whose cache holds changed rows of both tables."""
    tables = [
        mpe.TableConfig("before", 9, dim, precision),
        mpe.TableConfig("t", E, dim, precision, table_id=5, first_row=1000),
    ]
    cache = mpe.CacheConfig(num_sets=2, ways=8)
    emb = mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=optimizer or mpe.SGD(0.1))
    rng = np.random.default_rng(0)
    for _ in range(4):
        indices = np.concatenate([rng.integers(0, 9, 6), rng.integers(0, E, 20)])
        emb.forward(indices, np.array([0, 3, 6, 16, 26]))
        emb.backward(rng.standard_normal((2, 2 * dim), np.float32))
    return emb


@pytest.mark.parametrize("optimizer", [mpe.SGD(0.1), mpe.RowwiseAdam(0.1)], ids=["sgd", "adam"])
@pytest.mark.parametrize("precision", mpe.registry.FORMATS)
def test_packed_rows_are_what_a_flush_would_write(precision: str, optimizer: Any) -> None:
    emb = trained(precision, optimizer)
    stale, before = emb.state_arrays()["table.t.rows"].copy(), digest(emb)
    rows = emb.export("t")
    assert digest(emb) == before
    assert rows.flags.c_contiguous
    assert rows.flags.writeable
    assert (rows != stale).any()
    rows_again = emb.export("t", layout="packed")
    rows[:] = 0  # a copy
    emb.flush()
    np.testing.assert_array_equal(rows_again, emb.state_arrays()["table.t.rows"])
    np.testing.assert_array_equal(emb.export("t"), rows_again)


@pytest.mark.parametrize("precision", FBGEMM)
def test_fbgemm_reads_scale_and_bias_first(precision: str) -> None:
    emb = trained(precision)
    packed, rows = emb.export("t"), emb.export("t", "fbgemm")
    header = packed.shape[1] - mpe.registry.code_bytes(precision, D)
    assert header == (0 if precision.startswith("fp") else 4)
    np.testing.assert_array_equal(rows, np.roll(packed, header, axis=1))
    if header:
        scale, bias = np.ascontiguousarray(rows[:, :4]).view(np.float16).astype(np.float32).T
        bits = {"int8_fp16": 8, "int4": 4, "int2": 2}[precision]
        unpacked = np.unpackbits(rows[:, 4:], axis=1, bitorder="little").reshape(E, -1, bits)
        codes = (unpacked[:, :D] << np.arange(bits)).sum(axis=2)
        values = codes * scale[:, None] + bias[:, None]
        np.testing.assert_allclose(values, ops.dequantize(packed, precision, D), rtol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("precision", "operator"), [("int8", "byte"), ("int4", "4bit"), ("int2", "2bit")]
)
def test_torch_reads_the_rows(precision: str, operator: str) -> None:
    torch = pytest.importorskip("torch")
    emb = trained(precision, dim=16)
    rows = emb.export("t", layout="torch")
    lookup = getattr(torch.ops.quantized, f"embedding_bag_{operator}_rowwise_offsets")
    indices, offsets = np.arange(0, E, 3), np.array([0, 4, 4, 24])
    theirs = lookup(*map(torch.from_numpy, (rows, indices, offsets)), include_last_offset=True)
    ours = ops.embedding_bag(rows, precision, 16, indices, offsets)
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "layout", "message"),
    [
        ("int8", "fbgemm", "use precision 'int8_fp16'"),
        ("bf16", "fbgemm", "layout='packed' gives the rows"),
        ("int8_fp16", "torch", "use precision 'int8'"),
        ("fp32", "torch", "layout='packed' gives the rows"),
        ("int6", "torch", "layout='packed' gives the rows"),
        ("int5", "fbgemm", "layout='packed' gives the rows"),
        ("int4", "onnx", "layout must be one of 'packed', 'torch', 'fbgemm', got 'onnx'"),
    ],
)
def test_a_layout_without_the_format_is_refused(precision: str, layout: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(precision).export("t", layout)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("precision", "operator", "dim", "multiple"),
    [("int4", "4bit", 7, 2), ("int2", "2bit", 6, 4), ("int2", "2bit", 9, 4)],
)
def test_dimensions_that_torch_reads_wrongly_are_refused(
    precision: str, operator: str, dim: int, multiple: int
) -> None:
    torch = pytest.importorskip("torch")
    emb = trained(precision, dim=dim)
    lookup = getattr(torch.ops.quantized, f"embedding_bag_{operator}_rowwise_offsets")
    one = torch.arange(1)
    assert lookup(torch.from_numpy(emb.export("t")), one, one).shape != (1, dim)
    message = rf"multiples of {multiple} only, and table 't' has {dim}: .* layout='packed'"
    with pytest.raises(ValueError, match=message):
        emb.export("t", layout="torch")


@pytest.mark.parametrize(
    ("precision", "dim"), [("int8", 7), ("int4", 6), ("int4", 1024), ("int2", 8), ("int2", 4)]
)
def test_dimensions_that_torch_reads(precision: str, dim: int) -> None:
    emb = trained(precision, dim=dim)
    np.testing.assert_array_equal(emb.export("t", layout="torch"), emb.export("t"))


def test_other_tables() -> None:
    tables = [mpe.TableConfig("none", 0, 4, "int4"), mpe.TableConfig("f", 3, 4, trainable=False)]
    emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.Adam())
    assert emb.export("none", "fbgemm").shape == (0, 6)
    np.testing.assert_array_equal(emb.export("f").view(np.float32), emb.rows("f", np.arange(3)))
    with pytest.raises(KeyError, match="no table 'x'"):
        emb.export("x")
