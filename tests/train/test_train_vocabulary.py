"""Rows of tables: thresholds, hashing, what is kept from the future, the logarithms, the split."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from mpembed.train.data import clicks as c
from mpembed.train.data.dataset import Dataset, split_ends
from mpembed.train.data.features import dense_features
from mpembed.train.data.vocabulary import MISSING_ROW, RARE_ROW, ValueCounts, Vocabulary


def counted(*chunks: Sequence[int]) -> ValueCounts:
    counts = ValueCounts()
    for chunk in chunks:
        counts.add(np.array(chunk, np.int64))
    return counts


def test_counts_add_up_over_chunks_and_merges() -> None:
    rng = np.random.default_rng(0)
    chunks = [rng.integers(-1, 50, 300) for _ in range(6)]
    counts = ValueCounts()
    for chunk in chunks:
        counts.add(chunk)
        if chunk[0] % 2:
            counts.merge()
    counts.merge()
    values, want = np.unique(np.concatenate(chunks), return_counts=True)
    np.testing.assert_array_equal(counts.values, values)
    np.testing.assert_array_equal(counts.counts, want)


def test_threshold_missing_and_unseen() -> None:
    vocabulary = Vocabulary(counted([7, 7, 9, -1, -1], [5, 9, 7]), min_count=2)
    assert vocabulary.num_rows == 2 + 2  # 7 and 9
    rows = vocabulary.encode(np.array([9, 7, 5, 123, -1, 2**32 - 1]))
    assert rows.dtype == np.int32
    assert rows[:2].tolist() == [3, 2]
    assert rows[2:].tolist() == [RARE_ROW, RARE_ROW, MISSING_ROW, RARE_ROW]


def test_a_column_without_values_has_the_two_fixed_rows() -> None:
    vocabulary = Vocabulary(counted([-1, -1]), min_count=1)
    assert vocabulary.num_rows == 2
    assert vocabulary.encode(np.array([-1, 4])).tolist() == [MISSING_ROW, RARE_ROW]


def test_hashing_caps_the_table_and_spreads_evenly() -> None:
    values = np.arange(20_000) * 4099 % 2**32
    vocabulary = Vocabulary(counted(values.tolist()), min_count=1, max_rows=102)
    assert vocabulary.num_rows == 102
    rows = vocabulary.encode(values)
    assert rows.min() == 2
    assert rows.max() == 101
    counts = np.bincount(rows, minlength=102)[2:]
    # Chi squared with 99 degrees of freedom: mean 99, standard deviation 14.1; six of them.
    assert ((counts - 200.0) ** 2 / 200.0).sum() < 99 + 6 * 14.1
    np.testing.assert_array_equal(rows, vocabulary.encode(values))
    assert vocabulary.encode(np.array([3, -1])).tolist() == [RARE_ROW, MISSING_ROW]


def test_hashing_is_the_same_everywhere() -> None:
    vocabulary = Vocabulary(counted(range(100)), min_count=1, max_rows=12)
    assert vocabulary.encode(np.array([0, 1, 2, 3])).tolist() == [2, 7, 2, 11]


def test_no_hashing_where_the_rows_fit_exactly() -> None:
    vocabulary = Vocabulary(counted([1, 2, 3]), min_count=1, max_rows=5)
    assert not vocabulary.hashed
    assert sorted(vocabulary.encode(np.array([1, 2, 3]))) == [2, 3, 4]


class ListSource:
    """Clicks made of arrays, in chunks of a given length."""

    def __init__(self, clicks: c.Clicks, chunk: int = 7) -> None:
        self.clicks, self.chunk = clicks, chunk

    @property
    def rows(self) -> int:
        return len(self.clicks)

    @property
    def columns(self) -> c.Columns:
        return c.CRITEO_COLUMNS

    def chunks(self, stop: int) -> Iterator[c.Clicks]:
        for start in range(0, stop, self.chunk):
            yield self.clicks[start : min(start + self.chunk, stop)]

    def describe(self) -> dict[str, Any]:
        return {"source": "list", "rows": self.rows}


def make_clicks(rows: int) -> c.Clicks:
    rng = np.random.default_rng(1)
    return c.Clicks(
        rng.integers(0, 2, rows),
        rng.integers(-1, 9, (c.NUM_INTS, rows)),
        rng.integers(-1, 5, (c.NUM_CATS, rows)),
    )


def test_split_is_six_sevenths_and_two_halves() -> None:
    assert split_ends(70) == {"train": 60, "validation": 65, "test": 70}


def test_vocabulary_never_sees_the_later_parts() -> None:
    clicks = make_clicks(70)
    clicks.cats[:, 60:] += 100
    dataset = Dataset(ListSource(clicks), min_count=1)
    for vocabulary in dataset.vocabularies:
        assert vocabulary.values.max() < 100
    for block in dataset.blocks(64):
        if block.part != "train":
            assert set(np.unique(block.ids)) <= {RARE_ROW}


def test_chunks_are_not_kept() -> None:
    """An empty view of a chunk would keep all of it, and memory would grow with the file."""
    seen: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Watched(ListSource):
        def chunks(self, stop: int) -> Iterator[c.Clicks]:
            for chunk in super().chunks(stop):
                copy = c.Clicks(chunk.labels, chunk.dense.copy(), chunk.cats.copy())
                seen.append(weakref.ref(copy.cats))
                del chunk
                yield copy
                del copy
                alive.append(sum(ref() is not None for ref in seen))

    Dataset(Watched(make_clicks(700), 10))
    assert alive[-1] <= alive[59] + 1  # the training part ends with the sixtieth


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_blocks_do_not_depend_on_the_chunks(chunk: int) -> None:
    want = list(Dataset(ListSource(make_clicks(71), 71), 1).blocks(16))
    got = list(Dataset(ListSource(make_clicks(71), chunk), 1).blocks(16))
    assert [(b.part, len(b)) for b in got] == [
        *[("train", 16)] * 3,
        ("train", 12),
        ("validation", 5),
        ("test", 6),
    ]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.dense, b.dense)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_blocks_stop_after_a_part() -> None:
    parts = [b.part for b in Dataset(ListSource(make_clicks(70)), 1).blocks(32, "train")]
    assert parts == ["train", "train"]


def test_too_few_rows_to_split() -> None:
    with pytest.raises(c.DataError, match="2 rows are too few"):
        Dataset(ListSource(make_clicks(2)), 1)


def test_batches_are_contiguous_and_whole() -> None:
    (block, *_) = Dataset(ListSource(make_clicks(70)), 1).blocks(64)
    batches = list(block.batches(25))
    assert [len(b) for b in batches] == [25, 25, 10]
    assert all(b.ids.flags.c_contiguous and b.dense.flags.c_contiguous for b in batches)
    np.testing.assert_array_equal(np.concatenate([b.ids for b in batches], axis=1), block.ids)


def test_dense_features() -> None:
    ints = np.full((13, 5), [c.MISSING_INT, -2, -1, 0, 6])
    logs = np.log([2, 8]).astype(np.float32)
    np.testing.assert_array_equal(dense_features(ints, 2)[:, 0], [0, 0, 0, *logs])
    want = [0, 0, 0, 0, np.float32(np.log(7))]
    np.testing.assert_array_equal(dense_features(ints, 1)[:, 3], want)
