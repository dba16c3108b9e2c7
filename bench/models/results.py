"""The results file: one JSON line a training; a later line of the same training counts."""

from __future__ import annotations

import json
from pathlib import Path

from models.cases import Result


def read(path: Path) -> dict[str, Result]:
    """Return the results of a file by the key of their training; {} if it does not exist.

    A last line that a killed program left unfinished is no result.
    """
    if not path.exists():
        return {}
    found: dict[str, Result] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            result = json.loads(line)
            found[result["key"]] = result
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise ValueError(
                    f"{path}: line {number} is no result; remove it, or give another --out"
                ) from None
    return found


def append(path: Path, results: list[Result]) -> None:
    """Add results, each on a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(result) + "\n" for result in results)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
