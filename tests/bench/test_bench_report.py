"""bench/report.py and bench/targets.py: what a run found, beside its targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import report
import targets

PAGE = f"# Title\n\n{report.BEGIN}\n\nold\n\n{report.END}\n\nthe end\n"
FORWARD = {"operation": "forward", "shape": "4Mx64", "precision": "int8", "distribution": "uniform"}


def found(group: str, case: dict[str, Any], **seconds: float) -> dict[str, Any]:
    """Return a benchmark of 1000 items as pytest-benchmark writes it; mpembed takes 1 ms."""
    times = {"mpembed": 1e-3, **{name.replace("_", " "): s for name, s in seconds.items()}}
    ratios = {name: s / 1e-3 for name, s in times.items() if name != "mpembed"}
    info = {"case": case, "items": 1000, "seconds": times, "ratios": ratios}
    return {"group": group, "extra_info": {**info, "absent": {"torch int8": "gone"}}}


def run(quick: bool = False) -> dict[str, Any]:
    benchmarks = [
        found("lookup", {**FORWARD, "threads": 1}, FBGEMM_int8=3e-3, torch_int8=2e-3, limit=8e-4),
        found("lookup", {**FORWARD, "threads": 2}, FBGEMM_int8=3e-3, torch_int8=2e-3, limit=9e-4),
        found("call", {"operation": "call", "arrays": "numpy", "threads": 1}),
    ]
    for rows in (10_000, 1_000_000):
        case = {"operation": "forward", "rows": rows, "distribution": "uniform", "threads": 1}
        benchmarks.append(found("growth rows", case, limit=5e-4))
        benchmarks.append(found("growth skew", case, limit=5e-4))
    hits = found("cache hit rate", {"operation": "step", "threads": 2}, FBGEMM_fp32=2e-3)
    hits["extra_info"]["hit_rate"] = 0.5
    for one in [*benchmarks, hits]:
        one["extra_info"]["quick"] = quick
    machine = {"cpu": {"brand_raw": "A processor", "count": 2}, "bench": {"load": 0.1}}
    gpu = {"group": "gpu forward", "extra_info": {"calls": 10}}
    return {"benchmarks": [*benchmarks, hits, gpu], "machine_info": machine}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / report.PAGE).write_text(PAGE)
    return tmp_path


def made(docs: Path, results: dict[str, Any]) -> str:
    """Return the page after a report."""
    path = docs / "results.json"
    path.write_text(json.dumps(results))
    assert report.main([str(path), "--docs", str(docs), "--all"]) == 0
    return (docs / report.PAGE).read_text()


def test_the_page_shows_results_beside_targets(docs: Path) -> None:
    pytest.importorskip("matplotlib")
    page = made(docs, run())
    assert page.startswith("# Title\n\n")
    assert page.endswith("\n\nthe end\n")
    assert "old" not in page
    assert "A processor, 2 cores" in page
    assert "Skipped: torch int8: gone." in page
    (line,) = [x for x in page.splitlines() if x.startswith("| forward int8, 4Mx64 |")]
    assert line.split(" | ")[1:] == [
        "3.00x (2.1x)",
        "3.00x (4x) **missed**",
        "2.00x (1.4x)",
        "0.80 (0.85) **missed**",
        "0.90 (0.85) |",
    ]
    assert "| backward + SGD, fp32 | not measured (2.2x) |" in page
    assert "| forward of one bag of one index, a call | 1.00 us (10 us) |" in page
    assert "| uniform | 1000.0 ns (0.50) | not measured |" in page
    for plot in docs.glob("*.svg"):
        assert f"]({plot.name})" in page
        assert plot.stat().st_size < 60_000
    assert len(list(docs.glob("*.svg"))) == 3
    assert made(docs, run()) == page


def test_a_quick_run_is_printed_and_not_written(
    docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made(docs, run(quick=True)) == PAGE
    assert "3.00x (4x) **missed**" in capsys.readouterr().out


def test_a_time_may_not_exceed_its_bound() -> None:
    assert targets.beside(7.0, 6.0, " ns", least=False) == "7.00 ns (6 ns) **missed**"
    assert targets.beside(5.0, 6.0, " ns", least=False) == "5.00 ns (6 ns)"
    assert targets.beside(5.0, None, " ns") == "5.00 ns"
    assert targets.beside(None, None) == ""


def test_a_peer_that_a_second_thread_slows_down_has_one(tmp_path: Path) -> None:
    results = run()
    second = results["benchmarks"][1]["extra_info"]
    second["seconds"]["torch int8"], second["ratios"]["torch int8"] = 5e-3, 5.0
    second["seconds"]["limit"], second["ratios"]["limit"] = 9e-3, 9.0
    (tmp_path / "results.json").write_text(json.dumps(results))
    read, _ = report.read(tmp_path / "results.json")
    assert read[1]["ratios"] == {"FBGEMM int8": 3.0, "torch int8": 2.0, "limit": 9.0}


def test_every_page_has_its_markers() -> None:
    page = (report.DOCS / report.PAGE).read_text(encoding="utf-8")
    assert page.index(report.BEGIN) < page.index(report.END)
