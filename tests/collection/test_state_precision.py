"""States in BF16: rounded without bias in tables, and not rounded at all while cached."""

from __future__ import annotations

from typing import Any

import kinds
import numpy as np
import on_device
import pytest
from drive import make_cache
from reference.formats import bf16_codes, bf16_values
from reference.pair import assert_same

import mpembed as mpe

pytestmark = pytest.mark.usefixtures("each_device")
WITH_STATES = [kind for kind in kinds.KINDS if kinds.STATES[kind]]
ROWS, DIM = 4096, 5


def make(kind: str, precision: str) -> Any:
    """An optimizer whose states start at values that BF16 has."""
    start: dict[str, Any] = {"initial_accumulator_value": 0.125}
    start = start if start.keys() <= kinds.make(kind).settings().keys() else {}
    return kinds.make(kind, state_precision=precision, **start)


def after_one_step(kind: str, precision: str, **options: Any) -> dict[str, Any]:
    """States after the same gradient for every row."""
    table = mpe.TableConfig("t", ROWS, DIM, pooling="none", init="zeros")
    emb = on_device.make([table], optimizer=make(kind, precision), **options)
    grad = np.tile(np.array([0.3, -1.7, 0.011, 5.3, 0.77], np.float32), (ROWS, 1))
    emb.forward(np.arange(ROWS), np.array([0, ROWS]))
    emb.backward({"t": grad})
    return {state: emb.state_arrays()[f"table.t.{state}"] for state in kinds.STATES[kind]}


def chances(exact: Any) -> tuple[Any, Any]:
    """The BF16 value below each value, in magnitude, and the chance of the next one."""
    bits = exact.view(np.uint32)
    return (bits >> 16).astype(np.uint16), (bits & 0xFFFF) / 65536


@pytest.mark.parametrize("kind", WITH_STATES)
def test_stochastic_rounding_of_states_has_no_bias(kind: str) -> None:
    """Each column's count is a binomial one: six sigma, wrong once in 5e8 columns."""
    exact, rounded = after_one_step(kind, "fp32"), after_one_step(kind, "bf16")
    for state in kinds.STATES[kind]:
        low, chance = chances(exact[state].reshape(ROWS, -1))
        up = rounded[state].reshape(ROWS, -1).astype(np.int64) - low
        assert ((up == 0) | (up == 1)).all()
        assert ((chance > 0.01) & (chance < 0.99)).any()
        spread = np.sqrt(ROWS * chance[0] * (1 - chance[0]))
        assert (np.abs(up.sum(axis=0) - ROWS * chance[0]) <= 6 * spread).all()


@pytest.mark.parametrize("kind", [kind for kind in WITH_STATES if len(kinds.STATES[kind]) > 1])
def test_the_draws_of_two_states_are_independent(kind: str) -> None:
    """Correlations of 4096 rows stay within six sigma, wrong once in 5e8 pairs of columns."""
    exact, rounded = after_one_step(kind, "fp32"), after_one_step(kind, "bf16")
    ups = []
    for state in kinds.STATES[kind]:
        low, chance = chances(exact[state].reshape(ROWS, -1))
        up = rounded[state].reshape(ROWS, -1).astype(np.int64) - low
        ups.append(up[:, (chance[0] > 0.05) & (chance[0] < 0.95)].astype(np.float64))
    assert all(up.shape[1] for up in ups)
    for a in ups[0].T:
        for b in ups[1].T:
            assert abs(np.corrcoef(a, b)[0, 1]) < 6 / np.sqrt(ROWS)


@pytest.mark.parametrize("kind", WITH_STATES)
def test_rounding_to_nearest_rounds_states_to_nearest(kind: str) -> None:
    exact = after_one_step(kind, "fp32", rounding="nearest")
    rounded = after_one_step(kind, "bf16", rounding="nearest")
    for state in kinds.STATES[kind]:
        assert_same(rounded[state], bf16_codes(exact[state], None), state)


@pytest.mark.pairwise
@pytest.mark.parametrize("policy", mpe.registry.POLICIES)
@pytest.mark.parametrize("kind", WITH_STATES)
def test_a_cached_state_loses_nothing_from_hit_to_hit(kind: str, policy: str) -> None:
    """In a cache that holds all rows, states in BF16 train as those in FP32 do."""
    embs = {
        precision: on_device.make(
            [mpe.TableConfig("t", 20, 7)],
            cache=make_cache(policy, 8),
            optimizer=make(kind, precision),
        )
        for precision in ("fp32", "bf16")
    }
    rng, label = np.random.default_rng(2), f"7.{kind}"
    offsets = np.arange(0, 13, 4)
    for step in range(12):
        indices = rng.integers(0, 20, 12)
        grad = rng.standard_normal((3, 7), np.float32)
        outs = []
        for emb in embs.values():
            outs.append(np.array(emb.forward(indices, offsets)))
            emb.backward(grad)
            if step == 6:
                emb.flush()  # the slots keep what the tables round
        assert_same(outs[1], outs[0], "output")
        arrays = [emb.state_arrays() for emb in embs.values()]
        for name in (f"cache.{label}.rows", f"cache.{label}.values"):
            if name in arrays[0]:
                assert_same(arrays[1][name], arrays[0][name], name)
    assert embs["bf16"].stats()["t"]["conflict_misses"] == 0
    for emb in embs.values():
        emb.flush()
    arrays = [emb.state_arrays() for emb in embs.values()]
    for state in kinds.STATES[kind]:
        exact, stored = (one[f"table.t.{state}"] for one in arrays)
        assert (np.abs(bf16_values(stored) - exact) <= np.abs(exact) * 2.0**-7).all()
        assert (bf16_values(stored) != exact).any()


@pytest.mark.parametrize("kind", WITH_STATES)
def test_a_state_beyond_bf16_leaves_its_row_alone(kind: str) -> None:
    """BF16 ends below FP32; such a state is refused like a row, cached or not."""
    largest = float(np.uint32(0x7F7FFFFF).view(np.float32))
    for policy in (None, "lru"):
        emb = on_device.make(
            [mpe.TableConfig("t", 4, 3, init="zeros")],
            cache=make_cache(policy),
            optimizer=kinds.make(kind, 1e-30, state_precision="bf16"),
            on_nonfinite="skip",
        )
        before = {k: np.array(a) for k, a in emb.state_arrays().items() if k.startswith("table")}
        out = emb.forward(np.array([1, 1, 1]), np.array([0, 1]) * 3)
        emb.backward(np.full_like(out, largest))
        assert emb.stats()["t"]["nonfinite"] == 1
        emb.flush()
        for key, array in before.items():
            assert_same(emb.state_arrays()[key], array, key)


def test_states_may_have_different_precisions() -> None:
    adam = mpe.Adam(0.1, state_precision={"exp_avg": "bf16"})
    assert [(name, precision) for name, _, precision, _ in adam.states] == [
        ("exp_avg", "bf16"),
        ("exp_avg_sq", "fp32"),
    ]
    emb = on_device.make([mpe.TableConfig("t", 9, 4)], optimizer=adam)
    arrays = emb.state_arrays()
    assert arrays["table.t.exp_avg"].dtype == np.uint16
    assert arrays["table.t.exp_avg_sq"].dtype == np.float32
    with pytest.raises(ValueError, match="exp_average"):
        mpe.Adam(0.1, state_precision={"exp_average": "bf16"})
