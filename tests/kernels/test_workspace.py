"""Memory that kernels work in: what is released is kept for the next call, within a bound."""

from __future__ import annotations

import _ctypes
import ctypes
import mmap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from drivers import build, built, run
from folders import ROOT

import mpembed as mpe

SOURCES = [
    ROOT / "kernels" / "cpu" / "shared" / "workspace.cpp",
    Path(__file__).with_name("workspace_driver.cpp"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("workspace") / "driver", SOURCES)


@pytest.mark.parametrize("check", ["again", "apart", "bounded", "refused", "threads"])
def test_workspace(driver: Path, check: str) -> None:
    done = run(driver, check)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of pages")
def test_an_unloaded_library_keeps_nothing(tmp_path: Path) -> None:
    library = tmp_path / "workspace.so"
    done = build(library, SOURCES[:1], "-O2", "-fPIC", "-shared")
    assert done.returncode == 0, done.stderr
    pages = []
    for _ in range(20):
        pages.append(int(Path("/proc/self/statm").read_text().split()[0]))
        loaded = ctypes.CDLL(str(library))
        acquire = loaded._ZN7mpembed3cpu17acquire_workspaceEm
        release = loaded._ZN7mpembed3cpu17release_workspaceEPv
        acquire.restype, acquire.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        release.restype, release.argtypes = None, [ctypes.c_void_p]
        release(acquire(32 << 20))
        _ctypes.dlclose(loaded._handle)
    assert (pages[-1] - pages[1]) * mmap.PAGESIZE < 100 << 20


def test_tracemalloc_sees_what_a_ticket_holds() -> None:
    emb = mpe.EmbeddingBagCollection([mpe.TableConfig("a", 10, 4)], optimizer=mpe.SGD(0.1))
    indices, offsets = np.zeros(100_000, np.int64), np.array([0, 100_000])
    tracemalloc.start()
    try:
        emb.forward(indices, offsets)
        held = tracemalloc.get_traced_memory()[0]
        assert held >= emb.memory_report()["workspace"] >= 1_200_000
        emb.backward(np.zeros((1, 4), np.float32))
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
