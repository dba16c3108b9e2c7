"""The command line of the comparison."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from distributed import paper, report, runner
from distributed.cases import CONTENDERS, Setting

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
OUT = Path("build/distributed/results.jsonl")


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


@app.command()
def main(
    worlds: Annotated[str, typer.Option(help="Numbers of processes, with commas.")] = "2,4",
    lengths: Annotated[str, typer.Option(help="Indices a bag, with commas.")] = "1,10",
    dims: Annotated[str, typer.Option(help="Columns of the tables, with commas.")] = "32,128",
    batch: Annotated[int, typer.Option(help="Bags of all processes together.")] = 1024,
    precision: Annotated[str, typer.Option(help="Of mpembed's rows.")] = "int4",
    cache: Annotated[float, typer.Option(help="Cached rows, of a table's.")] = 0.05,
    contenders: Annotated[str, typer.Option(help="Some of them.")] = ",".join(CONTENDERS),
    rounds: Annotated[int, typer.Option(min=1)] = 12,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a contender in a round.")] = 12,
    limit: Annotated[float, typer.Option(help="Seconds for one comparison.")] = 300.0,
    out: Annotated[Path, typer.Option(help="Results, a JSON line each.")] = OUT,
    only_paper: Annotated[
        bool, typer.Option("--paper", help="Run nothing: print sizes and times on paper.")
    ] = False,
) -> None:
    """Train with TorchRec's kernel and with mpembed's, over processes of this machine."""
    if only_paper:
        print(paper.memory_table(), paper.step_table(), sep="\n\n")
        return
    names = [name for name in CONTENDERS if name in contenders.split(",")]
    out.parent.mkdir(parents=True, exist_ok=True)
    found = []
    for world, length, dim in product(_numbers(worlds), _numbers(lengths), _numbers(dims)):
        setting = Setting(world, length, dim, batch, precision, cache, rounds, steps)
        results = runner.run(setting, names, limit)
        with out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(one) + "\n" for one in results)
        found += results
    print(report.table(found))
