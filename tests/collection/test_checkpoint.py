"""Checkpoints: resuming in a new process is bit-exact; damaged files are refused by name."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import kinds
import numpy as np
import pytest
from folders import environment
from helpers import set_lr
from reference.pair import assert_same

import mpembed as mpe
from mpembed._checkpoint.tensor_file import Writer

FIRST, LAST = 11, 20
DECAYS = ("none", "l2", "decoupled")
POLICIES = [None, *mpe.registry.POLICIES]
ROUNDINGS = list(mpe.registry.ROUNDINGS)
CASES = [
    f"{optimizer}-{policy}-{ROUNDINGS[(i + j) % len(ROUNDINGS)]}"
    for i, optimizer in enumerate(kinds.NAMES)
    for j, policy in enumerate(POLICIES)
]


def make(case: str) -> mpe.EmbeddingBagCollection:
    optimizer, policy, rounding = case.split("-")
    tables = [
        mpe.TableConfig(f"{name} of {dim}", 60 + dim, dim, name, ("sum", "mean")[dim % 2], init)
        for name in mpe.registry.FORMATS
        for dim, init in ((5, None), (12, ("normal", 0.1)))
    ]
    tables += [
        mpe.TableConfig("own", 40, 12, "int8", optimizer=kinds.make("lamb", 0.02)),
        mpe.TableConfig("own rate", 40, 12, lr=0.07, first_row=2**40, total_rows=2**41),
        mpe.TableConfig("frozen", 40, 12, "int4", trainable=False),
        mpe.TableConfig("empty", 0, 12, "int4", table_id=900),
    ]
    cache = None
    if policy != "None":
        cache = mpe.CacheConfig(load_factor=0.05, policy=policy, ways=8)
    return mpe.EmbeddingBagCollection(
        tables,
        cache=cache,
        optimizer=kinds.named(optimizer, 0.05, DECAYS[len(optimizer) % 3]),
        seed=2**63 + 1,
        rounding=rounding,
        bounds="drop",
        on_nonfinite="skip",
    )


def train(emb: mpe.EmbeddingBagCollection, start: int, stop: int) -> None:
    """Steps that depend on nothing but their number."""
    for step in range(start, stop):
        rng = np.random.default_rng(step)
        lengths = rng.integers(0, 4, 5 * len(emb.tables))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        indices = rng.integers(0, 66, offsets[-1])
        weights = rng.standard_normal(len(indices)).astype(np.float32)
        if step % 5 == 4:
            emb.prefetch(indices, offsets)
        if step % 7 == 6:
            emb.flush()
        set_lr(emb, 0.05 / (1 + step))
        out = emb.forward(indices, offsets, weights)
        emb.backward(rng.standard_normal(out.shape).astype(np.float32))


def resume(folder: Path) -> None:
    """Main function of the new process: load each checkpoint, train on, save the end."""
    for path in sorted(folder.glob("*.start")):
        emb = mpe.EmbeddingBagCollection.load(path)
        train(emb, FIRST, LAST)
        emb.save(path.with_suffix(".end"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of each case after 11 steps, and after 20 with a change of process between."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for case in CASES:
        emb = make(case)
        train(emb, 0, FIRST)
        emb.save(folder / f"{case}.start")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), str(folder)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


def state(emb: mpe.EmbeddingBagCollection) -> dict[str, Any]:
    return {name: np.array(array) for name, array in emb.state_arrays().items()}


@pytest.mark.parametrize("case", CASES)
def test_resuming_is_bit_exact(case: str, folder: Path) -> None:
    whole = make(case)
    train(whole, 0, LAST)
    resumed = mpe.EmbeddingBagCollection.load(folder / f"{case}.end")
    assert_same(state(resumed), state(whole), case)
    assert resumed.stats() == whole.stats()


@pytest.mark.parametrize("case", CASES)
def test_loading_gives_back_every_byte_and_setting(case: str, folder: Path) -> None:
    emb = make(case)
    train(emb, 0, FIRST)
    loaded = mpe.EmbeddingBagCollection.load(folder / f"{case}.start")
    assert_same(state(loaded), state(emb), case)
    assert repr(loaded.tables) == repr(emb.tables)
    assert repr(loaded.optimizer) == repr(emb.optimizer)
    assert repr(loaded.optimizers) == repr(emb.optimizers)
    rates = {name: one and one.lr for name, one in loaded.optimizers.items()}
    assert rates["own rate"] == 0.07
    assert rates["int4 of 5"] == 0.05 / FIRST
    assert rates["frozen"] is None
    for table in emb.tables:
        ids = np.arange(table.num_embeddings)
        assert_same(loaded.rows(table.name, ids), emb.rows(table.name, ids), table.name)
    # bounds and on_nonfinite came along: neither call raises.
    bad = np.full(len(emb.tables), 10**6)
    out = loaded.forward(bad, np.arange(len(emb.tables) + 1))
    loaded.backward(np.full_like(out, np.nan))


def test_saving_changes_nothing_and_open_tickets_stay_behind(tmp_path: Path) -> None:
    emb = make("adagrad-lfu-stochastic")
    train(emb, 0, 3)
    indices, offsets = np.arange(60), np.linspace(0, 60, len(emb.tables) + 1).astype(np.int64)
    _, opened = emb.forward(indices[::-1].copy(), offsets, ticket=True)
    tickets = [emb.prefetch(indices, offsets), opened]
    before = state(emb)
    emb.save(tmp_path / "open")
    assert_same(state(emb), before, "after save")
    for ticket in tickets:
        ticket.drop()
    loaded = mpe.EmbeddingBagCollection.load(tmp_path / "open")
    assert_same(state(loaded), state(emb), "without pins")
    with pytest.raises(RuntimeError, match="forward"):
        loaded.backward(np.zeros((1, 7 * 17 + 4 * 12), np.float32))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    emb = make("rowwise_adagrad-lru-stochastic")
    train(emb, 0, 4)
    path = tmp_path / "good"
    emb.save(path)
    return path


def only_files(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["writing", "renaming"])
def test_a_save_that_fails_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, when: str
) -> None:
    old = saved.read_bytes()
    emb, write = mpe.EmbeddingBagCollection.load(saved), Writer.write
    train(emb, 4, 6)

    def half(self: Writer, pieces: Any) -> int:
        write(self, pieces)
        raise error

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    if when == "writing":
        monkeypatch.setattr(Writer, "write", half)
    else:
        monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(type(error)):
        emb.save(saved)
    assert saved.read_bytes() == old
    assert only_files(saved) == ["good"]


def test_rates_of_tables_are_kept_beside_those_of_their_settings(tmp_path: Path) -> None:
    own = mpe.Adam(0.5)
    tables = [
        mpe.TableConfig("a", 9, 4),
        mpe.TableConfig("b", 9, 4, lr=0.25),
        mpe.TableConfig("c", 9, 4, optimizer=own),
        mpe.TableConfig("d", 9, 4, optimizer=own),
        mpe.TableConfig("e", 9, 4, optimizer=own, lr=0.75),
        mpe.TableConfig("f", 9, 4, trainable=False),
    ]
    emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.125))
    for name in "bce":
        optimizer = emb.optimizers[name]
        assert optimizer is not None
        optimizer.lr *= 2
    emb.save(tmp_path / "rates")
    loaded = mpe.EmbeddingBagCollection.load(tmp_path / "rates").optimizers
    assert [one and one.lr for one in loaded.values()] == [0.125, 0.5, 1.0, 1.0, 1.5, None]
    assert loaded["c"] is loaded["d"]
    assert loaded["c"] is not loaded["e"]


def test_equal_collections_save_equal_files(saved: Path) -> None:
    for again in range(8):
        copy = saved.with_name(f"copy {again}")
        mpe.EmbeddingBagCollection.load(saved).save(copy)
        assert copy.read_bytes() == saved.read_bytes()


def test_a_save_replaces_the_old_file(saved: Path) -> None:
    emb = mpe.EmbeddingBagCollection.load(saved)
    train(emb, 4, 6)
    emb.save(str(saved))
    assert only_files(saved) == ["good"]
    assert_same(state(mpe.EmbeddingBagCollection.load(str(saved))), state(emb), "replaced")


def test_paths_that_cannot_be_written_or_read(saved: Path, tmp_path: Path) -> None:
    emb = mpe.EmbeddingBagCollection.load(saved)
    for wrong in (tmp_path / "no folder" / "file", tmp_path):
        with pytest.raises(OSError, match=r"\S"):
            emb.save(wrong)
    with pytest.raises(FileNotFoundError, match="missing"):
        mpe.EmbeddingBagCollection.load(tmp_path / "missing")
    with pytest.raises(OSError, match=r"\S"):
        mpe.EmbeddingBagCollection.load(tmp_path)


def refused(path: Path) -> bool:
    """Whether a file is refused, with an error that names it."""
    try:
        mpe.EmbeddingBagCollection.load(path)
    except (ValueError, OSError) as error:
        assert str(path) in str(error)
        return True
    return False


def test_a_truncated_file_is_refused(saved: Path, tmp_path: Path) -> None:
    whole, cut = saved.read_bytes(), tmp_path / "cut"
    for size in {0, 1, 7, 8, 9, 100, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
        cut.write_bytes(whole[:size])
        assert refused(cut), size
    cut.write_bytes(whole + b"\0")
    assert refused(cut)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    for content in (
        b"PK\3\4 and so on, a zip file for example",
        b"{}",
        bytes(1000),
        b"\xff" * 1000,
        struct.pack("<Q", len(header)) + header + bytes(4),
    ):
        other.write_bytes(content)
        assert refused(other), content[:40]


def test_any_changed_byte_is_refused(saved: Path, tmp_path: Path) -> None:
    """Also in the manifest, where a changed digit would be a valid, different setting."""
    whole, changed = saved.read_bytes(), tmp_path / "changed"
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    rng = np.random.default_rng(0)
    places = [*range(8), *rng.integers(8, header, 400), *rng.integers(header, len(whole), 200)]
    accepted = []
    for place in map(int, places):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        changed.write_bytes(flipped)
        if not refused(changed):
            accepted.append(whole[max(place - 12, 0) : place + 12])
    assert not accepted


if __name__ == "__main__":
    resume(Path(sys.argv[1]))
