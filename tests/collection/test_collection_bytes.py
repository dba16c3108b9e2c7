"""Every byte of a collection equals the reference's: all optimizers, formats and policies."""

from __future__ import annotations

import kinds
import pytest
from drive import (
    FORMATS,
    POLICIES,
    ROUNDINGS,
    count,
    every_format,
    make_cache,
    make_pair,
    train,
)
from oracles import DECAYS
from reference.pair import Batches
from reference.scenario import OPERATIONS, Scenario

import mpembed as mpe

pytestmark = pytest.mark.usefixtures("each_device")


@pytest.mark.pairwise
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("optimizer", kinds.EVERY)
def test_the_whole_registry(optimizer: str, policy: str, decay: str) -> None:
    assert_bytes_of_the_reference(optimizer, policy, decay, mpe.registry.DEFAULT_ROUNDING)


@pytest.mark.pairwise
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam_bf16", "rowwise_adam_mixed"])
def test_every_rounding(optimizer: str, policy: str, rounding: str) -> None:
    assert_bytes_of_the_reference(optimizer, policy, "l2", rounding)


def assert_bytes_of_the_reference(
    optimizer: str, policy: str | None, decay: str, rounding: str
) -> None:
    """Train a collection of every format with every pooling, in four dimensions."""
    rule = kinds.named(optimizer, mode=decay)
    pair = make_pair(every_format(), make_cache(policy), rule, seed=2**40 + 5, rounding=rounding)
    train(pair, Batches(pair.ref, 1), 5)
    assert policy is None or count(pair, "evictions") > 0


def test_every_kind_is_made_with_every_precision_of_its_states() -> None:
    made = [kinds.named(name) for name in kinds.EVERY]
    assert {one.kind for one in made} == set(mpe.registry.OPTIMIZERS)
    found = {(one.kind, name, precision) for one in made for name, _, precision, _ in one.states}
    wanted = {(kind, state) for kind, states in kinds.STATES.items() for state in states}
    assert found == {
        (*one, precision) for one in wanted for precision in mpe.registry.STATE_FORMATS
    }


@pytest.mark.pairwise
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("optimizer", kinds.ONE_EACH)
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_dimensions(optimizer: str, policy: str, pooling: str) -> None:
    """Each kind of optimizer trains a third of the dimensions, and three of every format."""
    dims = [1, 2, 5, 7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257, 300]
    dims = dims[kinds.ONE_EACH.index(optimizer) % 3 :: 3]
    tables = [
        mpe.TableConfig(f"t{dim}", 11, dim, FORMATS[i % len(FORMATS)], pooling)
        for i, dim in enumerate(dims)
    ]
    tables += [
        mpe.TableConfig(f"{name}{dim}", 9, dim, name, pooling)
        for name in FORMATS
        for dim in (1, 12, 67)
    ]
    pair = make_pair(tables, make_cache(policy), kinds.named(optimizer))
    train(pair, Batches(pair.ref, 2), 3)


@pytest.mark.pairwise
@pytest.mark.parametrize("seed", range(len(kinds.ONE_EACH)))
@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
def test_a_long_scenario_in_a_small_cache(policy: str, seed: int) -> None:
    """Enough batches that the sketch is halved and tickets hold most of the cache."""
    tables = [
        mpe.TableConfig(f"t{i}", 50, (4, 4, 9)[i % 3], FORMATS[(seed + i) % len(FORMATS)], "mean")
        for i in range(3)
    ]
    name = kinds.ONE_EACH[seed]
    pair = make_pair(tables, make_cache(policy, 2), kinds.named(name), seed=seed)
    batches = Batches(pair.ref, seed)
    scenario = Scenario(pair, batches, {"batch": 3, "longest": 3})
    for operation in batches.rng.choice(OPERATIONS, 80):
        scenario.run(operation)
    assert count(pair, "evictions") > 0
    assert count(pair, "write_backs") > 0
