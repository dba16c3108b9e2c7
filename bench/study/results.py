"""The results file: one JSON line a finished run, so that a rerun skips what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from study.events import DataError
from study.settings import Setting

Run = dict[str, Any]


def key(model: str, data: dict[str, Any], setting: Setting, seed: int) -> str:
    """Return what names a run: the same model, data, setting and seed are run once."""
    return json.dumps([model, data, setting.as_dict(), seed], sort_keys=True)


def run_key(run: Run) -> str:
    """Return the key of a finished run."""
    return key(run["model"], run["data"], Setting(**run["setting"]), run["seed"])


def read(path: Path) -> list[Run]:
    """Return the finished runs of a file, an empty list if it does not exist.

    A last line that a killed program left unfinished is not a run.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    runs: dict[str, Run] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            run = json.loads(line)
            runs[run_key(run)] = run
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise DataError(
                    f"{path}: line {number} is not a run of this study; remove the line, or give "
                    "another file with --out"
                ) from None
    return list(runs.values())


def append(path: Path, run: Run) -> None:
    """Add a finished run, on a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                _drop_unfinished(file)
        file.write(json.dumps(run).encode() + b"\n")


def _drop_unfinished(file: Any) -> None:
    file.seek(0)
    whole = file.read()
    file.truncate(whole.rfind(b"\n") + 1)
