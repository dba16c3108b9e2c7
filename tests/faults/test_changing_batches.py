"""A batch changes between two kernels, and at any moment: what was checked is used, or an error."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cuda_backend
import numpy as np
import programs
import pytest
from changing_arguments import SPOILED_INDICES, SPOILED_OFFSETS, batch, collection
from copied_backend import CopiedBackend

import mpembed as mpe
from mpembed import devices
from mpembed._bindings import kernels


@pytest.fixture(params=["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def changing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CopiedBackend:
    """Return the functions of a device whose memory this process can write."""
    if request.param == "cpu":
        backend = CopiedBackend(kernels.BACKEND)
    else:
        request.getfixturevalue("cuda")
        if cuda_backend.choice() != "emulation":
            pytest.skip("a device's memory is written by its own kernels")
        backend = CopiedBackend(devices.cuda_backend())
    backend.name = request.param  # type: ignore[attr-defined]
    return backend


def writes(array: Any, wrong: Any) -> Callable[[], Any]:
    """Return what overwrites an array of the host or of an emulated device."""
    at = array.address if isinstance(array, mpe.Tensor) else array.ctypes.data
    values = wrong.tobytes()
    return lambda: ctypes.memmove(at, values, len(values))


@pytest.mark.parametrize("pooling", ["sum", "none"])
@pytest.mark.parametrize(("after", "count"), [("check_offsets", 3), ("prepare", 6)])
def test_a_batch_changes_between_its_kernels(
    changing: Any, monkeypatch: pytest.MonkeyPatch, pooling: str, after: str, count: int
) -> None:
    """What was checked is what is used: the output is that of the batch before."""
    emb = collection(pooling)
    if after == "check_offsets" and changing.name != "cpu":  # its prepare checks the copy
        after, count = "copy", 4
    expected = emb.forward(*list(batch().values())[:2])
    todo: list[Callable[[], Any]] = []

    def around(real: Callable[..., int], *given: Any) -> int:
        status = real(*given)
        while todo:
            todo.pop()()
        return status

    changing.wrap(after, count, around)
    monkeypatch.setitem(devices._known, changing.name, changing.device())
    emb = collection(pooling, device=changing.name)
    for how in SPOILED_OFFSETS.values():
        given = batch()
        indices, offsets = (mpe.to_device(given[one], changing.name) for one in list(given)[:2])
        if isinstance(offsets, np.ndarray):
            indices, offsets = indices.copy(), offsets.copy()
        todo[:] = [writes(offsets, how(given["offsets"]))]
        if after == "prepare":
            todo.append(writes(indices, SPOILED_INDICES["far"](given["indices"])))
        out = emb.forward(indices, offsets)
        assert not todo
        emb.check()
        for one in "ab":
            found = out[one] if pooling == "none" else out
            wanted = expected[one] if pooling == "none" else expected
            found = found.numpy() if isinstance(found, mpe.Tensor) else found
            assert np.array_equal(found, wanted)


def in_a_process(seconds: float, folder: Path) -> None:
    program, longest = Path(__file__).with_name("change_batches.py"), 10 * seconds + 60
    run = programs.call(folder, program, seconds, timeout=longest, PYTHONFAULTHANDLER="1")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.split()[-1] == "right"


def test_a_thread_changes_batches(tmp_path: Path) -> None:
    in_a_process(2.0, tmp_path)


@pytest.mark.exhaustive
def test_a_thread_changes_batches_for_long(tmp_path: Path) -> None:
    in_a_process(20.0, tmp_path)
