"""Wrong batches of one table: errors are about the arguments of the module's forward."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch_modules import bag, batch, state

import mpembed as mpe
from mpembed import torch as mt

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 3], r"^offsets must not exceed the number of indices, 2, but offsets\[1\] is 3$"),
        ([1], "^offsets must start at 0, got 1$"),
        ([0, 2, 1], r"^offsets must not decrease: offsets\[2\] is 1, less than the one before$"),
        ([0, -1], r"^offsets must not decrease: offsets\[1\] is -1, less than the one before$"),
        ([], "^offsets must start with 0, got none, and input has 2 indices$"),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_offsets_without_an_end(offsets: list[int], message: str, training: bool) -> None:
    module = bag().train(training)
    before = state(module)
    with pytest.raises(ValueError, match=message):
        module(torch.tensor([1, 2]), torch.tensor(offsets, dtype=torch.int64))
    assert state(module) == before


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 1], r"end at the number of indices, 2, .* include_last_offset=True, but offsets\[1\]"),
        ([0, 1], r"is 1; make it with include_last_offset=False if offsets has one entry a bag$"),
        ([0, 3], r"end at the number of indices, 2, .* but offsets\[1\] is 3"),
        ([1, 2], "^offsets must start at 0, got 1$"),
        ([0, 2, 1, 2], r"^offsets must not decrease: offsets\[2\] is 1"),
        ([], "^offsets must start with 0, got none"),
    ],
)
def test_offsets_with_an_end(offsets: list[int], message: str) -> None:
    module = bag(include_last_offset=True)
    with pytest.raises(ValueError, match=message):
        module(torch.tensor([1, 2]), torch.tensor(offsets, dtype=torch.int64))


@pytest.mark.parametrize(
    ("offsets", "kind", "message"),
    [
        (None, ValueError, "where each bag begins; .* pass an input of two dimensions"),
        ([0, 1], TypeError, "offsets must be a tensor, got list"),
        (torch.tensor([[0, 1]]), ValueError, r"one dimension .*, got shape \(1, 2\)"),
        (torch.tensor([0.0]), TypeError, r"int32 or int64, got torch.float32: .*offsets.long\(\)"),
    ],
)
def test_other_offsets(offsets: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        bag()(torch.tensor([1, 2]), offsets)


@pytest.mark.parametrize(
    ("input", "place"),
    [
        ([1, 60, -1], "index 60 at position 1 of input"),
        ([[1, 2], [3, 60], [60, 0]], r"index 60 at position \(1, 1\) of input"),
        ([[[-1]], [[60]]], r"index -1 at position \(0, 0, 0\) of input"),
    ],
)
def test_an_index_out_of_range_of_an_embedding(input: Any, place: str) -> None:
    module = mt.Embedding(50, 4, optimizer=mpe.SGD(0.1), name="words")
    message = rf"^table 'words' \(num_embeddings=50\): {place} is out of range; 2 such"
    with pytest.raises(IndexError, match=message):
        module(torch.tensor(input))


def test_an_index_out_of_range_of_a_bag() -> None:
    indices, offsets = batch()
    indices[2] = 50
    with pytest.raises(IndexError, match="index 50 at position 2 of input is out of range; 1 such"):
        bag()(indices, offsets)
    with pytest.raises(IndexError, match=r"index 50 at position \(1, 0\) of input"):
        bag()(torch.tensor([[1, 2], [50, 3]]))


def test_other_errors_stay_as_they_are() -> None:
    indices, offsets = batch()
    with pytest.raises(ValueError, match="^per_sample_weights must have the shape of input"):
        bag()(indices, offsets, torch.ones(1))
