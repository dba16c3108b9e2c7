"""padding_idx: that row reads as stored, is never updated, and is left out of sums and means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn
from torch_modules import bag, state

import mpembed as mpe
from mpembed import torch as mt

pytestmark = pytest.mark.torch

PAD = 2
#: Indices with padding inside, at the ends, alone, and none.
BAGS = torch.tensor([[1, PAD, 3], [PAD, PAD, PAD], [PAD, 4, 4], [5, 6, PAD], [7, 8, 9]])
FLAT, STARTS = BAGS.reshape(-1), torch.tensor([0, 2, 2, 5, 14])
ARGUMENTS: dict[str, Any] = {
    "two dimensions": (BAGS,),
    "offsets": (FLAT, STARTS),
    "int32": (FLAT.int(), STARTS.int()),
    "no padding": (BAGS[-1:],),
    "padding alone": (BAGS[1:2],),
    "nothing": (FLAT[:0], STARTS[:1]),
}


def pair(mode: str, optimizer: Any, **options: Any) -> tuple[Any, nn.EmbeddingBag]:
    ours = mt.EmbeddingBag(
        12, 4, mode=mode, padding_idx=PAD, optimizer=optimizer, bounds="raise", **options
    )
    theirs = nn.EmbeddingBag(12, 4, mode=mode, padding_idx=PAD)
    with torch.no_grad():
        theirs.weight[PAD] = 5.0
    ours.weight = theirs.weight
    return ours, theirs


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("deferred", [True, False])
def test_bags_leave_padding_out_as_pytorch_does(mode: str, arguments: str, deferred: bool) -> None:
    ours, theirs = pair(mode, mpe.SGD(0.5))
    optimizer = torch.optim.SGD(theirs.parameters(), 0.5)
    fused = mt.FusedOptimizer(ours, update="step" if deferred else "backward")
    given = ARGUMENTS[arguments]
    for _ in range(3):
        outs = [one(*given) for one in (ours, theirs)]
        torch.testing.assert_close(*outs)
        torch.testing.assert_close(ours.eval()(*given), outs[1])
        ours.train()
        for out in outs:
            (out * torch.arange(out.numel()).view_as(out)).sum().backward()
        for one in (fused, optimizer):
            one.step()
            one.zero_grad()
        torch.testing.assert_close(ours.weight.detach(), theirs.weight.detach())


@pytest.mark.parametrize("deferred", [True, False])
def test_weights_of_padding_have_no_gradient(deferred: bool) -> None:
    ours, theirs = pair("sum", mpe.SGD(0.0))
    fused = mt.FusedOptimizer(ours, update="step" if deferred else "backward")
    given = [torch.linspace(1, 2, 15, requires_grad=True) for _ in range(2)]
    for one, weights in zip((ours, theirs), given, strict=True):
        one(FLAT, STARTS, weights).square().sum().backward()
    torch.testing.assert_close(given[0].grad, given[1].grad)
    fused.step()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("deferred", [True, False])
def test_the_row_is_read_and_neither_decays_nor_moves(
    precision: str, cached: bool, deferred: bool
) -> None:
    cache = mpe.CacheConfig(num_sets=1, ways=8) if cached else None
    optimizer = mpe.Adam(0.1, weight_decay=0.1, weight_decay_mode="decoupled")
    module = mt.Embedding(
        12, 4, precision=precision, padding_idx=PAD - 12, cache=cache, optimizer=optimizer
    )
    assert module.padding_idx == PAD
    assert (module.weight[PAD] == 0).all()
    assert (module.weight != 0).any(1).sum() == 11
    assert f"padding_idx={PAD}" in repr(module)
    module.weight.data[PAD] = 0.25
    fused = mt.FusedOptimizer(module, update="step" if deferred else "backward")
    before = module.weight.detach().clone()
    for _ in range(3):
        out = module(BAGS)
        assert (out[BAGS == PAD] == 0.25).all()
        assert torch.equal(module.eval()(BAGS)[BAGS == PAD], out[BAGS == PAD])
        module.train()
        out.square().sum().backward()
        fused.step()
    changed = (module.weight.detach() != before).any(1)
    assert changed.nonzero().squeeze(1).tolist() == [1, 3, 4, 5, 6, 7, 8, 9]
    assert module.tables.stats()["table"]["accesses"] % 3 == 0


def test_errors_speak_of_the_callers_indices_and_offsets() -> None:
    module = mt.EmbeddingBag(12, 4, mode="sum", padding_idx=PAD, optimizer=mpe.SGD(0.1))
    words = mt.Embedding(12, 4, padding_idx=PAD, optimizer=mpe.SGD(0.1))
    wrong = torch.tensor([PAD, 1, PAD, 12])
    for train in (True, False):
        with pytest.raises(IndexError, match=r"index 12 at position 3 of in"):
            module.train(train)(wrong, torch.tensor([0]))
        with pytest.raises(IndexError, match=r"index 12 at position 3 of in"):
            words.train(train)(wrong)
        for offsets in ([0, 3, 2], [1, 2], [0, 9]):
            with pytest.raises(ValueError, match="offsets"):
                module(torch.tensor([PAD, 1, PAD, 1]), torch.tensor(offsets))


def test_a_wrong_row_or_a_change_of_it_is_refused() -> None:
    for wrong, error in ((12, ValueError), (-13, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="padding_idx"):
            mt.Embedding(12, 4, padding_idx=wrong, optimizer=mpe.SGD(0.1))  # type: ignore[arg-type]
    module = bag(padding_idx=3)
    with pytest.raises(AttributeError, match="padding_idx is fixed"):
        module.padding_idx = 4


def test_copies_keep_it() -> None:
    import copy
    import pickle

    module = bag(padding_idx=3)
    for twin in (copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert twin.padding_idx == 3
        before = np.array(twin.tables.rows("table", np.array([3])))
        twin(torch.tensor([[3, 4]])).sum().backward()
        assert np.array_equal(twin.tables.rows("table", np.array([3])), before)
    assert state(module) is not None


def test_compiled_code_leaves_it_out_as_well() -> None:
    module, twin = (bag(padding_idx=3) for _ in range(2))
    run = torch.compile(
        lambda indices: module(indices).square().sum(), fullgraph=True, backend="aot_eager"
    )
    for indices in (torch.tensor([[3, 4], [5, 3]]), torch.tensor([[1, 2], [5, 6]])):
        run(indices).backward()
        twin(indices).square().sum().backward()
        assert state(module) == state(twin)
    torch._dynamo.reset()
