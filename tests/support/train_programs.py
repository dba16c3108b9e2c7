"""Programs of the tests of ``mpembed train`` on several ranks, for `ranks.run`."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any
from unittest import mock

import numpy as np
import torch


def trained(settings: list[str], values: dict[str, Any]) -> dict[str, Any]:
    """Train; return the losses, the scores, and digests of all that was trained here."""
    from mpembed.train import runner
    from mpembed.train.distributed import started_ranks
    from mpembed.train.settings import Setting, TrainOptions

    values = {"rows": 1200, "dim": 8, "threads": 1, **values}
    options = TrainOptions(tuple(Setting.parse(one) for one in settings), **values)
    seen: dict[str, Any] = {}  # each setting's model

    def report(trial: Any, rows: int) -> None:
        seen[trial.setting.name] = trial

    with started_ranks() as ranks:
        result = runner.run(options, runner.open_dataset(options), report, ranks=ranks)
    return {
        "losses": [[p["loss"] for p in run["curve"]] for run in result["runs"]],
        "test": [run["test"] for run in result["runs"]],
        "memory": [run["memory"] for run in result["runs"]],
        "cache": [run["cache"] for run in result["runs"]],
        "rounding": [list(run["rounding"]) for run in result["runs"]],
        "dense": [_digest([p.detach() for p in one.net.parameters()]) for one in seen.values()],
        "tables": [_digest(one.tables.state_arrays().values()) for one in seen.values()],
    }


def _digest(arrays: Any) -> str:
    parts = (np.ascontiguousarray(np.asarray(one)).tobytes() for one in arrays)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def train_rank(rank: int, world_size: int, settings: list[str], values: dict[str, Any]) -> Any:
    """Train as a rank."""
    warnings.simplefilter("error")
    return trained(settings, values)


def command(rank: int, world_size: int, by_rank: list[list[str]]) -> tuple[int, str, str]:
    """Call the command line as a rank; return the status and what it has printed."""
    from mpembed.cli import app

    out, err, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            app(by_rank[rank % len(by_rank)])
        except SystemExit as left:
            status = int(left.code or 0)
    torch.set_num_threads(1)
    return status, out.getvalue(), err.getvalue()


def acting(step: int, act: Callable[[], object]) -> Callable[..., None]:
    """Return a `Trial._update_tables` that does something in the middle of a step."""
    from mpembed.train.trial import Trial

    real, count = Trial._update_tables, 0

    def update(self: Trial, *given: Any) -> None:
        nonlocal count
        count += 1
        if count == step:
            act()
        real(self, *given)

    return update


def one_dies(rank: int, world_size: int, arguments: list[str]) -> tuple[int, str, str]:
    """Call the command line; the second rank dies in its third step."""
    from mpembed.train.trial import Trial

    def die() -> None:
        if rank == 1:
            os._exit(9)

    with mock.patch.object(Trial, "_update_tables", acting(3, die)):
        return command(rank, world_size, [arguments])


def one_cannot_save(rank: int, world_size: int, arguments: list[str]) -> tuple[int, str, str]:
    """Call the command line; the second rank's disk is full at its first save."""
    import mpembed as mpe

    real, full = mpe.EmbeddingBagCollection.save, [rank == 1]

    def save(self: Any, path: Any, **given: Any) -> Any:
        if full.pop() if full else False:
            raise OSError(28, "No space left on device", str(path))
        return real(self, path, **given)

    with mock.patch.object(mpe.EmbeddingBagCollection, "save", save):
        return command(rank, world_size, [arguments])


def one_refuses(rank: int, world_size: int) -> None:
    """Let the second rank refuse what all of them are to do."""
    from mpembed.train.data.clicks import DataError
    from mpembed.train.distributed import started_ranks

    def refuse() -> None:
        if rank == 1:
            raise DataError("no")

    with started_ranks() as found:
        found.together(refuse)
