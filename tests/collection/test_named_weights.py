"""Per-sample weights of a dict batch: their gradient is a dict too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import Array, batch, collection

import mpembed as mpe

INDICES, OFFSETS = batch()
WEIGHTS = np.linspace(-1, 1, 8, dtype=np.float32)
GRAD = np.random.default_rng(5).standard_normal((3, 12)).astype(np.float32)
NAMED = {"a": (INDICES[:5], OFFSETS[:4]), "b": (INDICES[5:], OFFSETS[3:] - 5)}
NAMED_WEIGHTS = {"b": WEIGHTS[5:], "a": WEIGHTS[:5]}  # in any order


def check(named: dict[str, Array], flat: Array) -> None:
    assert list(named) == ["a", "b"]
    np.testing.assert_array_equal(named["a"], flat[:5])
    np.testing.assert_array_equal(named["b"], flat[5:])


def test_the_gradient_has_the_shape_of_the_weights() -> None:
    one, other = collection(), collection()
    np.testing.assert_array_equal(
        one.forward(NAMED, per_sample_weights=NAMED_WEIGHTS),
        other.forward(INDICES, OFFSETS, WEIGHTS),
    )
    check(one.backward(GRAD), other.backward(GRAD))


@pytest.mark.parametrize("other_first", [False, True])
def test_each_ticket_keeps_its_own_shape(other_first: bool) -> None:
    emb, plain = collection(), collection()
    _, first = emb.forward(NAMED, per_sample_weights=NAMED_WEIGHTS, ticket=True)
    _, second = emb.forward(INDICES, OFFSETS, WEIGHTS, ticket=True)
    _, third = emb.forward(NAMED, ticket=True)
    if other_first:
        assert emb.backward(GRAD, third) is None
        assert emb.backward(GRAD, second).shape == (8,)
        assert set(emb.backward(GRAD, first)) == {"a", "b"}
    else:
        plain.forward(INDICES, OFFSETS, WEIGHTS)
        check(emb.backward(GRAD, first), plain.backward(GRAD))


def test_a_prefetch_without_weights_takes_those_of_its_forward() -> None:
    emb, plain = collection(), collection()
    emb.prefetch(NAMED)
    emb.forward(INDICES, OFFSETS, WEIGHTS)
    flat = emb.backward(GRAD)
    plain.prefetch(INDICES, OFFSETS)
    plain.forward(NAMED, per_sample_weights=NAMED_WEIGHTS)
    check(plain.backward(GRAD), flat)


def test_an_empty_table_has_an_empty_gradient() -> None:
    emb = collection()
    none: Array = np.empty(0, np.int64)
    named = {"a": (none, np.zeros(4, np.int64)), "b": NAMED["b"]}
    emb.forward(named, per_sample_weights={"a": none.astype(np.float32), "b": WEIGHTS[5:]})
    assert {name: len(part) for name, part in emb.backward(GRAD).items()} == {"a": 0, "b": 3}


def test_an_error_carries_the_dict() -> None:
    emb = collection()
    emb.forward(NAMED, per_sample_weights=NAMED_WEIGHTS)
    bad = GRAD.copy()
    bad[0, 0] = np.nan
    with pytest.raises(mpe.NonFiniteUpdateError) as error:
        emb.backward(bad)
    found: Any = error.value.weight_grad
    assert np.isnan(found["a"][:2]).all()
    assert np.isfinite(found["b"]).all()


def test_a_weight_that_is_no_number_spoils_its_bag_alone() -> None:
    emb, weights = collection(), WEIGHTS.copy()
    weights[6] = np.nan  # index 0 of table b, in the second bag
    before = emb.rows("b", np.arange(9))
    out = emb.forward(INDICES, OFFSETS, weights)
    spoilt = np.isnan(out)
    assert spoilt[1, 6:].all()
    assert spoilt.sum() == 6
    with pytest.raises(mpe.NonFiniteUpdateError, match="first row 0 of table 'b'"):
        emb.backward(GRAD)
    np.testing.assert_array_equal(emb.rows("b", np.arange(9))[0], before[0])
