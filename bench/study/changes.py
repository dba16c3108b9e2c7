"""Writes ``docs/study_changes.md``: what each change in training leaves of INT4's loss."""

from __future__ import annotations

from pathlib import Path

from study.report import models, table
from study.results import Run
from study.settings import BASE, CHANGES, alike
from study.summary import Group, group_runs

PAGE = "study_changes.md"
#: The page's last part, which was measured once, by a program that is not kept.
WHICH_ROWS = Path(__file__).with_name("which_rows.md")
HEAD = """\
# What is left of INT4's loss

This page is written by `python -m bench.study --changes`, a part of [the study](study.md), whose
words it uses. INT4 with a cache of 5 % loses where most rows are trained often, by the noise of the
roundings. Three changes lessen it: one update a step of a table that is looked up several times,
paired draws, and a lower rate or a larger batch.

```sh
python -m bench.study --changes --models sequence,item2vec,factorisation \\
    --data sequence=synthetic --data sequence=u.data \\
    --data factorisation=synthetic --data factorisation=u.data
```

The sequence model looks its items up three times a step: inputs, targets, negatives. Item2vec looks
its contexts up twice: contexts, negatives. The factorisation looks up each table once. Figures of
the sequence model differ a little between processors, by the order of PyTorch's sums.
"""
LEFT = """\
In each cell first the loss in per cent. The first one of a line is to FP32 rows that are trained
alike: an update a lookup has FP32 rows with an update a lookup. All others are to FP32 rows with
one update a step, the whole rate and the model's batch. Behind the semicolon is how much of the
line's first loss is left, in per cent of it. The changes add up from left to right; the last two
are each added to paired draws.
"""
OWN = """\
What the same changes do to FP32 rows: how much worse they are than with one update a step, the
whole rate and the model's batch, in per cent.
"""


def write(runs: list[Run], folder: Path) -> str:
    """Write the page; return its table of losses."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = [group for group in group_runs(runs) if BASE in group.runs]
    parts = [HEAD, "## Models\n", models(groups), "", "## INT4\n", LEFT, left(groups), ""]
    parts += ["## FP32\n", OWN, own(groups), ""]
    parts.append(WHICH_ROWS.read_text(encoding="utf-8").rstrip("\n"))
    (folder / PAGE).write_text("\n".join(parts) + "\n", encoding="utf-8")
    return left(groups)


def left(groups: list[Group]) -> str:
    """Return the table of INT4's losses and of what is left of the first."""
    rows = [
        [group.title, *(_left(group, setting.name) for setting in CHANGES.values())]
        for group in groups
    ]
    return table(["model", *CHANGES], rows)


def _left(group: Group, name: str) -> str:
    known = group.changes()
    if name not in known:
        return ""
    if name == known[0]:
        return str(group.loss(name, group.alike(name)))
    share = group.left(name)
    said = f"; {share.mean:.0f}" if share.seeds else ""
    if share.seeds > 1:
        said += f" ± {share.error:.0f}"
    return _loss(group, name) + said


def _loss(group: Group, name: str) -> str:
    """Return a loss to FP32 rows, with the number of seeds where others have more."""
    loss = group.loss(name)
    few = f" ({loss.seeds} of {len(group.runs[BASE])} seeds)"
    return str(loss) + (few if loss.seeds < len(group.runs[BASE]) else "")


def own(groups: list[Group]) -> str:
    """Return the table of the losses of FP32 rows by the same changes."""
    names = dict.fromkeys(alike(setting).name for setting in CHANGES.values())
    names.pop(BASE)
    rows = [[g.title, *(_loss(g, n) if n in g.runs else "" for n in names)] for g in groups]
    return table(["model", *names], rows)
