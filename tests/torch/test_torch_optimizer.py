"""mpembed.torch.FusedOptimizer: learning-rate schedulers and gradient scalers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch.optim import lr_scheduler
from torch.optim import optimizer as inside
from torch_modules import bag, batch, open_batches, state, train

import mpembed as mpe
from mpembed import torch as mt

pytestmark = pytest.mark.torch


def model(**options: Any) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(bag(optimizer=mpe.SGD(lr=0.1), **options), torch.nn.Linear(6, 1))


def loss_of(module: Any, indices: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = module[1](module[0](indices, offsets)).square().sum()
    return loss


def backward(module: Any, seed: int = 0) -> None:
    loss_of(module, *batch(seed)).backward()


def test_a_backward_uses_the_rate_that_its_group_holds() -> None:
    first, second = model(), model()
    fused = mt.FusedOptimizer(first, update="backward")
    for seed, lr in enumerate((0.1, 0.02, 0.3)):
        fused.param_groups[0]["lr"] = lr
        second[0].optimizer.lr = lr
        for one in (first, second):
            backward(one, seed)
    assert state(first[0]) == state(second[0])
    assert first[0].optimizer.lr == 0.3


SCHEDULERS: dict[str, Any] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=6, cycle_momentum=False),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 1 / (1 + k)),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_schedulers_set_the_rate_as_of_any_optimizer(scheduler: str) -> None:
    module = model()
    dense = torch.optim.SGD(module.parameters(), lr=0.1)
    fused = mt.FusedOptimizer(module, update="backward")
    schedules = [SCHEDULERS[scheduler](o) for o in (dense, fused)]
    rates = []
    for seed in range(5):
        for one in (dense, fused):
            one.zero_grad()
        rates.append(dense.param_groups[0]["lr"])
        backward(module, seed)
        assert module[0].optimizer.lr == rates[-1]  # the one that the update used
        for one in (dense, fused, *schedules):
            one.step()
    assert len(set(rates)) > 1


def test_a_plateau_lowers_the_rate() -> None:
    module = model()
    fused = mt.FusedOptimizer(module, update="backward")
    plateau = lr_scheduler.ReduceLROnPlateau(fused, patience=0)
    for _ in range(3):
        plateau.step(1.0)
    backward(module)
    assert module[0].optimizer.lr == pytest.approx(0.001)


def test_each_optimizer_of_the_model_is_a_group() -> None:
    shared = mpe.SGD(lr=0.1)
    modules: Any = torch.nn.ModuleList(
        [bag(optimizer=shared), bag(optimizer=mpe.SGD(lr=0.2)), bag(optimizer=shared)]
    )
    fused = mt.FusedOptimizer(modules, update="backward")
    assert [group["lr"] for group in fused.param_groups] == [0.1, 0.2]
    fused.param_groups[0]["lr"] = 0.5
    fused.step()
    assert [m.optimizer.lr for m in modules] == [0.5, 0.2, 0.5]
    kept = copy.deepcopy(fused.state_dict())
    fused.param_groups[1]["lr"] = 0.7
    train(modules[1], steps=1)
    assert modules[1].optimizer.lr == 0.7
    fused.load_state_dict(kept)
    assert modules[1].optimizer.lr == 0.2
    fused.param_groups[1]["lr"] = 0.9  # the groups are others since
    train(modules[1], steps=1)
    assert modules[1].optimizer.lr == 0.9


@pytest.mark.parametrize("kind", [torch.optim.SparseAdam, torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("stepped", [True, False])
def test_the_state_of_another_optimizer_is_refused(kind: Any, stepped: bool) -> None:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    other = kind([weight], lr=0.3)
    if stepped:
        dense = torch.ones(3, 2)
        weight.grad = dense.to_sparse() if kind is torch.optim.SparseAdam else dense
        other.step()
    fused = mt.FusedOptimizer(bag(optimizer=mpe.Adam(lr=0.1)))
    before = copy.deepcopy(fused.state_dict())
    with pytest.raises(ValueError, match=r"set_state and set_updates \(docs/migrating\.md\)"):
        fused.load_state_dict(other.state_dict())
    assert fused.state_dict() == before


def test_a_state_with_a_wrong_rate_is_refused_before_anything_changes() -> None:
    modules = torch.nn.ModuleList([bag(), bag()])
    fused = mt.FusedOptimizer(modules)
    wrong = copy.deepcopy(fused.state_dict())
    wrong["param_groups"][0]["lr"], wrong["param_groups"][1]["lr"] = 0.5, -1.0
    with pytest.raises(ValueError, match="lr"):
        fused.load_state_dict(wrong)
    assert [group["lr"] for group in fused.param_groups] == [0.1, 0.1]
    assert [module.optimizer.lr for module in modules] == [0.1, 0.1]  # type: ignore[union-attr]


def test_tables_with_a_rate_of_their_own_are_groups_of_a_module() -> None:
    tables = [
        mpe.TableConfig("a", 9, 4),
        mpe.TableConfig("b", 9, 4, lr=0.25),
        mpe.TableConfig("c", 9, 4, trainable=False),
        mpe.TableConfig("d", 9, 4),
    ]
    module = mt.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.5))
    optimizer = mt.FusedOptimizer(module, update="backward")
    assert [group["tables"] for group in optimizer.param_groups] == [["a", "d"], ["b"]]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]
    optimizer.param_groups[1]["lr"] = 0.125
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    before = [module.tables.rows(name, np.arange(9)) for name in "abcd"]
    module(torch.arange(4), torch.arange(5)).sum().backward()
    after = [module.tables.rows(name, np.arange(9)) for name in "abcd"]
    moved = [float((old - new).max()) for old, new in zip(before, after, strict=True)]
    assert moved == pytest.approx([0.5, 0.125, 0, 0.5])
    optimizer.step()
    scheduler.step()
    optimizer.step()  # the next backward would do the same
    rates = module.tables.optimizers
    assert [one and one.lr for one in rates.values()] == [0.25, 0.0625, None, 0.25]
    frozen = mt.EmbeddingBagCollection([mpe.TableConfig("c", 9, 4, trainable=False)])
    with pytest.raises(ValueError, match="all tables of the model are frozen"):
        mt.FusedOptimizer(frozen)


def test_a_shallow_copy_uses_the_rate_of_the_group_too() -> None:
    module = model()
    fused = mt.FusedOptimizer(module, update="backward")
    twin = copy.copy(module[0])
    fused.param_groups[0]["lr"] = 0.4
    train(twin, steps=1)
    assert module[0].optimizer.lr == 0.4


def test_a_closure_is_called_with_gradients() -> None:
    module = model()
    fused = mt.FusedOptimizer(module, update="backward")

    def closure() -> float:
        backward(module)
        return 3.0

    with torch.no_grad():
        assert fused.step(closure) == 3.0
    assert module[0].tables.step == 2


def test_without_it_the_last_rate_stays() -> None:
    module = model()
    fused = mt.FusedOptimizer(module, update="backward")
    fused.param_groups[0]["lr"] = 0.4
    fused.step()
    del fused
    module[0].optimizer.lr = 0.05
    backward(module)
    assert module[0].optimizer.lr == 0.05


def test_a_rate_that_is_none_is_refused_before_anything_changes() -> None:
    module = model()
    fused = mt.FusedOptimizer(module, update="backward")
    before = state(module[0])
    for bad in (float("nan"), -1.0):
        fused.param_groups[0]["lr"] = bad
        out = module[0](*batch())
        with pytest.raises(ValueError, match="lr must be"):
            out.sum().backward()
        del out
    assert open_batches(module[0]) == 0
    assert state(module[0])["table.table.rows"] == before["table.table.rows"]


def test_wrong_models_groups_and_copies_are_refused() -> None:
    with pytest.raises(TypeError, match="must be a torch.nn.Module, got int"):
        mt.FusedOptimizer(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no module of mpembed.torch"):
        mt.FusedOptimizer(torch.nn.Linear(1, 1))
    fused = mt.FusedOptimizer(model(), update="backward")
    with pytest.raises(ValueError, match="no other parameters"):
        fused.add_param_group({"params": [torch.zeros(1)]})
    for way in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="use its state_dict"):
            way(fused)


@pytest.mark.parametrize(
    ("compiled", "clearing", "unscaling"),
    [(False, True, False), (True, True, False), (False, False, False), (False, False, True)],
)
def test_scaled_gradients_are_unscaled_and_those_not_finite_update_nothing(
    compiled: bool, clearing: bool, unscaling: bool
) -> None:
    module, plain = (model(precision="fp32", cache=None) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    dense = torch.optim.SGD(module.parameters(), lr=0.1)
    dense_plain = torch.optim.SGD(plain.parameters(), lr=0.1)
    fused = mt.FusedOptimizer(module, grad_scaler=scaler, update="backward")
    run = torch.compile(loss_of, fullgraph=True, backend="aot_eager") if compiled else loss_of
    for seed, broken in enumerate((False, True, False, False)):
        for one in (dense, fused, dense_plain) if clearing else (dense, dense_plain):
            one.zero_grad()
        loss = run(module, *batch(seed))
        before = state(module[0])["table.table.rows"]
        weights = module[1].weight.detach().clone()
        scaler.scale(loss * (torch.inf if broken else 1.0)).backward()
        for one in (dense, fused):
            if unscaling:
                scaler.unscale_(one)
            scaler.step(one)
        scale = scaler.get_scale()
        scaler.update()
        if broken:
            assert state(module[0])["table.table.rows"] == before
            assert torch.equal(module[1].weight, weights)
            assert scaler.get_scale() == scale / 2
            continue
        assert scaler.get_scale() == scale
        backward(plain, seed)
        dense_plain.step()
        assert torch.equal(module[1].weight, plain[1].weight)
    assert open_batches(module[0]) == 0
    rows, same = (state(m[0])["table.table.rows"] for m in (module, plain))
    assert rows == same
    torch._dynamo.reset()


def test_a_scaler_halves_for_the_tables_alone() -> None:
    module = bag(optimizer=mpe.SGD(lr=0.1), precision="fp32", cache=None)
    twin = bag(optimizer=mpe.SGD(lr=0.1), precision="fp32", cache=None)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    fused = mt.FusedOptimizer(module, grad_scaler=scaler, update="backward")
    weights = torch.ones(1, 2, requires_grad=True)
    indices = torch.tensor([[1, 2]])
    out = module(indices, None, weights)
    (scaler.scale(out) * torch.inf).sum().backward()
    assert weights.grad is not None
    assert weights.grad.isnan().all()
    scaler.step(fused)
    scaler.update()
    assert scaler.get_scale() == 2.0
    fused.zero_grad()
    scaler.scale(module(indices)).sum().backward()
    twin(indices).sum().backward()
    scaler.step(fused)
    assert state(module)["table.table.rows"] == state(twin)["table.table.rows"]


def test_a_disabled_scaler_leaves_gradients_alone() -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    module, plain = bag(), bag()
    fused = mt.FusedOptimizer(module, grad_scaler=scaler, update="backward")
    scaler.scale(module(*batch()).sum()).backward()
    scaler.step(fused)
    plain(*batch()).sum().backward()
    assert state(module) == state(plain)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_pytorchs_optimizers_still_update_all_parameters_at_once(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "_get_foreach_kernels_supported_devices", lambda: ["cpu"])
    module, twin = model(), model()
    decide: Any = vars(inside)["_default_to_fused_or_foreach"]
    assert decide(list(module.parameters()), differentiable=False) == (False, True)
    for one, foreach in ((module, True), (twin, False)):
        attached = mt.FusedOptimizer(one)
        optimizer = kind(one.parameters(), 0.1, foreach=foreach)
        backward(one)
        attached.step()
        optimizer.step()
    for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
