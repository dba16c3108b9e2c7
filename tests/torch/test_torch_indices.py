"""The element types of indices that modules take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch_modules import bag, batch, collection, features, state
from torch_modules import ended as with_end

import mpembed as mpe
from mpembed import torch as mt

pytestmark = pytest.mark.torch
UNSIGNED = [torch.uint32, torch.uint64]


def embedding(**options: Any) -> mt.Embedding:
    return mt.Embedding(50, 4, optimizer=mpe.SGD(lr=0.1), seed=0, **options)


def sequences(**options: Any) -> mt.EmbeddingCollection:
    tables = [mpe.TableConfig(name, 50, 4, pooling="none") for name in "ab"]
    return mt.EmbeddingCollection(tables, optimizer=mpe.SGD(lr=0.1), seed=0, **options)


def call(module: Any, dtype: torch.dtype) -> torch.Tensor:
    """Look up the same row numbers as this type."""
    if isinstance(module, mt.Embedding):
        result: torch.Tensor = module(torch.tensor([[1, 2], [3, 1]]).to(dtype))
    elif isinstance(module, mt.EmbeddingBag):
        indices, offsets = batch()
        result = module(indices.to(dtype), offsets)
    elif isinstance(module, mt.EmbeddingCollection):
        given = features("b", "a")
        given._values = given._values.to(dtype)
        result = module(given)["a"].values()
    else:
        given = features("c", "b", "a")
        given._values = given._values.to(dtype)
        result = module(given).values()
    return result


MODULES: list[Callable[..., Any]] = [embedding, bag, sequences, collection]


@pytest.mark.parametrize("dtype", UNSIGNED)
@pytest.mark.parametrize("make", MODULES)
def test_unsigned_indices_train_as_signed_ones(make: Callable[..., Any], dtype: Any) -> None:
    module, twin = make(), make()
    for _ in range(2):
        out, expected = call(module, dtype), call(twin, torch.int64)
        assert torch.equal(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
    assert state(module) == state(twin)


def test_unsigned_indices_table_major_and_two_dimensional() -> None:
    module = collection()
    given = features("a", "b", "c")
    for dtype in UNSIGNED:
        out = module(given.values().to(dtype), given.offsets())
        assert torch.equal(out, module(given.values(), given.offsets()))
        rows = bag()(torch.tensor([[1, 2], [3, 1]]).to(dtype).t())
        assert torch.equal(rows, bag()(torch.tensor([[1, 3], [2, 1]])))


@pytest.mark.parametrize("make", [embedding, bag, sequences, collection])
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int16, torch.uint16, torch.float32, torch.float64]
)
def test_other_types_are_refused_by_name(make: Callable[..., Any], dtype: torch.dtype) -> None:
    module = make()
    name = r"features.values\(\)" if make in (sequences, collection) else "input"
    with pytest.raises(
        TypeError,
        match=f"{name} must be int32, int64, uint32 or uint64, got {dtype}: convert it with "
        rf"{name}.long\(\)",
    ):
        call(module, dtype)


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_an_error_has_the_callers_value(dtype: torch.dtype) -> None:
    value = 2**32 - 1 if dtype is torch.uint32 else 2**64 - 1
    indices = torch.tensor([[1, value], [1, value - 1]], dtype=dtype)
    with pytest.raises(IndexError, match=rf"index {value} at position \(0, 1\) of input is out"):
        embedding()(indices)
    given = features("a", "b")
    given._values = torch.tensor([1, value, *given._values[2:].tolist()], dtype=dtype)
    with pytest.raises(IndexError, match=f"index {value} at position 1 of .*values.* is out of"):
        sequences()(given)


def test_dropped_indices_beyond_int64() -> None:
    module = embedding(bounds="drop").eval()
    found = module(torch.tensor([1, 2**64 - 1], dtype=torch.uint64))
    assert torch.equal(found, module(torch.tensor([1, -1])))


def test_input_is_not_modified() -> None:
    indices, offsets = batch()
    unsigned = indices.to(torch.uint64)
    bag(include_last_offset=True)(unsigned, with_end(indices, offsets)).sum().backward()
    assert torch.equal(unsigned.long(), indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint32])
def test_offsets_of_other_types_are_refused(dtype: torch.dtype) -> None:
    indices, offsets = batch()
    with pytest.raises(TypeError, match=r"^offsets.* got .*\.long\(\)"):
        bag()(indices, offsets.to(dtype))


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_unsigned_indices_compile(dtype: torch.dtype) -> None:
    torch.compiler.reset()
    module, twin = embedding(), embedding()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for run, one in ((compiled, dtype), (twin, torch.int64)):
        run(torch.tensor([[1, 2], [3, 1]]).to(one)).square().sum().backward()
    assert state(module) == state(twin)
