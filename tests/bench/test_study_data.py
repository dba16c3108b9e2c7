"""bench/study: the synthetic data, the readers of public formats, and how models split them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from study import readers, synthetic
from study.events import DataError, Events
from study.item2vec import make_pairs

RATED = {
    "u.data": "7\t30\t5\t200\n7\t10\t3\t100\n9\t10\t1\t50\n",
    "ratings.dat": "7::30::5::200\n7::10::3::100\n9::10::1::50\n",
    "ratings.csv": "userId,movieId,rating,timestamp\n7,30,5.0,200\n7,10,3,100\n9,10,1,50\n",
    "ml.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "7\t30\t5\t200\n7\t10\t3\t100\n9\t10\t1\t50",
}


def listed(events: Events) -> list[tuple[int, int, float]]:
    return list(zip(events.user.tolist(), events.item.tolist(), events.time.tolist(), strict=True))


@pytest.mark.parametrize("name", RATED)
@pytest.mark.parametrize("zipped", [False, True])
def test_ratings_are_read_in_every_format(tmp_path: Path, name: str, zipped: bool) -> None:
    path = tmp_path / name
    text = RATED[name].encode()
    path.write_bytes(gzip.compress(text) if zipped else text)
    events = readers.read_events(path)
    assert events.rating is not None
    # Sorted by user and time; items are numbered from the first one of the file.
    assert listed(events) == [(0, 1, 100.0), (0, 0, 200.0), (1, 1, 50.0)]
    assert events.rating.tolist() == [3.0, 5.0, 1.0]
    assert (events.name, events.num_users, events.num_items) == (name, 2, 2)
    assert events.starts().tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    "text",
    [
        "session_id;user_id;item_id;eventdate\n1;;a;2016-05-02\n1;;b;2016-05-01\n",
        "SessionId\tTime\tItemId\n1\t2\ta\n1\t1\tb\n",
        "1,a,2016-05-02T10:00:00\n1,b,2016-05-01T10:00:00\n",
        "1,a,2\n1,b,1\n",
        "item,session\nb,1\na,1\n",
    ],
)
def test_sessions_are_read_by_the_names_of_columns_or_three_of_them(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "sessions"
    path.write_text(text)
    events = readers.read_events(path)
    assert events.rating is None
    assert events.item.tolist() == ([0, 1] if "item,session" in text else [1, 0])
    assert (np.diff(events.time) > 0).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "the format is not known; accepted are MovieLens"),
        ("", "the format is not known"),
        ("a,b\n1,2\n", "line 1 names no known columns"),
        ("user_id,item_id,rating\n", "holds no interactions"),
        ("user_id,item_id,rating\n1,2,3\n1,2\n", "line 3 does not hold user, item, rating"),
        ("1\t2\t3\t4\n1\t2\tx\t4\n", "line 2 does not hold user, item, rating, time"),
    ],
)
def test_a_wrong_format_names_the_line_and_the_way_out(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "some.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"some.csv: {message}"):
        readers.read_events(path)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: cannot be read: No such file.*--data"):
        readers.read_events(tmp_path / "none")
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(RATED["u.data"].encode())[:-12])
    with pytest.raises(DataError, match=r"cut.gz: cannot be read"):
        readers.read_events(path)


def test_synthetic_data_are_the_same_each_time_and_skewed() -> None:
    made = synthetic.sessions(4_000, 300, 8)
    assert listed(made) == listed(synthetic.sessions(4_000, 300, 8))
    assert listed(made) != listed(synthetic.sessions(4_000, 300, 8, seed=1))
    counts = np.sort(np.bincount(made.item))[::-1]
    assert counts[:30].sum() > 0.3 * len(made)
    # An item's successors are few: the next item can be learned.
    pairs = {(a, b) for a, b in zip(made.item[:-1], made.item[1:], strict=True)}
    assert len(pairs) < 0.75 * len(made)


def test_synthetic_ratings_have_factors_to_learn() -> None:
    made = synthetic.ratings(20_000, 200, 150)
    assert made.rating is not None
    assert set(made.rating.tolist()) == {1.0, 5.0}
    pairs = made.user * made.num_items + made.item
    assert len(np.unique(pairs)) == len(made)
    table = np.zeros((made.num_users, made.num_items))
    table[made.user, made.item] = made.rating - made.rating.mean()
    strength = np.linalg.svd(table, compute_uv=False)
    noise = np.random.default_rng(0).permutation(table.ravel()).reshape(table.shape)
    assert strength[2] > 1.2 * np.linalg.svd(noise, compute_uv=False)[2]


def test_rare_items_and_short_sessions_go_together() -> None:
    user = np.array([0, 0, 0, 1, 1, 2])
    item = np.array([0, 1, 0, 0, 1, 2])
    events = Events("few", user, item, np.arange(6.0))
    kept = events.frequent(2, 2)
    assert listed(kept) == [(0, 0, 0.0), (0, 1, 1.0), (0, 0, 2.0), (1, 0, 3.0), (1, 1, 4.0)]
    with pytest.raises(DataError, match="few: no items have 9 events"):
        events.frequent(9, 1)


def test_pairs_stay_within_a_session_and_the_latest_sessions_test() -> None:
    user = np.repeat(np.arange(20), 3)
    item = np.tile([0, 1, 2], 20)
    pairs = make_pairs(Events("made", user, item, np.arange(60.0)))
    assert sorted(map(tuple, pairs.test.tolist())) == [(0, 1)] * 2 + [(1, 2)] * 2
    assert sorted(map(tuple, pairs.train.tolist())) == [(0, 1)] * 18 + [(0, 2)] * 18 + [(1, 2)] * 18
    with pytest.raises(DataError, match="too few sessions"):
        make_pairs(Events("lone", np.arange(3), np.arange(3), np.arange(3.0)))


@pytest.mark.torch
def test_windows_score_each_late_event_once() -> None:
    pytest.importorskip("torch")
    from study.sequence import LENGTH, make_windows, padded

    events = synthetic.sessions(3_000, 100, 100)
    made = make_windows(events)
    starts = events.starts()
    late = sum(max(1, int(n * 0.15)) for n in np.diff(starts).tolist())
    assert made.scored.sum() == late
    lengths = np.diff(made.train).ravel()
    assert lengths.min() > 1
    assert max(lengths.max(), np.diff(made.test).max()) <= LENGTH + 1
    ids, mask = padded(events.item, made.train[:5])
    for row, held, (first, end) in zip(ids, mask, made.train[:5], strict=True):
        assert row[held].tolist() == events.item[first:end].tolist()
