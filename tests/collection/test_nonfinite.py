"""Updates that would not be finite: left out, counted, reported with what was computed."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from helpers import batch, collection, digest

import mpembed as mpe

INDICES, OFFSETS = batch()


@pytest.mark.parametrize("cached", [True, False])
def test_nonfinite_update_is_skipped_counted_and_reported(cached: bool) -> None:
    options: dict[str, Any] = {} if cached else {"cache": None}
    emb, skipping = collection(**options), collection(on_nonfinite="skip", **options)
    grad = np.ones((3, 12), np.float32)
    grad[0, 0] = np.nan  # bag 0 of table a: rows 1 and 2
    old = emb.rows("a", np.arange(40))
    for e in (emb, skipping):
        e.forward(INDICES, OFFSETS)
    with pytest.raises(FloatingPointError, match=r"2 row\(s\).*row 1 of table 'a'"):
        emb.backward(grad)
    skipping.backward(grad)
    assert digest(emb) == digest(skipping)
    assert emb.stats()["a"]["nonfinite"] == 2
    new = emb.rows("a", np.arange(40))
    np.testing.assert_array_equal(new[[1, 2]], old[[1, 2]])
    assert (new[[39, 7]] != old[[39, 7]]).any()


def test_the_weight_gradient_outlives_a_nonfinite_update() -> None:
    emb, skipping = collection(), collection(on_nonfinite="skip")
    weights, grad = np.linspace(0, 1, 8, dtype=np.float32), np.ones((3, 12), np.float32)
    grad[0, 0] = np.nan
    for e in (emb, skipping):
        e.forward(INDICES, OFFSETS, weights)
    with pytest.raises(mpe.NonFiniteUpdateError) as caught:
        emb.backward(grad)
    expected = skipping.backward(grad)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert error.rows == 2
        assert "2 row(s)" in str(error)
        np.testing.assert_array_equal(error.weight_grad, expected)
    emb.forward(INDICES, OFFSETS)
    with pytest.raises(mpe.NonFiniteUpdateError) as caught:
        emb.backward(grad)
    assert caught.value.weight_grad is None
