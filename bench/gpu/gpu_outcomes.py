"""A plugin of pytest: each test's outcome is kept at once, in the file MPEMBED_GPU_TESTS."""

from __future__ import annotations

import os
from typing import Any

import gpu_figures
import pytest

LONGEST = 6000  # characters of a failure


def _add(test: str, outcome: str, seconds: float, why: Any) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # the process that started this one has it too
        return
    values = {"part": os.environ.get("MPEMBED_GPU_PART"), "test": test, "outcome": outcome}
    text = why[2] if isinstance(why, tuple) else str(why or "")  # of a skip: file, line, reason
    gpu_figures.append(
        os.environ.get("MPEMBED_GPU_TESTS"),
        {**values, "seconds": round(seconds, 4), "why": text.removeprefix("Skipped: ")[-LONGEST:]},
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the outcome of a test; of what comes before and after it, only what is not a pass."""
    if report.when == "call" or report.outcome != "passed":
        _add(report.nodeid, report.outcome, report.duration, report.longrepr)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Keep which files could not be imported."""
    if report.failed:
        _add(report.nodeid, "failed", 0.0, report.longrepr)
