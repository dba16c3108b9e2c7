"""Keys of categorical values: which are the same, in which order, and the same everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpembed.train.data import arrow_columns
from mpembed.train.data.clicks import MISSING_CAT
from mpembed.train.data.keys import _Texts, hashed_numbers, text_keys

SHORT = st.text(st.characters(max_codepoint=127), max_size=8)
NUMBERS = st.integers(0, 10**18 - 1)
TEXTS = st.one_of(SHORT, NUMBERS.map(str), st.text(max_size=30), st.from_regex(r"\A[0-9a-f]{8}\Z"))
KNOWN = [
    126663739519795200,
    603696871014773477,
    1152921504730303765,
    5142557435104362875,
    8576805499557927276,
    8772777206657391400,
    4920962854296225210,
]
KINDS = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()]


@settings(max_examples=40)
@given(st.lists(st.one_of(TEXTS, st.none()), max_size=10), st.sampled_from(KINDS), st.data())
def test_a_text_has_one_key_wherever_it_is(
    texts: list[str | None], kind: pa.DataType, data: st.DataObject
) -> None:
    wanted = {text: int(text_keys(pa.array([text], pa.string()))[0]) for text in texts}
    start = data.draw(st.integers(0, len(texts)))
    array = pa.array(texts, pa.string()).cast(kind)[start:]
    assert text_keys(array).tolist() == [wanted[text] for text in texts[start:]]
    values = arrow_columns.keys(pa.array(texts, pa.string()).dictionary_encode(), "x")
    assert values.tolist() == [wanted[text] for text in texts]


@settings(max_examples=40)
@given(st.sets(TEXTS, max_size=30))
def test_different_texts_have_different_keys(texts: set[str]) -> None:
    keys = text_keys(pa.array(sorted(texts), pa.string()))
    assert len(set(keys.tolist())) == len(texts)
    assert all(
        (key == MISSING_CAT) == (text == "") for key, text in zip(keys, sorted(texts), strict=True)
    )
    assert (keys >= MISSING_CAT).all()


@settings(max_examples=40)
@given(st.sets(SHORT, min_size=1))
def test_short_texts_sort_by_length_and_then_by_bytes(texts: set[str]) -> None:
    ordered = sorted(texts, key=lambda text: (len(text), text))
    assert (np.diff(text_keys(pa.array(ordered, pa.string()))) > 0).all()


@settings(max_examples=40)
@given(st.sets(NUMBERS, min_size=1), st.sampled_from([pa.int64(), pa.uint64(), pa.float64()]))
def test_numbers_sort_as_numbers_and_have_the_keys_of_their_digits(
    numbers: set[int], kind: pa.DataType
) -> None:
    exact = sorted({n % 2**53 for n in numbers} if kind == pa.float64() else numbers)
    keys = arrow_columns.keys(pa.array(exact, kind), "x")
    assert (np.diff(keys) > 0).all()
    np.testing.assert_array_equal(keys, text_keys(pa.array(map(str, exact), pa.string())))


def test_keys_are_the_same_on_every_machine() -> None:
    texts = ["a", "00c0ffee", "123456789", "0123456789", "café", "a much longer text", "x" * 200]
    assert text_keys(pa.array(texts)).tolist() == KNOWN


def test_long_texts_are_hashed_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a step for every eight bytes of the longest one."""
    steps: list[int] = []
    word = _Texts.word

    def counted(self: _Texts, number: int, rows: Any) -> Any:
        steps.append(number)
        return word(self, number, rows)

    monkeypatch.setattr(_Texts, "word", counted)
    texts = ["x" * 512, "x" * 513, "x" * 100_000, "x" * 99_999 + "y", "short", None]
    found = text_keys(pa.array(texts)).tolist()
    assert len(set(found)) == len(texts)
    assert max(steps) == 63
    alone = [int(text_keys(pa.array([text], pa.binary()))[0]) for text in texts]
    assert found == alone
    assert found[1] == 7728239483731887969


def test_a_long_dictionary_is_not_hashed_for_a_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pa.array([f"text {n}" for n in range(1000)] + [None])
    want = text_keys(texts)
    lengths: list[int] = []

    def counted(some: pa.Array) -> Any:
        lengths.append(len(some))
        return text_keys(some)

    monkeypatch.setattr(arrow_columns, "text_keys", counted)
    part = texts.dictionary_encode()[990:]
    np.testing.assert_array_equal(arrow_columns.keys(part, "x"), want[990:])
    assert lengths == [11]


def test_what_is_hashed_of_eight_hexadecimal_digits_is_their_number() -> None:
    texts = pa.array(["00c0ffee", "ffffffff", "00C0FFEE", "0000000g", "c0ffee", "123456789"])
    keys = text_keys(texts)
    assert hashed_numbers(keys).tolist() == [0xC0FFEE, 0xFFFFFFFF, *keys[2:].tolist()]
    few = np.array([MISSING_CAT, 5, 2**32 - 1])
    np.testing.assert_array_equal(hashed_numbers(few), few)  # what Criteo's format has


def test_other_types() -> None:
    for column in (pa.array([True, None]), pa.array(["true", None]), pa.array(["true", ""])):
        keys = arrow_columns.keys(column, "x")
        assert keys.tolist() == [text_keys(pa.array(["true"]))[0], MISSING_CAT]
    assert arrow_columns.keys(pa.nulls(2), "x").tolist() == [MISSING_CAT, MISSING_CAT]
    negative = arrow_columns.keys(pa.array([-5]), "x")
    assert negative.tolist() == text_keys(pa.array(["-5"])).tolist()
    with pytest.raises(arrow_columns.BadValueError, match="'x' holds 1.5, not a whole number"):
        arrow_columns.keys(pa.array([1.0, 1.5]), "x")


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int64())])
def test_lists_are_bags_and_empty_ones_hold_a_missing_value(kind: pa.DataType) -> None:
    lists = [[9], [1, 2], None, [], [3, None]]
    bags = arrow_columns.bags(pa.array(lists, kind)[1:], "x")
    one, two, three = text_keys(pa.array(["1", "2", "3"])).tolist()
    assert bags.values.tolist() == [one, two, MISSING_CAT, MISSING_CAT, three, MISSING_CAT]
    assert bags.offsets.tolist() == [0, 2, 3, 4, 6]
    part = bags[2:4]
    assert part.values.tolist() == [MISSING_CAT, three, MISSING_CAT]
    assert part.offsets.tolist() == [0, 1, 3]


def test_a_bad_value_in_a_list_is_named_by_its_row() -> None:
    with pytest.raises(arrow_columns.BadValueError) as error:
        arrow_columns.bags(pa.array([[1.0], None, [], [2.0, 0.5]]), "x")
    assert error.value.row == 3
