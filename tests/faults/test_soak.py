"""The soak runs clean for a short time, and finds what it is there to find."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import on_device
import programs
import pytest
import scripts
from lives import Life

import mpembed as mpe

PROGRAM = Path(__file__).with_name("soak.py")
soak = scripts.load(PROGRAM)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def life(tmp_path: Path) -> Any:
    before = mpe.get_num_threads()
    yield Life(0, 3, tmp_path)
    mpe.set_num_threads(before)


@pytest.mark.exhaustive
def test_ten_seconds(tmp_path: Path) -> None:
    done = programs.call(tmp_path, PROGRAM, "--seconds", 10, "--every", 1, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, verdict = done.stdout.splitlines()
    assert re.match(r"soak: ok, \d+ s, \d+ lives, \d+ calls, \d+ large steps, \d+ MiB", verdict)
    assert lines


def test_a_life(life: Any) -> None:
    life.live(20)
    life.fork()


def test_a_changed_byte_is_found(life: Any) -> None:
    name = next(name for name in life.pair.emb.state_arrays() if name.endswith(".rows"))
    stored = np.array(life.pair.emb.state_arrays()[name])
    stored.reshape(-1).view(np.uint8)[0] ^= 1
    on_device.poke(life.pair.emb, name, stored)
    with pytest.raises(AssertionError, match=re.escape(name)):
        life.live(20)


def test_a_pin_that_stays_is_found(life: Any) -> None:
    """Where reference and collection agree on it, too."""
    name = next(name for name in life.pair.emb.state_arrays() if name.endswith(".tags"))
    tags = np.array(life.pair.emb.state_arrays()[name])
    tags.reshape(-1)[0] = 1 << 56
    on_device.poke(life.pair.emb, name, tags)
    with pytest.raises(AssertionError, match="has pins"):
        life.assert_unpinned()


def test_a_child_that_goes_wrong_is_found(life: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise AssertionError("planted")

    monkeypatch.setattr(life, "run", fail)
    with pytest.raises(AssertionError, match="a forked child ended with"):
        life.fork()


def test_what_a_collection_leaves_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = mpe.get_num_threads()
    run = soak.Soak(0, 3, tmp_path)
    run.calls, kept = 2, []
    run.one_life()
    live = Life.live

    def keep(life: Any, calls: int) -> None:
        live(life, calls)
        kept.append(what(life.pair.emb))

    monkeypatch.setattr(Life, "live", keep)
    found: list[tuple[Any, str]] = [
        (lambda emb: emb, "a collection that nobody holds is alive"),
        (lambda emb: emb.state_arrays(), "bytes of a collection's arrays are left"),
    ]
    for what, message in found:  # noqa: B007 (keep calls it)
        with pytest.raises(AssertionError, match=message):
            run.one_life()
    mpe.set_num_threads(before)


def test_growth_is_refused() -> None:
    base = {"resident": 10**9, "files": 5, "threads": 3}
    soak.assert_no_growth(base, base, 64)
    for name, more in (("resident", 65 << 20), ("files", 1), ("threads", 5)):
        with pytest.raises(AssertionError, match=f"{name} grew"):
            soak.assert_no_growth(base, {**base, name: base[name] + more}, 64)
