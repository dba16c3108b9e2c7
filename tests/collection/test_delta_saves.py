"""Saves of deltas: what cannot be saved says why; what fails or is interrupted loses no change."""

from __future__ import annotations

import errno
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from delta_chains import load, state
from helpers import collection, digest
from helpers import train as train_small
from interrupts import Interrupt

import mpembed as mpe
from mpembed._checkpoint.tensor_file import Writer
from mpembed._files.replacement import ReplacementFile
from mpembed.collection import collection_state


def tracked(folder: Path) -> Any:
    """Return a collection that has trained a step since its base."""
    emb = collection()
    emb.save(folder / "base", track=True)
    train_small(emb, 1)
    return emb


def test_a_delta_continues_a_save_in_the_background(tmp_path: Path) -> None:
    emb = collection()
    train_small(emb, 1)
    since = emb.step
    saved = emb.save(tmp_path / "base", background=True, track=True)
    train_small(emb, 2)
    saved.result()
    emb.save(tmp_path / "delta", since=since)
    assert digest(load(tmp_path, "delta")) == digest(emb)


def test_until_a_save_in_the_background_is_written_deltas_continue_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emb = tracked(tmp_path)
    middle, go_on, finish = emb.step, threading.Event(), Writer.finish

    def wait(self: Writer, metadata: dict[str, str]) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert go_on.wait(60)
        finish(self, metadata)

    monkeypatch.setattr(Writer, "finish", wait)
    saved = emb.save(tmp_path / "later", background=True)
    train_small(emb, 1)
    with pytest.raises(ValueError, match=rf"since={middle}: .* wait for its result"):
        emb.save(tmp_path / "delta", since=middle)
    emb.save(tmp_path / "delta", since=0)
    assert digest(load(tmp_path, "delta")) == digest(emb)
    go_on.set()
    saved.result()
    emb.save(tmp_path / "delta", since=middle)
    later = mpe.EmbeddingBagCollection.load(tmp_path / "later", deltas=[tmp_path / "delta"])
    assert digest(later) == digest(emb)
    with pytest.raises(ValueError, match="known steps"):  # a whole save forgets what was before it
        emb.save(tmp_path / "delta", since=0)
    with pytest.raises(ValueError, match="a delta is small"):
        emb.save(tmp_path / "delta", since=middle, background=True)


def test_a_save_in_the_background_that_fails_loses_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emb = tracked(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Writer, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            emb.save(tmp_path / "later", background=True).result()
    train_small(emb, 1)
    emb.save(tmp_path / "delta", since=0)
    assert digest(load(tmp_path, "delta")) == digest(emb)


def test_without_tracking_the_way_to_begin_is_said(tmp_path: Path) -> None:
    emb = collection()
    emb.save(tmp_path / "base")
    with pytest.raises(ValueError, match=r"since=0: changes are not tracked.*track=True"):
        emb.save(tmp_path / "delta", since=0)
    emb.save(tmp_path / "base", track=True)
    emb.save(tmp_path / "base", track=False)
    with pytest.raises(ValueError, match="not tracked"):
        emb.save(tmp_path / "delta", since=0)
    assert not (tmp_path / "delta").exists()


def test_a_delta_does_not_replace_the_save_it_continues(tmp_path: Path) -> None:
    emb = collection()
    emb.save(tmp_path / "base", track=True)
    with pytest.raises(ValueError, match="holds the save of step 0.*another path"):
        emb.save(tmp_path / "base", since=0)
    train_small(emb, 1)
    for _ in range(2):  # of a delta that it does not need, it may
        emb.save(tmp_path / "delta", since=0)
        kept = digest(emb)
        train_small(emb, 1)
    assert digest(load(tmp_path, "delta")) == kept


@pytest.mark.parametrize("target", ["base", "first", "link"])
def test_a_delta_does_not_replace_a_save_further_back(target: str, tmp_path: Path) -> None:
    emb = collection()
    emb.save(tmp_path / "base", track=True)
    os.link(tmp_path / "base", tmp_path / "link")
    steps = [emb.step]
    for name in ("first", "second"):
        train_small(emb, 1)
        emb.save(tmp_path / name, since=steps[-1])
        steps.append(emb.step)
    train_small(emb, 1)
    with pytest.raises(ValueError, match="holds the save of step .*another path"):
        emb.save(tmp_path / target, since=steps[-1])
    emb.save(tmp_path / "second", since=steps[1])  # which the new one does not need
    assert digest(load(tmp_path, "first", "second")) == digest(emb)


def test_an_unknown_step_names_the_known_ones(tmp_path: Path) -> None:
    emb = tracked(tmp_path)
    middle = emb.step
    emb.save(tmp_path / "delta", since=0)
    train_small(emb, 1)
    with pytest.raises(ValueError, match=rf"since=1: .*\(known steps: 0, {middle}\).*track=True"):
        emb.save(tmp_path / "other", since=1)
    emb.save(tmp_path / "base")
    with pytest.raises(ValueError, match=rf"known steps: {emb.step}\)"):
        emb.save(tmp_path / "other", since=middle)
    for wrong in (-1, 1.5, "0"):
        with pytest.raises((TypeError, ValueError), match="since"):
            emb.save(tmp_path / "other", since=wrong)
    with pytest.raises(TypeError, match="track"):
        emb.save(tmp_path / "other", track="yes")
    assert not (tmp_path / "other").exists()


def test_a_restored_state_continues_no_save(tmp_path: Path) -> None:
    """It may be any state, with rows that no kernel wrote."""
    emb = collection()
    emb.save(tmp_path / "base", track=True)
    held = collection_state(emb)
    with held.writing() as on:
        counters = held.counters(on)
    held.restore(state(emb), counters, seed=5)
    with pytest.raises(ValueError, match=r"known steps: none"):
        emb.save(tmp_path / "delta", since=emb.step)
    emb.save(tmp_path / "base", track=True)
    train_small(emb, 1)
    emb.save(tmp_path / "delta", since=counters.step)
    assert digest(load(tmp_path, "delta")) == digest(emb)


@pytest.mark.parametrize("whole", [False, True])
def test_a_save_that_fails_loses_no_change(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emb = tracked(tmp_path)

    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "write", refuse)
        with pytest.raises(OSError, match="no space"):
            emb.save(tmp_path / "delta", since=None if whole else 0)
    emb.save(tmp_path / "delta", since=0)
    assert digest(load(tmp_path, "delta")) == digest(emb)


def test_a_first_save_that_fails_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emb = collection()
    monkeypatch.setattr(Writer, "write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        emb.save(tmp_path / "base", track=True)
    assert emb.memory_report()["change_tracking"] == 0


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("name", ["begin", "middle"])
@pytest.mark.parametrize("stride", [97, pytest.param(8, marks=pytest.mark.exhaustive)])
def test_an_interrupt_of_a_save_loses_no_change(name: str, stride: int, tmp_path: Path) -> None:
    at, stopped = 1, True
    while stopped:
        emb = load(tmp_path)
        start, stopped = emb.step, False
        save = {
            each: partial(emb.save, tmp_path / each, since=start, track=True)
            for each in ("begin", "middle", "end")
        }
        if name == "middle":
            save["begin"]()
            train_small(emb, 1)
        interrupt = Interrupt(at)
        interrupt.run(save[name])
        stopped = interrupt.happened
        train_small(emb, 1)
        try:
            save["end"]()
        except ValueError:
            assert stopped, at
            assert name == "begin", at  # it was stopped before it had begun
        else:
            assert digest(load(tmp_path, "end")) == digest(emb), at
        at += stride


@pytest.mark.parametrize("stride", [17, pytest.param(2, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", ["first", "whole", "delta"])
def test_a_save_is_known_just_when_its_file_is_in_place(
    name: str, stride: int, tmp_path: Path
) -> None:
    """Wherever an interrupt comes: since= takes its step, or says that there is no such save."""
    files = ("replacement.py", "saving.py", "deltas.py", "save_history.py")
    path, outcomes = tmp_path / name, set()
    for at in range(1, 10_000, stride):
        path.unlink(missing_ok=True)
        emb = collection()
        if name != "first":
            emb.save(tmp_path / "base", track=True)
        train_small(emb, 1)
        step = emb.step
        since = {"since": 0} if name == "delta" else {"track": True}
        interrupt = Interrupt(at, files=files)
        interrupt.run(partial(emb.save, path, **since))
        stopped = interrupt.happened
        kept, known = path.exists(), emb.memory_report()["change_tracking"]
        outcomes.add((stopped, kept))
        train_small(emb, 1)
        if kept:
            emb.save(tmp_path / "next", since=step)
            chain = (tmp_path / "base", [path]) if name == "delta" else (path, [])
            loaded = mpe.EmbeddingBagCollection.load(
                chain[0], deltas=[*chain[1], tmp_path / "next"]
            )
            assert digest(loaded) == digest(emb), at
        else:
            with pytest.raises(ValueError, match=f"since={step}"):
                emb.save(tmp_path / "next", since=step)
            assert name != "first" or not known
            if name != "first":
                emb.save(tmp_path / "next", since=0)
                assert digest(load(tmp_path, "next")) == digest(emb), at
        if not stopped:
            break
    assert outcomes == {(True, False), (True, True), (False, True)}


@pytest.mark.parametrize("whole", [False, True])
def test_a_save_whose_folder_cannot_be_synced_is_known(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says that the file is in place."""
    emb = tracked(tmp_path)

    def refuse(self: ReplacementFile) -> None:
        raise OSError(errno.EIO, "the new file is in place")

    with monkeypatch.context() as patched:
        patched.setattr(ReplacementFile, "_sync_folder", refuse)
        with pytest.raises(OSError, match="is in place"):
            emb.save(tmp_path / "saved", since=None if whole else 0)
    step = emb.step
    train_small(emb, 1)
    emb.save(tmp_path / "next", since=step)
    first, *rest = ["saved", "next"] if whole else ["base", "saved", "next"]
    loaded = mpe.EmbeddingBagCollection.load(
        tmp_path / first, deltas=[tmp_path / one for one in rest]
    )
    assert digest(loaded) == digest(emb)
