"""What the report on rounding is made of: the reference's sums, and what errors really are."""

from __future__ import annotations

from typing import Any

import numpy as np
import on_device
import pytest
from drive import FORMATS, POLICIES, ROUNDINGS, make_cache, make_pair
from reference import decode, encode, fmaf
from reference.noise import (
    FRACTION_BITS,
    MOST,
    SAMPLE_BITS,
    is_sampled,
    rounding_sum,
    row_step,
    update_sums,
)

import mpembed as mpe
from mpembed._bindings import contract

pytestmark = pytest.mark.usefixtures("each_device")
ROUNDED = [name for name in FORMATS if name != "fp32"]
E = 1200
UNIT = 2.0**-FRACTION_BITS


def trained(precision: str, dim: int, rounding: str, stds: tuple[float, ...]) -> Any:
    """Updates of every row of a table: the collection, and the reference's sums."""
    rng = np.random.default_rng(dim)
    table = mpe.TableConfig(
        "a", E, dim, precision, init=("normal", 0.1), first_row=1 << 40, table_id=3
    )
    emb = on_device.make([table], optimizer=mpe.SGD(0.01), rounding=rounding)
    sums, ids = np.zeros(3, np.int64), np.arange(E)
    for std in stds:
        emb.forward(ids, np.arange(E + 1))
        old = emb.rows("a", ids)
        grad = (rng.standard_normal((E, dim)) * std).astype(np.float32)
        emb.backward(grad)
        new = fmaf(np.float32(-0.01), grad, old)
        for row in ids[[is_sampled(3, (1 << 40) + row, emb.step) for row in ids.tolist()]]:
            sums[[0, 2]] += update_sums(new[row], old[row], precision)
            sums[1] += rounding_sum(new[row], precision, rounding)
    return emb, sums


def test_the_numbers_are_the_contracts() -> None:
    assert contract.NOISE_SAMPLE_BITS == SAMPLE_BITS
    assert contract.NOISE_FRACTION_BITS == FRACTION_BITS
    assert contract.NOISE_MAX == MOST


@pytest.mark.pairwise
@pytest.mark.parametrize("dim", [1, 7, 40, 300])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("precision", FORMATS)
def test_the_sums_are_the_references(precision: str, rounding: str, dim: int) -> None:
    emb, sums = trained(precision, dim, rounding, (0.01, 1.0, 100.0))
    assert emb.state_arrays()["noise"].tolist() == [sums.tolist()]
    assert (sums > 0).tolist() == [precision != "fp32"] * 3 or dim == 1


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_a_cached_update_is_not_rounded_before_it_is_written_back(policy: str) -> None:
    """A cache of 8 slots: rows go through it, or are conflict misses."""
    rng = np.random.default_rng(1)
    pair = make_pair(
        [mpe.TableConfig("a", 2400, 8, "int4")], make_cache(policy), mpe.SGD(0.01), seed=3
    )
    for start in range(0, 2400, 48):
        out = pair.emb.forward(np.arange(start, start + 48), np.arange(49))
        pair.ref.forward(np.arange(start, start + 48), np.arange(49))
        grad = rng.standard_normal(np.shape(out)).astype(np.float32)
        pair.emb.backward(grad)
        pair.ref.backward(grad)
    pair.check("the end")
    before = pair.emb.state_arrays()["noise"][0].copy()
    assert before[0] > 0
    pair.flush()


def test_the_sample_favours_neither_rows_nor_steps() -> None:
    rows, steps, every = 4096, 64, 1 << SAMPLE_BITS
    hits = np.array([[is_sampled(5, r, s) for r in range(rows)] for s in range(steps)])
    assert hits.mean() * every == pytest.approx(1, rel=0.1)
    assert hits.sum(axis=0).max() <= 2
    assert np.abs(hits.sum(axis=1) - rows / every).max() <= 2


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("precision", ROUNDED)
def test_the_noise_is_the_mean_square_of_real_errors(precision: str, rounding: str) -> None:
    """Many roundings of one row: the error's mean square, in steps of the row."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(64).astype(np.float32)
    count = 2000
    stored = encode(np.tile(x, (count, 1)), precision, rounding, seed=1, step=2)
    error = decode(stored, precision, 64).astype(np.float64) - x
    measured = np.mean(error**2) / row_step(x, precision) ** 2
    expected = rounding_sum(x, precision, rounding) * UNIT
    assert measured == pytest.approx(expected, rel=1e-4 if rounding == "nearest" else 0.03)
