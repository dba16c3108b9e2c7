"""Options and fixtures of the benchmarks, and what the results say about the machine."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parent
sys.path[:0] = [str(BENCH / folder) for folder in (".", "contenders", "gpu")]

PACKAGES = ["mpembed", "torch", "fbgemm-gpu-cpu", "jax", "numpy"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="smaller tables, few rounds: shows that all runs",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    import mpembed as mpe

    machine_info["bench"] = {
        "quick": config.getoption("--quick"),
        "load": os.getloadavg()[0],
        "simd": mpe.info()["simd"],
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


@pytest.fixture(scope="session")
def arena(request: pytest.FixtureRequest) -> Any:
    """Return what runs the comparisons and keeps their tables."""
    from arena import Arena, Shelf

    return Arena(request.config.getoption("--quick"), Shelf())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow warnings, which the peers give; in the tests a warning is an error."""
    for item in items:
        if item.path.parent == BENCH:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
