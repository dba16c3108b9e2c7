"""FTRL's zeros are exact zeros wherever a format can store one."""

from __future__ import annotations

from typing import Any

import numpy as np
import on_device
import pytest
from drive import FORMATS, POLICIES, ROUNDINGS, make_cache
from reference import FORMATS as LAYOUTS

import mpembed as mpe

pytestmark = pytest.mark.usefixtures("each_device")
PLAIN = [name for name in FORMATS if LAYOUTS[name].header is None]
each_policy = pytest.mark.parametrize("policy", POLICIES)
each_rounding = pytest.mark.parametrize("rounding", ROUNDINGS)


def trained(precision: str, policy: str | None, rounding: str, scale: Any) -> Any:
    """A collection of which two rows have taken steps with gradients of these magnitudes."""
    emb = on_device.make(
        [mpe.TableConfig("t", 3, 6, precision, init=("uniform", -1.0, 1.0))],
        cache=make_cache(policy),
        optimizer=mpe.Ftrl(0.1, l1=0.5),
        rounding=rounding,
    )
    grad = np.array([[1.5, -1.2, 0.9, -0.8, 1.1, -2.0], [1.4, 0.7, -0.9, 1.8, -1.1, 2.0]])
    emb.set_rows("t", np.arange(3), np.zeros((3, 6), np.float32))
    for step in range(5):
        emb.forward(np.array([0, 1]), np.array([0, 1, 2]))
        emb.backward((grad * scale * (1 + step / 3)).astype(np.float32))
    return emb


@pytest.mark.pairwise
@each_rounding
@each_policy
@pytest.mark.parametrize("precision", FORMATS)
def test_a_row_below_the_threshold_is_zero(
    precision: str, policy: str | None, rounding: str
) -> None:
    emb = trained(precision, policy, rounding, [[1e-3], [1.0]])
    for _ in range(2):
        rows = emb.rows("t", np.arange(3))
        assert rows[0].tobytes() == bytes(4 * 6)
        assert rows[1].any()
        out = emb.forward(np.array([0]), np.array([0, 1]), training=False)
        assert not out.any()
        emb.flush()
    stored = emb.state_arrays()["table.t.rows"]
    assert not stored[0].any()  # a header of zeros too


@pytest.mark.pairwise
@each_rounding
@each_policy
@pytest.mark.parametrize("precision", PLAIN)
def test_a_zero_inside_a_row_is_stored_exactly(
    precision: str, policy: str | None, rounding: str
) -> None:
    emb = trained(precision, policy, rounding, [[1, 1e-3] * 3, [1e-3, 1] * 3])
    emb.flush()
    rows = emb.rows("t", np.arange(2))
    assert not rows[0, 1::2].any()
    assert not rows[1, ::2].any()
    assert rows[0, ::2].all()
    assert rows[1, 1::2].all()


# The first write of a pair is exact for zero as the largest instead.
@pytest.mark.parametrize("rounding", [name for name in ROUNDINGS if name != "paired"])
@pytest.mark.parametrize("precision", [name for name in FORMATS if name not in PLAIN])
def test_zero_as_the_smallest_of_an_affine_row_is_stored_exactly(
    precision: str, rounding: str
) -> None:
    emb = on_device.make(
        [mpe.TableConfig("t", 1, 6, precision)],
        optimizer=mpe.Ftrl(0.1, l1=0.5),
        rounding=rounding,
    )
    grad = np.array([[-1.0, 0.1, -3.0, 0.2, 0.0, -0.7]], np.float32)
    emb.set_rows("t", np.array([0]), np.zeros((1, 6), np.float32))
    emb.forward(np.array([0]), np.array([0, 1]))
    emb.backward(grad)
    row = emb.rows("t", np.array([0]))[0]
    assert row[[1, 3, 4]].tobytes() == bytes(4 * 3)
    assert (row >= 0).all()
    assert row[2] > 0


def test_a_row_is_trained_from_the_weights_that_it_has() -> None:
    emb = on_device.make([mpe.TableConfig("t", 3, 6)], optimizer=mpe.Ftrl(0.1, l1=0.5))
    given = np.array([[0.75, -0.5, 0.25, -2.0, 0.0, 1.0]], np.float32)
    emb.set_rows("t", np.array([1]), given)
    for grad, moved in ((0.0, 0.0), (0.1, 0.1)):
        emb.forward(np.array([1]), np.array([0, 1]))
        emb.backward(np.full((1, 6), grad, np.float32))
        row = emb.rows("t", np.array([1]))
        assert np.abs(row - given).max() <= moved * 0.1 / 0.9 + 1e-6
        assert row[0, 4] == 0.0
