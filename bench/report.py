"""Makes the tables and plots of ``docs/benchmarks.md`` from the results of ``pytest bench``.

    pytest bench --benchmark-json=results.json
    python -m bench.report results.json [--all] [--docs DIR]

Prints the tables and, unless the run was a quick one, writes them and the plots into the docs.
``--all`` prints every comparison as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import targets
from rounds import LIMIT, OURS
from targets import SKEWS, THREADS

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = "benchmarks.md"
BEGIN, END = "<!-- results: written by bench.report -->", "<!-- end of results -->"
Result = dict[str, Any]


def read(path: Path) -> tuple[list[Result], Result]:
    """Return the comparisons of a run, and the rest of its file."""
    run: Result = json.loads(path.read_text())
    benchmarks = run.pop("benchmarks")
    results = [
        {"group": one["group"], **one["extra_info"]}
        for one in benchmarks
        if "ratios" in one["extra_info"]
    ]
    for found in results:
        _forgive_threads(found, results)
    return results, run


def _forgive_threads(found: Result, results: list[Result]) -> None:
    """Give a peer that is slower with two threads the time that it takes with one."""
    if found["case"].get("threads") != 2:
        return
    alone = targets.find(results, {**found["case"], "threads": 1}, 1)
    ours = found["seconds"][OURS]
    for peer, ratio in found["ratios"].items():
        if peer in alone.get("seconds", {}) and peer != LIMIT:
            found["ratios"][peer] = min(ratio, alone["seconds"][peer] / ours)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ratios(results: list[Result]) -> str:
    """Return the table of ratios, each with its target in parentheses."""
    head = ["operation", "FBGEMM, 1 thread", "FBGEMM, 2 threads", "best peer, 2 threads"]
    head += ["of the limit, 1 thread", "of the limit, 2 threads"]
    return table(head, [_ratio_line(results, target) for target in targets.TARGETS])


def _ratio_line(results: list[Result], target: targets.Target) -> list[str]:
    line = [target.label]
    found = [targets.find(results, target.case, threads) for threads in THREADS]
    for i, one in enumerate(found):
        wanted = target.fbgemm[i] if target.fbgemm else None
        line.append(targets.beside(one.get("ratios", {}).get(target.peer), wanted))
    line.append(targets.beside(targets.best_peer(found[1]), target.best))
    for one in found:
        line.append(targets.beside(one.get("ratios", {}).get(LIMIT), target.limit, unit=""))
    return line


def bounds(results: list[Result]) -> str:
    """Return the table of times, each with its target in parentheses."""
    rows = []
    for bound in targets.BOUNDS:
        cells = []
        for threads in THREADS:
            found = targets.find(results, bound.case, threads)
            most = bound.most.get(threads)
            cells.append(
                targets.beside(targets.excess(found, bound), most, f" {bound.unit}", least=False)
            )
        rows.append([bound.label, *cells])
    return table(["time", "1 thread", "2 threads"], rows)


def skews(results: list[Result]) -> str:
    """Return the cost of a row by distribution."""
    chosen = [found for found in results if found["group"] == "growth skew"]
    rows = []
    for skew in SKEWS:
        cells = [{"half": "half of the batch one row"}.get(skew, skew.replace("zipf", "Zipf "))]
        for operation in ("forward", "backward"):
            for threads in THREADS:
                case = {"operation": operation, "distribution": skew}
                cells.append(_cost(targets.find(chosen, case, threads)))
        rows.append(cells)
    head = [f"{operation}, {n}" for operation in ("forward", "backward") for n in THREADS]
    return table(["indices", *head], rows)


def _cost(found: Result) -> str:
    if not found:
        return "not measured"
    fraction = found["ratios"].get(LIMIT)
    said = f"{found['seconds'][OURS] / found['items'] * 1e9:.1f} ns"
    return said if fraction is None else f"{said} ({fraction:.2f})"


def setup(run: Result) -> str:
    """Return the machine and the versions of the run."""
    info = run["machine_info"]
    bench = info.get("bench", {})
    cpu = info.get("cpu", {})
    versions = ", ".join(f"{name} {v}" for name, v in bench.get("versions", {}).items())
    name = cpu.get("brand_raw", "a processor without a name")
    return (
        f"{name}, {cpu.get('count', '?')} cores, kernels for {bench.get('simd', '?')}; "
        f"Python {info.get('python_version', '?')}, {versions}; "
        f"{run.get('datetime', '?')[:10]}, load {bench.get('load', 0.0):.1f} at the start."
    )


def absent(results: list[Result]) -> str:
    """Return which contenders were skipped and why."""
    reasons = {f"{name}: {why}" for found in results for name, why in found["absent"].items()}
    return "Skipped: " + "; ".join(sorted(reasons)) + "." if reasons else ""


def everything(results: list[Result]) -> str:
    """Return every comparison: nanoseconds an item, and how much faster mpembed is."""
    rows = []
    for found in results:
        case = " ".join(f"{name}={value}" for name, value in found["case"].items())
        cost = found["seconds"][OURS] / found["items"] * 1e9
        said = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in found["ratios"].items())
        rows.append([found["group"], case, f"{cost:.1f}", said])
    return table(["group", "case", "ns", "ratios"], rows)


def text(results: list[Result], run: Result) -> str:
    """Return all that the page shows of a run except its plots."""
    parts = [
        setup(run),
        absent(results),
        "### Against peers and the limit",
        ratios(results),
        "### Times",
        bounds(results),
        "### Skew and duplicates",
        "A row of INT4 x 64, by the number of threads; in parentheses the fraction of the limit.",
        skews(results),
    ]
    return "\n\n".join(filter(None, parts))


def write(docs: Path, results: list[Result], run: Result) -> None:
    """Put the plots beside the page, and the text between its markers."""
    import plots

    page = docs / PAGE
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page} lacks the lines {BEGIN} and {END}; put them around the results")
    drawn = "\n\n".join(f"![{said}]({name})" for name, said in plots.draw(results, docs).items())
    body = f"{BEGIN}\n\n{text(results, run)}\n\n### Plots\n\n{drawn}\n\n{END}"
    page.write_text(before + body + after, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; write them and the plots, unless the run was a quick one."""
    parser = argparse.ArgumentParser(
        prog="bench.report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("results", type=Path, help="what pytest bench --benchmark-json wrote")
    parser.add_argument("--all", action="store_true", help="print every comparison")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page and the plots are")
    options = parser.parse_args(arguments)
    results, run = read(options.results)
    print(text(results, run))
    if options.all:
        print("\n" + everything(results))
    if any(found["quick"] for found in results):
        print("\nA quick run only shows that everything runs, so nothing is written.")
        return 0
    write(options.docs, results, run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
