"""The forms of outputs: mpembed.torch.JaggedTensor reads as TorchRec's."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from mpembed import torch as mt

pytestmark = pytest.mark.torch


def jagged(*lengths: int) -> mt.JaggedTensor:
    values = torch.arange(2.0 * sum(lengths)).view(-1, 2) + 1
    return mt.JaggedTensor(values.requires_grad_(), torch.tensor(lengths, dtype=torch.int32))


def test_a_jagged_tensor_has_values_lengths_and_offsets() -> None:
    one = jagged(2, 0, 1)
    assert one.values().shape == (3, 2)
    assert one.lengths().tolist() == [2, 0, 1]
    assert one.offsets().tolist() == [0, 2, 2, 3]
    assert one.offsets().dtype == torch.int32
    assert one.weights_or_none() is None
    assert repr(one) == "JaggedTensor((3, 2), lengths=[2, 0, 1])"


def test_bags_on_their_own() -> None:
    dense = jagged(2, 0, 1).to_dense()
    assert [part.tolist() for part in dense] == [[[1, 2], [3, 4]], [], [[5, 6]]]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (None, [[[1, 2], [3, 4]], [[9, 9], [9, 9]], [[5, 6], [9, 9]]]),
        (1, [[[1, 2]], [[9, 9]], [[5, 6]]]),
        (0, [[], [], []]),
    ],
)
def test_padded_bags(length: int | None, expected: list[list[list[float]]]) -> None:
    assert jagged(2, 0, 1).to_padded_dense(length, 9.0).tolist() == expected


def test_padded_bags_have_a_gradient() -> None:
    one = jagged(2, 0, 1)
    one.to_padded_dense(1).sum().backward()
    grad = one.values().grad
    assert grad is not None
    assert grad.tolist() == [[1, 1], [0, 0], [1, 1]]


def test_no_bags() -> None:
    none = jagged()
    assert none.offsets().tolist() == [0]
    assert none.to_dense() == []
    assert none.to_padded_dense().shape == (0, 0, 2)
