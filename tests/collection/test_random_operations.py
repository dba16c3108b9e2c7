"""Random collections and operations: every byte equals the reference's."""

from __future__ import annotations

from typing import Any

import kinds
import numpy as np
import pytest
from drive import FORMATS, POLICIES, POOLINGS, ROUNDINGS, make_cache, make_pair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import DECAYS
from reference.pair import Batches
from reference.scenario import OPERATIONS, Scenario

import mpembed as mpe

pytestmark = pytest.mark.usefixtures("each_device")


# How a table may be trained: mostly as the collection says.
TRAINED: Any = st.one_of(
    st.just({}),
    st.just({}),
    st.sampled_from([{"trainable": False}, {"lr": 0.03}]),
    st.sampled_from(kinds.NAMES).map(lambda name: {"optimizer": kinds.named(name)}),
)


@st.composite
def collections(draw: st.DrawFn) -> tuple[list[Any], Any]:
    dims = draw(st.lists(st.integers(1, 300) | st.integers(1, 20), min_size=1, max_size=2))
    tables = [
        mpe.TableConfig(
            f"t{i}",
            draw(st.integers(0, 60)),
            draw(st.sampled_from(dims)),
            draw(st.sampled_from(FORMATS)),
            draw(st.sampled_from(POOLINGS)),
            draw(st.sampled_from([None, "zeros", ("uniform", -2.0, 1.0), ("normal", 0.5)])),
            first_row=draw(st.sampled_from([0, 7])),
            **draw(TRAINED),
        )
        for i in range(draw(st.integers(1, 4)))
    ]
    policy, ways = draw(st.sampled_from(POLICIES)), draw(st.sampled_from([8, 16, 32]))
    if policy is None:
        return tables, None
    if draw(st.booleans()):
        load = draw(st.sampled_from([0.01, 0.2, 0.9, 3.0]))
        return tables, mpe.CacheConfig(load_factor=load, policy=policy, ways=ways)
    return tables, make_cache(policy, draw(st.integers(1, 3)), ways)


ANY: dict[str, Any] = {
    "made": collections(),
    "optimizer": st.sampled_from(kinds.NAMES),
    "decay": st.sampled_from(list(DECAYS)),
    "rounding": st.sampled_from(ROUNDINGS),
    "index_type": st.sampled_from([np.int32, np.int64]),
    "batch": st.integers(0, 6),
    "longest": st.integers(0, 8),
    "bad": st.sampled_from([0.0, 0.1]),
    "seed": st.integers(0, 2**64 - 1),
    "operations": st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=14),
}


def any_operations(
    made: tuple[list[Any], Any],
    optimizer: str,
    decay: str,
    rounding: str,
    index_type: Any,
    batch: int,
    longest: int,
    bad: float,
    seed: int,
    operations: list[str],
) -> None:
    bounds = "drop" if bad else "raise"
    rule = kinds.named(optimizer, mode=decay)
    pair = make_pair(*made, rule, seed=seed, rounding=rounding, bounds=bounds)
    batches = Batches(pair.ref, seed % 2**32, index_type)
    scenario = Scenario(pair, batches, {"batch": batch, "longest": longest, "bad": bad})
    for operation in operations:
        scenario.run(operation)


@pytest.mark.parametrize(
    "examples", [60, pytest.param(250, marks=pytest.mark.exhaustive)], ids=["few", "many"]
)
def test_random_operations(examples: int) -> None:
    chosen = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    chosen(given(**ANY)(any_operations))()
