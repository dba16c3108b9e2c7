"""What optimizers of the user's own train, byte for byte: the reference's, and the package's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import on_device
import pytest
from drive import POLICIES, ROUNDINGS, count, every_format, make_cache, make_pair, train
from own_optimizers import DECAYS, cache_folder, cuda_compiler, derived, lion
from reference.pair import Batches, assert_same
from reference.scenario import OPERATIONS, Scenario

import mpembed as mpe

__all__ = ["cache_folder", "cuda_compiler"]


@pytest.fixture(autouse=True)
def compilers(request: pytest.FixtureRequest, each_device: str) -> None:
    """Have a compiler for the device in use."""
    if each_device != "cpu":
        request.getfixturevalue("cuda_compiler")


@pytest.mark.parametrize("mode", DECAYS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lion_has_the_bytes_of_the_reference(precision: str, policy: Any, mode: str) -> None:
    """Every format and pooling, non-finite gradients among them, which leave rows as they were."""
    optimizer = lion(mode=mode, state_precision=precision)
    pair = make_pair(every_format(), make_cache(policy), optimizer, seed=2**40 + 5)
    train(pair, Batches(pair.ref, 1), 5)
    assert policy is None or count(pair, "evictions") > 0
    assert count(pair, "nonfinite") > 0


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_rounding(rounding: str) -> None:
    optimizer = lion(mode="l2", state_precision="bf16")
    pair = make_pair(every_format(), make_cache("lru"), optimizer, rounding=rounding)
    train(pair, Batches(pair.ref, 1), 4)


def test_long_rows_and_rates_beside_other_optimizers() -> None:
    """Rows of one warp and of several; a table of the package's optimizer, and a frozen one."""
    tables = [
        mpe.TableConfig("short", 40, 256, "int8"),
        mpe.TableConfig("long", 40, 300, "int4"),
        mpe.TableConfig("rate", 40, 300, "fp16", lr=0.5),
        mpe.TableConfig("adagrad", 40, 300, "int8", optimizer=mpe.Adagrad(0.1)),
        mpe.TableConfig("frozen", 40, 300, "int8", trainable=False),
    ]
    pair = make_pair(tables, make_cache("lfu"), lion())
    batches = Batches(pair.ref, 3)
    train(pair, batches, 3)
    pair.set_lr("long", 0.01)
    train(pair, batches, 2)


@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
def test_a_scenario_with_open_tickets(policy: str) -> None:
    tables = [mpe.TableConfig(f"t{i}", 50, (4, 9)[i % 2], "int8", "mean") for i in range(3)]
    pair = make_pair(tables, make_cache(policy, 2), lion(), seed=3)
    batches = Batches(pair.ref, 3)
    scenario = Scenario(pair, batches, {"batch": 3, "longest": 3})
    for operation in batches.rng.choice(OPERATIONS, 60):
        scenario.run(operation)


def adam_like(base: str, header: str) -> Callable[..., mpe.cuda.Optimizer]:
    parameters = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-6}
    return lambda **others: derived(base, header, 0.05, parameters=parameters, **others)


TWINS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "a state of a row, and a sum over it": (
        adam_like("RowwiseAdam", "rowwise_adam"),
        lambda **others: mpe.RowwiseAdam(0.05, (0.9, 0.99), 1e-6, **others),
    ),
    "sums at the end": (
        adam_like("Lamb", "lamb"),
        lambda **others: mpe.Lamb(0.05, (0.9, 0.99), 1e-6, **others),
    ),
    "no state": (
        lambda **others: derived("Sgd", "sgd", 0.05),
        lambda **others: mpe.SGD(0.05),
    ),
}


@pytest.mark.parametrize("twins", TWINS)
@pytest.mark.parametrize(("precision", "output_dtype"), [("fp32", "fp16"), ("bf16", "fp32")])
def test_a_struct_of_the_package_trains_as_it_does(
    twins: str, precision: str, output_dtype: str
) -> None:
    """A bias correction that counts updates, with all that an optimizer may ask for."""
    mine, theirs = (make(state_precision=precision) for make in TWINS[twins])
    one, other = (trained(optimizer, output_dtype) for optimizer in (mine, theirs))
    assert [state[:2] for state in mine.states] == [state[:2] for state in theirs.states]
    renamed = {name.replace(f".{mine.kind}", f".{theirs.kind}"): a for name, a in one.items()}
    assert_same(renamed, other, "state")


def trained(optimizer: Any, output_dtype: str) -> dict[str, Any]:
    """Return the state after some steps."""
    dims = (3, 300) if on_device.used() == "cpu" else (3, 40)
    tables = [mpe.TableConfig(f"t{dim}", 60, dim, "int8") for dim in dims]
    cache = mpe.CacheConfig(num_sets=1, ways=8)
    emb = on_device.make(tables, cache=cache, optimizer=optimizer, seed=9)
    rng = np.random.default_rng(5)
    for _ in range(6):
        offsets = np.arange(0, 2 * len(tables) * 10 + 1, 2)
        out = emb.forward(rng.integers(0, 60, offsets[-1]), offsets, output_dtype=output_dtype)
        emb.backward(rng.standard_normal(out.shape).astype(out.dtype))
    arrays: dict[str, Any] = emb.state_arrays()
    return arrays
