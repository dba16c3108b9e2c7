"""What the programs of gpu.sh find: each figure is printed, and kept at once in a file of lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def add(kind: str, text: str, **values: Any) -> None:
    """Print a line, and append it as JSON to the file that MPEMBED_GPU_FIGURES names."""
    print(f"{kind}: {text}", flush=True)
    line = {"part": os.environ.get("MPEMBED_GPU_PART"), "kind": kind, "text": text, **values}
    append(os.environ.get("MPEMBED_GPU_FIGURES"), line)


def append(path: str | Path | None, values: dict[str, Any]) -> None:
    """Append a line of JSON, all of it in one write, so that a kill leaves whole lines."""
    if path:
        with Path(path).open("ab", buffering=0) as file:
            file.write(json.dumps(values).encode() + b"\n")


def lines(path: Path) -> list[dict[str, Any]]:
    """Return what a file holds, without a last line that was cut off; empty if there is none."""
    if not path.exists():
        return []
    whole = path.read_text("utf-8").split("\n")[:-1]
    return [json.loads(line) for line in whole if line]
