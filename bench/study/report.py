"""Writes ``docs/study.md`` and its plots from finished runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from study import figures
from study.results import Run
from study.runner import make_model
from study.settings import BASE, CONTRAST
from study.statistics import Estimate
from study.summary import EQUAL, Group, group_runs, plain

PAGE = "study.md"
HEAD = """\
# The accuracy study

This page is written by `python -m bench.study`; [choosing.md](choosing.md) says what follows from
it. Four models are trained under many settings of their tables. Each setting is run with the same
seeds: the same starting rows, the same weights, the same order of the data. A *loss* is how much
worse a setting's metric is than that of FP32 rows, in per cent of it; positive is worse. It is the
mean over the seeds of the differences between runs with the same seed, ± its standard error.

```sh
pip install -c constraints.txt ".[train]"
python -m bench.study             # what is below, hours on one core
python -m bench.study --quick     # small data, few settings: ten minutes on two cores
python -m bench.study --data sequence=u.data --data factorisation=u.data --jobs 2
```

Finished runs are kept in `build/study/results.jsonl`. A rerun skips them, so a stopped study goes
on where it was. `--help` lists the options. `--data` takes clicks in Criteo's format, and for the
other models MovieLens' `u.data`, `ratings.dat` or `ratings.csv`, RecBole's `.inter`, or a table of
sessions with the columns `session_id`, `item_id` and `timestamp`. RecBole's wheel holds ml-100k:
`pip download recbole==1.2.1 --no-deps`, then unzip it.

*Bytes* are those of a row and of its share of the cache, tags and counters included, as
`memory_report()` counts them; optimizer states are left out. Caches have the policy LFU where
nothing else is said, and 8 ways (the click model's have 32). *Noise* is the ratio of
`emb.rounding_report()`, the median over the tables. `paired` is the default rounding; `stochastic`
draws independently. A run takes seconds, so the tables are small. In all but the click model's,
most rows are used in every epoch, which is hard for low precision.
"""
CHOICE = """\
The last column is the best of several settings by the same runs, so it flatters a little.
"""
PAIRS = """\
How much worse a setting is with `rounding="paired"` than with `"stochastic"`, in per cent of the
metric; negative is better.
"""
MODELS_HEAD = ["model", "data", "metric", "D", "optimizer, rate", "rows", "seeds"]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(runs: list[Run], folder: Path) -> str:
    """Write the page and its plots; return the table of the results that decide."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = [group for group in group_runs(runs) if BASE in group.runs]
    parts = [
        HEAD,
        "## Models\n",
        models(groups),
        "",
        "## In short\n",
        in_short(groups),
        "",
        CHOICE,
    ]
    pairs = paired_rounding(groups)
    if pairs:
        parts += ["## Paired against independent draws\n", PAIRS, pairs, ""]
    for group in groups:
        parts.append(_section(group, figures.draw(group, folder)))
    (folder / PAGE).write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    return in_short(groups)


def models(groups: list[Group]) -> str:
    """Return the table of the models and their data."""
    rows = []
    for group in groups:
        model = make_model(group.model)
        counts = {k: v for k, v in group.data.items() if k not in ("name", "rows")}
        data = ", ".join([group.data_name, *(f"{v:,} {k}" for k, v in counts.items())])
        trained = f"{model.optimizer.replace('_', ' ')}, {model.rates[model.optimizer]:g}"
        seeds = len(group.runs[BASE])
        row = [model.title, data, model.metric, str(model.dim), trained]
        rows.append([*row, f"{group.data['rows']:,}", str(seeds)])
    return table(MODELS_HEAD, rows)


def in_short(groups: list[Group]) -> str:
    """Return the table of the results that decide."""
    names = ["int8 + 5 % stochastic", CONTRAST, "int4 + 5 % paired", "int6 paired"]
    head = ["loss to FP32, %", *names, "best at the bytes of int4 + 5 %"]
    rows = []
    for group in groups:
        best = group.equal_bytes()[:1]
        said = [f"{name}: {group.loss(name)}" for name in best] or ["-"]
        rows.append([group.title, *(str(group.loss(name)) for name in names), *said])
    return table(head, rows)


def paired_rounding(groups: list[Group]) -> str:
    """Return the table of paired rounding against stochastic rounding; empty without runs."""
    named: dict[str, dict[str, str]] = {}
    for group in groups:
        for setting in group.settings():
            plain_name = replace(setting, rounding="stochastic").name
            if setting.rounding == "paired" and plain_name in group.runs:
                said = str(group.loss(setting.name, plain_name))
                named.setdefault(setting.storage + setting.variant, {})[group.title] = said
    titles = [group.title for group in groups]
    rows = [[name, *(said.get(title, "") for title in titles)] for name, said in named.items()]
    return table(["setting", *titles], rows) if rows else ""


def _section(group: Group, plot: str) -> str:
    model = make_model(group.model)
    text = [f"## {group.title}\n", f"![Loss against bytes, and training loss]({plot})\n"]
    names = [setting.name for setting in plain(group)]
    text += [f"The rows' storage, trained with {model.optimizer.replace('_', ' ')}:\n"]
    text += [_settings(group, names), ""]
    equal = group.equal_bytes()
    if equal:
        share = round(100 * (EQUAL - 1))
        text += [f"At most the bytes of int4 + 5 % (and {share} % more), the best first:\n"]
        text += [_settings(group, equal[:8]), ""]
    others = [s.name for s in group.settings() if s.name not in names]
    if others:
        text += ["Other optimizers, rates, dimensions and policies, each beside the FP32 run that "]
        text[-1] += "is trained alike:\n"
        text += [_variants(group, others), ""]
    return "\n".join(text)


def _row(group: Group, name: str) -> list[str]:
    found = group.metric(name)
    if not found:
        return [name, "diverged", "", "", "", ""]
    hits, noise = group.hit_rate(name), group.noise(name)
    return [
        name,
        f"{group.bytes(name):.1f}",
        "" if hits is None else f"{100 * hits:.0f}",
        "" if noise is None else f"{noise:.2g}",
        str(len(found)),
        f"{sum(found.values()) / len(found):.4f}",
    ]


def _settings(group: Group, names: list[str]) -> str:
    metric = make_model(group.model).metric
    head = ["setting", "bytes", "hits, %", "noise", "seeds", metric, "loss, %", f"to {CONTRAST}, %"]
    rows = []
    for name in names:
        contrast = "" if name == CONTRAST else str(group.loss(name, CONTRAST))
        rows.append([*_row(group, name), "" if name == BASE else str(group.loss(name)), contrast])
    return table(head, rows)


def _variants(group: Group, names: list[str]) -> str:
    head = [
        "setting",
        "bytes",
        "hits, %",
        "noise",
        "seeds",
        make_model(group.model).metric,
        "loss, %",
    ]
    head.append("to FP32 trained alike, %")
    rows = []
    for name in names:
        alike = group.alike(name)
        same: Estimate | str = "" if alike in (BASE, name) else group.loss(name, alike)
        if alike != BASE and alike not in group.runs:
            same = ""
        rows.append([*_row(group, name), str(group.loss(name)), str(same)])
    return table(head, rows)
