"""mpembed.torch.EmbeddingBag and Embedding beside PyTorch's own and beside the bare collection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch._subclasses import FakeTensorMode
from torch_modules import CACHE, bag, batch, ended, open_batches, state

import mpembed as mpe
from mpembed import torch as mt
from mpembed.torch._one_table import equal_bag_offsets

pytestmark = pytest.mark.torch


def pair(mode: str = "sum", **options: Any) -> tuple[Any, torch.nn.EmbeddingBag]:
    """Return a module in FP32 and PyTorch's with the same rows."""
    ours = bag(mode=mode, precision="fp32", cache=None, optimizer=mpe.SGD(lr=0.5), **options)
    rows = torch.from_numpy(ours.tables.rows("table", np.arange(50)))
    theirs = torch.nn.EmbeddingBag(
        50, 6, mode=mode, _weight=rows.clone(), include_last_offset=ours.include_last_offset
    )
    return ours, theirs


def step(module: Any, *arguments: Any) -> torch.Tensor:
    out: torch.Tensor = module(*arguments)
    (out * torch.arange(out.numel()).view_as(out)).sum().backward()
    if not isinstance(module, mt.EmbeddingBag):
        with torch.no_grad():
            assert module.weight.grad is not None
            module.weight -= 0.5 * module.weight.grad
        module.weight.grad = None
    return out.detach()


def rows_of(module: Any) -> torch.Tensor:
    if isinstance(module, mt.EmbeddingBag | mt.Embedding):
        return torch.from_numpy(module.tables.rows("table", np.arange(module.num_embeddings)))
    rows: torch.Tensor = module.weight.detach()
    return rows


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("last", [False, True])
def test_bags_give_and_train_what_pytorch_does(mode: str, dtype: torch.dtype, last: bool) -> None:
    ours, theirs = pair(mode, include_last_offset=last)
    indices, offsets = batch()
    given = (indices.to(dtype), (ended(indices, offsets) if last else offsets).to(dtype))
    for _ in range(3):
        torch.testing.assert_close(step(ours, *given), step(theirs, *given))
    torch.testing.assert_close(rows_of(ours), rows_of(theirs))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_two_dimensions_are_bags_of_one_size(mode: str) -> None:
    ours, theirs = pair(mode)
    for shape in ((4, 3), (1, 7), (4, 3), (0, 4)):
        indices = torch.arange(shape[0] * shape[1]).view(shape) % 50
        torch.testing.assert_close(step(ours, indices), step(theirs, indices))
    strided = torch.arange(24).view(4, 6)[:, ::2]
    torch.testing.assert_close(step(ours, strided), step(theirs, strided))
    torch.testing.assert_close(rows_of(ours), rows_of(theirs))
    assert torch.equal(ours(torch.zeros(3, 0, dtype=torch.int64)), torch.zeros(3, 6))


@pytest.mark.parametrize("flat", [False, True])
def test_weights_have_the_gradient_of_pytorch(flat: bool) -> None:
    ours, theirs = pair()
    indices, offsets = torch.tensor([[1, 2, 2], [49, 0, 7]]), None
    values = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, 1.5]])
    if flat:
        indices, values, offsets = indices.view(-1), values.view(-1), torch.tensor([0, 4])
    w1, w2 = (values.clone().requires_grad_() for _ in range(2))
    torch.testing.assert_close(step(ours, indices, offsets, w1), step(theirs, indices, offsets, w2))
    assert w1.grad is not None
    torch.testing.assert_close(w1.grad, w2.grad)
    torch.testing.assert_close(rows_of(ours), rows_of(theirs))
    half = values.to(torch.float16).requires_grad_()
    step(ours, indices, offsets, half)
    assert half.grad is not None
    assert half.grad.dtype is torch.float16


def test_training_is_that_of_the_bare_collection_to_the_last_bit() -> None:
    module, twin = bag(), bag()
    for number in range(5):
        indices, offsets = batch(number)
        out = module(indices, offsets)
        expected = twin.tables.forward(indices, ended(indices, offsets))
        assert torch.equal(out.detach(), torch.from_numpy(expected))
        out.square().sum().backward()
        twin.tables.backward(2 * expected)
    assert state(module) == state(twin)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 1, 3), (0,)])
def test_an_embedding_gives_a_row_an_index(shape: tuple[int, ...]) -> None:
    ours = mt.Embedding(50, 6, optimizer=mpe.SGD(lr=0.5), cache=CACHE)
    theirs = torch.nn.Embedding(50, 6, _weight=rows_of(ours).clone())
    indices = torch.arange(int(np.prod(shape))).view(shape) % 3
    out, expected = ours(indices), theirs(indices)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    assert theirs.weight.grad is not None
    torch.testing.assert_close(rows_of(ours), theirs.weight.detach() - 0.5 * theirs.weight.grad)


def test_what_is_wrong_with_a_batch_is_raised_before_anything_changes() -> None:
    module, twin = bag(), bag()
    indices, offsets = batch()
    for error, message, arguments in (
        (ValueError, "offsets must be a tensor of one dimension", (indices,)),
        (ValueError, "offsets must be None", (indices.view(1, -1), offsets)),
        (ValueError, "one or two dimensions, got 3", (indices.view(1, 1, -1),)),
        (ValueError, "must have the shape of input", (indices, offsets, torch.ones(1))),
        (ValueError, "must start at 0", (indices, offsets + 1)),
        (TypeError, "input must be a tensor, got ndarray", (indices.numpy(), offsets)),
        (ValueError, "nested", (torch.nested.nested_tensor([indices], layout=torch.jagged),)),
        (IndexError, r"index 50 at position \(0, 0\)", (torch.tensor([[50]]),)),
        (TypeError, "input must be int32", (indices.float(), offsets)),
    ):
        with pytest.raises(error, match=message):
            module(*arguments)
    assert state(module) == state(twin)
    assert open_batches(module) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding_idx": 50}, "padding_idx must be a row of the table, 0 to 49"),
        ({"max_norm": 1.0}, "EmbeddingBag: max_norm=1.0 is not supported"),
        ({"scale_grad_by_freq": True}, "scale_grad_by_freq"),
        ({"mode": "max"}, "mode must be 'sum' or 'mean'"),
        ({"output_dtype": torch.int32}, "output_dtype must be"),
        ({"clip_grad_value": 0.0}, "clip_grad_value must be positive"),
        ({"clip_grad_norm": float("nan")}, "clip_grad_norm must be finite"),
        ({"precision": "int7"}, "int7"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bag(**options)


def test_options_without_a_meaning_are_accepted() -> None:
    bag(sparse=True, norm_type=1.0, max_norm=None, scale_grad_by_freq=False)
    mt.Embedding(9, 4, optimizer=mpe.SGD(), **{"sparse": True})  # type: ignore[arg-type]


def test_bags_of_one_size_are_those_of_the_call_whatever_other_threads_do() -> None:
    sizes = torch.arange(12).view(4, 3), torch.arange(12).view(3, 4)
    of_another = (3, 4, sizes[1].device), equal_bag_offsets(sizes[1], 3, 4)

    def end_another(module: Any, _: Any) -> None:
        """Let the call of another thread be the last to keep its offsets."""
        module.__dict__["kept"] = of_another

    kept = property(lambda module: module.__dict__["kept"], end_another)
    raced: Any = type("Raced", (mt.EmbeddingBag,), {"_equal_bags": kept})
    module, plain = (
        kind(50, 6, optimizer=mpe.SGD(lr=0.1), seed=0).eval() for kind in (raced, mt.EmbeddingBag)
    )
    for input in sizes:
        assert torch.equal(module(input), plain(input))


def test_a_fake_batch_leaves_nothing_behind() -> None:
    module = bag().eval()
    with FakeTensorMode(), pytest.raises(BufferError, match="no memory"):
        module(torch.zeros(2, 3, dtype=torch.int64))
    assert module(torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 6)


def test_unknown_options_are_told_by_name() -> None:
    with pytest.raises(TypeError, match="'dtype' is not an option"):
        mt.EmbeddingBag(10, 4, optimizer=mpe.SGD(0.1), dtype=torch.float16)  # type: ignore[call-arg]


def test_a_torch_device_is_a_device() -> None:
    made = mt.EmbeddingBag(10, 4, optimizer=mpe.SGD(0.1), device=torch.device("cpu"))
    assert made.tables.device == "cpu"
    with pytest.raises(ValueError, match="'meta'"):
        mt.EmbeddingBag(10, 4, optimizer=mpe.SGD(0.1), device=torch.device("meta"))
