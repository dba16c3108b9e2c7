"""Memory that C++ programs get from the CPU backend, plain and under AddressSanitizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from drivers import build, built, run
from folders import ROOT

SOURCES = [
    ROOT / "kernels" / "cpu" / "shared" / "pages.cpp",
    Path(__file__).with_name("pages_driver.cpp"),
]
CHECKS = ["starts", "apart", "refused"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("pages") / "driver", SOURCES)


@pytest.mark.parametrize("check", CHECKS)
def test_pages(driver: Path, check: str) -> None:
    done = run(driver, check)
    assert done.returncode == 0, done.stderr


def test_pages_under_address_sanitizer(tmp_path: Path) -> None:
    done = build(tmp_path / "driver", SOURCES, "-O1", "-fsanitize=address")
    if done.returncode != 0 and "asan" in done.stderr:
        pytest.skip("the compiler has no AddressSanitizer library")
    assert done.returncode == 0, done.stderr
    for check in CHECKS:
        done = run(tmp_path / "driver", check, ASAN_OPTIONS="allocator_may_return_null=1")
        assert done.returncode == 0, done.stderr
