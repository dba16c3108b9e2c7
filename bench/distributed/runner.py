"""Starts the ranks of a comparison as processes of this machine; puts their results together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed.cases import Setting

BENCH = Path(__file__).resolve().parents[1]
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MPEMBED_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run(setting: Setting, names: Sequence[str], limit: float) -> list[dict[str, Any]]:
    """Return the results of each contender, with a list of the ranks' values each.

    Raises
    ------
    RuntimeError
        If a rank fails or `limit` seconds are over; it has the end of what that rank printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "setting.json")
        given.write_text(json.dumps({"setting": setting.as_dict(), "names": list(names)}))
        started = []
        try:
            for rank in range(setting.world):
                with Path(folder, f"{rank}.log").open("w") as log:
                    started.append(_start(rank, folder, log))
            end = time.monotonic() + limit
            for rank, process in enumerate(started):
                code = _wait(process, end)
                if code != 0:
                    text = Path(folder, f"{rank}.log").read_text()[-3000:]
                    raise RuntimeError(f"rank {rank} ended with {code}:\n{text}")
        finally:
            for process in started:
                process.kill()
                process.wait()
        found = [
            json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(setting.world)
        ]
    return [_joined(one, setting) for one in zip(*found, strict=True)]


def _wait(process: subprocess.Popen[bytes], end: float) -> int | str:
    try:
        return process.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "no result in time"


def _start(rank: int, folder: str, log: Any) -> subprocess.Popen[bytes]:
    path = [str(BENCH), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "distributed.rank", str(rank), folder],
        cwd=folder,
        env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": ":".join(path)},
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def _joined(ranks: Sequence[dict[str, Any]], setting: Setting) -> dict[str, Any]:
    first = ranks[0]
    lists = ("cpu", "wall", "received", "held", "expected")
    values = {name: [one[name] for one in ranks] for name in lists}
    return {"name": first["name"], "mode": first["mode"], **setting.as_dict(), **values}
