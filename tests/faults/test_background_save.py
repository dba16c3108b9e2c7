"""`save(path, background=True)`: the bytes of a save at the call, whatever is trained meanwhile."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import kinds
import numpy as np
import pytest
from background_saves import Gate, fill_disk, join_writers, make, step
from helpers import digest

import mpembed as mpe

POLICIES = [None, *mpe.registry.POLICIES]


@pytest.mark.parametrize("number", range(len(kinds.NAMES)), ids=kinds.NAMES)
def test_it_has_the_bytes_of_a_save_at_the_call(number: int, gate: Gate, tmp_path: Path) -> None:
    """With and without a cache; all that writes rows comes between the reads of two chunks."""
    policy = POLICIES[number % len(POLICIES)]
    rounding = list(mpe.registry.ROUNDINGS)[number % len(mpe.registry.ROUNDINGS)]
    emb, twin = (make(kinds.NAMES[number], policy, rounding=rounding) for _ in range(2))
    for seed in range(4):
        step(emb, seed)
        step(twin, seed)
    emb.save(tmp_path / "waits")
    saved = emb.save(tmp_path / "goes on", background=True)
    rng = np.random.default_rng(number)
    for seed in range(4, 16):
        gate.let(int(rng.integers(0, 25)))
        step(emb, seed)
        step(twin, seed)
    assert not saved.done
    gate.release()
    saved.result()
    assert saved.done
    assert (tmp_path / "goes on").read_bytes() == (tmp_path / "waits").read_bytes()
    assert digest(emb) == digest(twin)


@pytest.mark.parametrize("policy", [None, "lfu"])
def test_threads(policy: str | None, tmp_path: Path) -> None:
    """Kernels of several threads write while chunks are copied."""
    cache = None if policy is None else mpe.CacheConfig(load_factor=0.05, policy=policy)
    tables = [mpe.TableConfig("a", 20_000, 32, "int8"), mpe.TableConfig("b", 20_000, 32, "fp32")]
    emb = mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=mpe.Adam(0.1))
    rng = np.random.default_rng(0)
    before, overlapped = mpe.get_num_threads(), 0
    mpe.set_num_threads(4)
    try:
        for number in range(2):
            emb.save(tmp_path / "waits")
            saved = emb.save(tmp_path / "goes on", background=True)
            while not saved.done:
                out = emb.forward(rng.integers(20_000, size=4_000), np.arange(0, 4_001, 8))
                emb.backward(rng.standard_normal(out.shape).astype(np.float32))
                overlapped += not saved.done
            saved.result()
            same = (tmp_path / "goes on").read_bytes() == (tmp_path / "waits").read_bytes()
            assert same, number
    finally:
        mpe.set_num_threads(before)
    assert overlapped > 0


def test_the_handle(gate: Gate, tmp_path: Path) -> None:
    emb = make()
    plain = emb.memory_report()
    assert plain["background_save"] == 0
    saved = emb.save(tmp_path / "a", background=True)
    assert isinstance(saved, mpe.BackgroundSave)
    with pytest.raises(TimeoutError, match="still going on"):
        saved.result(timeout=0.01)
    first = emb.memory_report()
    step(emb, 0)
    later = emb.memory_report()
    assert 0 < first["background_save"] < later["background_save"]
    assert first["total"] == plain["total"] + first["background_save"]
    with pytest.raises(RuntimeError, match=r"wait for its result\(\)"):
        emb.save(tmp_path / "b", background=True)
    assert not (tmp_path / "b").exists()
    emb.save(tmp_path / "now")
    gate.release()
    saved.result()
    saved.result(timeout=0)
    again = emb.save(tmp_path / "b", background=True)
    again.result()
    assert (tmp_path / "b").read_bytes() == (tmp_path / "now").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "now"]
    step(emb, 1)
    assert emb.memory_report()["background_save"] == 0
    mpe.EmbeddingBagCollection.load(tmp_path / "a")


def test_errors_of_the_writer_do_not_disturb_training(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emb, twin = make(), make()
    emb.save(tmp_path / "a")
    old = (tmp_path / "a").read_bytes()
    step(emb, 0)
    saved = emb.save(tmp_path / "a", background=True)

    with monkeypatch.context() as patch:
        fill_disk(patch)
        step(emb, 1)
        gate.release()
        for _ in range(2):
            with pytest.raises(OSError, match="No space left") as caught:
                saved.result()
        assert caught.value.errno == errno.ENOSPC
    assert saved.done
    for seed in range(2):
        step(twin, seed)
    step(emb, 2)
    step(twin, 2)
    assert digest(emb) == digest(twin)
    assert (tmp_path / "a").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    emb.save(tmp_path / "a", background=True).result()
    twin.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("background", [True, False])
def test_a_failure_is_not_silent(
    background: bool,
    asked: bool,
    gate: Gate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether its result is asked for or not, and whatever saves next."""
    emb, path = make(), str(tmp_path / "a")

    with monkeypatch.context() as patch:
        fill_disk(patch, path)
        step(emb, 0)
        saved = emb.save(path, background=True)
        assert repr(saved) == f"<BackgroundSave of step {emb.step} to {path!r}: going on>"
        gate.release()
        join_writers()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("mpembed", "ERROR")
    assert path in record.message
    assert "No space left on device" in record.message
    assert f"to {path!r}: failed: OSError: [Errno {errno.ENOSPC}] No space" in repr(saved)
    if asked:
        with pytest.raises(OSError, match="No space"):
            saved.result()
    caplog.clear()
    for _ in range(2):  # once is enough
        again = emb.save(tmp_path / "b", background=background)
        if again is not None:
            again.result()
            assert repr(again).endswith("/b': complete>")
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(caplog.records) == len(warnings) == (not asked)
    assert asked or (path in warnings[0] and "No space left on device" in warnings[0])


def test_what_cannot_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emb = make()
    with pytest.raises(FileNotFoundError):
        emb.save(tmp_path / "no folder" / "a", background=True)
    with pytest.raises(TypeError, match="background must be True or False"):
        emb.save(tmp_path / "a", background=1)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="start new thread"):
            emb.save(tmp_path / "a", background=True)
    assert list(tmp_path.iterdir()) == []
    assert emb.memory_report()["background_save"] == 0
    emb.save(tmp_path / "a", background=True).result()


def test_a_device_refuses_it(cuda: str, tmp_path: Path) -> None:
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig("t", 10, 4)], optimizer=mpe.SGD(0.1), device=cuda
    )
    with pytest.raises(ValueError, match="call save\\(path\\) without it"):
        emb.save(tmp_path / "a", background=True)
    assert list(tmp_path.iterdir()) == []


def test_a_later_save_to_the_same_file_stays(gate: Gate, tmp_path: Path) -> None:
    """By whichever path; it waits for the thread, and one to another file does not."""
    emb = make()
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    saved = emb.save(tmp_path / "last", track=True, background=True)
    step(emb, 1)
    emb.save(tmp_path / "newer")
    assert not saved.done
    gate.holds(lambda: emb.save(tmp_path / "link" / "last"))
    saved.result()
    assert (tmp_path / "last").read_bytes() == (tmp_path / "newer").read_bytes()
    since = emb.step
    step(emb, 2)
    emb.save(tmp_path / "delta", since=since)
    again = mpe.EmbeddingBagCollection.load(tmp_path / "last", deltas=[tmp_path / "delta"])
    assert digest(again) == digest(emb)


@pytest.mark.parametrize("failure", ["writing", "starting"])
def test_saves_that_fail_leave_the_one_before_to_deltas(
    failure: str, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was written since is in them, and nothing more is kept for each failure."""
    emb, sizes = make(), []
    emb.save(tmp_path / "base", track=True)
    since = emb.step
    gate.release()

    def fail() -> None:
        folder = tmp_path if failure == "writing" else tmp_path / "none"
        with monkeypatch.context() as patch:
            fill_disk(patch)
            with pytest.raises(OSError, match="No space|no directory"):
                emb.save(folder / "a", background=True).result()

    for number in range(6):
        step(emb, number % 3)
        fail()
        fail()
        with pytest.raises(ValueError, match=f"known steps: {since}\\)"):
            emb.save(tmp_path / "delta", since=emb.step)
        sizes.append(emb.memory_report()["change_tracking"])
    assert len(set(sizes[3:])) == 1
    for name in ("delta", "another"):  # the second one needs what the first one has kept
        step(emb, 3)
        emb.save(tmp_path / name, since=since)
        again = mpe.EmbeddingBagCollection.load(tmp_path / "base", deltas=[tmp_path / name])
        assert digest(again) == digest(emb)
