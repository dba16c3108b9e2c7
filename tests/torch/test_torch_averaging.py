"""Averages of models: as those of PyTorch's embeddings, in FP32, or refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn
from torch.optim import swa_utils
from torch_modules import CACHE, bag, batch, collection, state, train

import mpembed as mpe
from mpembed import torch as mt

pytestmark = pytest.mark.torch
WAYS: dict[str, dict[str, Any]] = {
    "equal": {},
    "several": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)},
    "one by one": {"avg_fn": swa_utils.get_ema_avg_fn(0.9)},
    "own": {"avg_fn": lambda average, now, count: torch.maximum(average, now)},
    "buffers": {"use_buffers": True},
}


def original() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Embedding(50, 4), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 1, bias=False)
    )


def step(model: nn.Module, rate: float, seed: int) -> None:
    """Train with SGD by hand; converted tables train by themselves."""
    ids = torch.randint(50, (8, 3), generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    model(ids).square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [swa_utils.AveragedModel, mt.AveragedModel])
def test_averages_equal_those_of_the_original(way: str, make: Any) -> None:
    first, second = original(), original()
    mt.convert(second, "fp32", CACHE, mpe.SGD(lr=0.1), verbose=False)
    expected = swa_utils.AveragedModel(first, **WAYS[way])
    averaged = make(second, **WAYS[way])
    assert type(averaged) is mt.AveragedModel
    for seed in range(5):
        step(first, 0.1, seed)
        step(second, 0.1, seed)
        expected.update_parameters(first)
        averaged.update_parameters(second)
    own = averaged.state_dict()
    assert own.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(own[name], value, rtol=1e-5, atol=1e-6)


def test_small_steps_are_not_rounded_into_the_tables_format() -> None:
    module = bag(precision="int4", cache=None)
    averaged: Any = mt.AveragedModel(module, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.999))
    averaged.update_parameters(module)
    before = averaged.module.weight.detach().clone()
    values = torch.ones(50, 6)
    module.tables.set_rows("table", torch.arange(50), values)
    averaged.update_parameters(module)
    expected = torch.lerp(before, values, 0.001)
    torch.testing.assert_close(averaged.module.weight.detach(), expected, rtol=0, atol=1e-6)


def test_an_average_loads_into_the_converted_model_and_leaves_it_alone() -> None:
    model = nn.Sequential(bag(precision="fp32"), nn.Linear(6, 1))
    train(model[0])
    before = state(model[0])
    averaged: Any = swa_utils.AveragedModel(model)
    for _ in range(3):
        averaged.update_parameters(model)
    assert state(model[0]) == before
    bags, offsets = batch()
    with torch.no_grad():
        ours = model[1](model[0](bags, offsets))
        theirs = averaged.module[1](averaged.module[0](bags, offsets))
    torch.testing.assert_close(theirs, ours)
    train(model[0], seed=7)
    model.load_state_dict(averaged.module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model[1](model[0](bags, offsets)), ours)


def test_shared_tables_are_averaged_once() -> None:
    first = bag()
    model = nn.ModuleList([first, first, mt.EmbeddingBag.from_collection(first.tables)])
    averaged: Any = mt.AveragedModel(model)
    train(first)
    averaged.update_parameters(model)
    assert len(list(averaged.module.parameters())) == 1
    rows = torch.from_numpy(first.tables.rows("table", torch.arange(50)))
    assert torch.equal(averaged.module[2].weight, rows)


def test_weights_have_the_outputs_type() -> None:
    model = bag(output_dtype=torch.bfloat16)
    averaged: Any = mt.AveragedModel(model)
    for _ in range(2):
        averaged.update_parameters(model)
    assert averaged.module.weight.dtype == torch.bfloat16


def test_an_average_is_copied_pickled_and_saved() -> None:
    model = nn.Sequential(bag())
    averaged: Any = swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    for twin in (copy.deepcopy(averaged), pickle.loads(pickle.dumps(averaged))):
        train(model[0])
        twin.update_parameters(model)
        assert int(twin.n_averaged) == 2
        other: Any = swa_utils.AveragedModel(nn.Sequential(bag()))
        other.load_state_dict(twin.state_dict())
        assert torch.equal(other.module[0].weight, twin.module[0].weight)


def test_models_without_tables_are_pytorchs() -> None:
    assert type(swa_utils.AveragedModel(nn.Linear(2, 2))) is swa_utils.AveragedModel
    model = nn.Linear(2, 2)
    averaged: Any = mt.AveragedModel(model)
    averaged.update_parameters(model)
    assert torch.equal(averaged.module.weight, model.weight)


class Other(swa_utils.AveragedModel):
    pass


class Own(mt.AveragedModel):
    pass


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(ValueError, match="PyTorch has no module for EmbeddingBagCollection"):
        swa_utils.AveragedModel(nn.Sequential(collection()))
    with pytest.raises(TypeError, match="Other averages parameters, .* derive it from mpembed.tor"):
        Other(nn.Sequential(bag()))
    assert type(Own(bag())) is Own
    averaged: Any = swa_utils.AveragedModel(nn.Sequential(bag(), nn.Linear(6, 1)))
    with pytest.raises(ValueError, match="model has 1 parameters and tables, its average 3: pass"):
        averaged.update_parameters(nn.Sequential(bag()))
    model = nn.Sequential(bag())
    with pytest.raises(ValueError, match="module of an AveragedModel must have no tables"):
        averaged.module = model
    assert type(model[0]) is mt.EmbeddingBag
