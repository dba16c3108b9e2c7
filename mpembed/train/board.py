"""Scalars for TensorBoard."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

from mpembed.train.data.options import OptionError
from mpembed.train.settings import TrainOptions
from mpembed.train.streams import tell
from mpembed.train.trial import Trial


class Board:
    """Writes curves while a run goes on, and its scores at the end, a folder for each model.

    Parameters
    ----------
    folder : Path
        That of ``tensorboard --logdir``.
    options : TrainOptions
        The run.

    Raises
    ------
    OptionError
        If its files cannot be made.
    """

    def __init__(self, folder: Path, options: TrainOptions) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}
        self._failure: OSError | None = None
        try:
            for setting in options.settings:
                self._writer(setting.name, options.seed)
        except OSError as error:
            raise OptionError(
                f"--logdir {folder}: cannot be written: {error.strerror or error}"
            ) from None

    def __call__(self, trial: Trial, rows: int) -> None:
        """Write how a trial does after some more rows; after an error, nothing more is written."""
        if self._failure is not None:
            return
        try:
            self._add(trial)
        except OSError as error:
            self._failure = error
            reason = error.strerror or error
            tell(f"--logdir {self._folder}: cannot be written: {reason}; going on without it")

    def _add(self, trial: Trial) -> None:
        writer, trained = self._writer(trial.setting.name, trial.seed), trial.records.trained
        writer.add_scalar("train/log_loss", trial.recent_loss(), trained)
        writer.add_scalar("train/rows_per_second", trial.rows_per_second(), trained)
        hits = trial.hit_rate()
        if hits is not None:
            of = "_of_rank_0" if trial.ranks.size > 1 else ""
            writer.add_scalar(f"cache/hit_rate{of}", hits, trained)

    def finish(self, result: dict[str, Any]) -> None:
        """Write the scores of a run and close the files; OSError also if it failed before."""
        if self._failure is not None:
            raise self._failure
        for run in result["runs"]:
            writer = self._writer(run["setting"], run["seed"])
            rows = run["curve"][-1]["rows"] if run["curve"] else 0
            writer.add_scalar("memory/bytes", run["memory"]["total"], rows)
            for part in ("validation", "test"):
                for name, value in (run[part] or {}).items():
                    writer.add_scalar(f"{part}/{name}", value, rows)
        for writer in self._writers.values():
            writer.close()

    def _writer(self, setting: str, seed: int) -> Any:
        name = f"{setting.replace(' ', '').replace('%', '')}-seed{seed}"
        if name not in self._writers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of packages that tensorboard imports
                from torch.utils.tensorboard import SummaryWriter
            self._writers[name] = SummaryWriter(str(self._folder / name))
            quieten()
        return self._writers[name]


def quieten() -> None:
    """Let no thread of tensorboard print an OSError: its writer raises that at its next call."""
    before = threading.excepthook
    if getattr(before, "of_board", False):
        return

    def hook(found: threading.ExceptHookArgs) -> None:
        written = isinstance(found.exc_value, OSError)
        if not (written and type(found.thread).__module__.startswith("tensorboard.")):
            before(found)

    hook.of_board = True  # type: ignore[attr-defined]
    threading.excepthook = hook
