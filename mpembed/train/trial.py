"""One model under one table setting: it trains, predicts and records scores and times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mpembed.rounding import TableRounding
from mpembed.train.data.clicks import CRITEO_COLUMNS, Columns
from mpembed.train.data.dataset import TEST, VALIDATION
from mpembed.train.data.encoding import Block
from mpembed.train.metrics import accuracy, auc, log_loss
from mpembed.train.model import Perceptrons, make_tables, mlp_optimizer
from mpembed.train.settings import Setting, TrainOptions

_CURVE_POINTS = 100
F32 = npt.NDArray[np.float32]


class DivergedError(ArithmeticError):
    """A loss or an update was not finite; the message names the setting, seed and step."""


class _BackwardTimer:
    """Measures the backward of one result of the tables, including their update."""

    def __init__(self, result: torch.Tensor) -> None:
        self.seconds = 0.0
        assert result.grad_fn is not None
        result.grad_fn.register_prehook(self._begin)
        result.grad_fn.register_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self.seconds = -perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds += perf_counter()


class Trial:
    """A model, its tables and its optimizer.

    Parameters
    ----------
    setting : Setting
        How the tables are stored.
    options : TrainOptions
        The run.
    table_rows : sequence of int
        Rows of each table.
    seed : int
        Seed of the weights, the rows and the rounding.
    columns : Columns
        Those of the data.
    """

    def __init__(
        self,
        setting: Setting,
        options: TrainOptions,
        table_rows: Sequence[int],
        seed: int,
        columns: Columns = CRITEO_COLUMNS,
    ) -> None:
        self.setting, self.seed = setting, seed
        self._batch_size, self._epochs = options.batch_size, options.epochs
        self._net = Perceptrons(options.dim, seed, columns)
        self._optimizer = mlp_optimizer(self._net, options)
        self._tables = make_tables(table_rows, setting, options, seed, columns)
        self._loss = nn.BCEWithLogitsLoss()
        self._trained: list[int] = []
        self.losses: list[float] = []
        self._step_seconds: list[float] = []
        self._table_seconds: list[float] = []
        self._labels: dict[str, list[F32]] = {VALIDATION: [], TEST: []}
        self._logits: dict[str, list[F32]] = {VALIDATION: [], TEST: []}

    def train(self, block: Block) -> None:
        """Train on the batches of a block.

        Parameters
        ----------
        block : Block
            Clicks of the training part.

        Raises
        ------
        DivergedError
            If a loss, or the update of a row, is not finite.
        """
        for batch in block.batches(self._batch_size):
            try:
                self._step(batch)
            except FloatingPointError as error:
                raise DivergedError(
                    f"{self.setting.name}, seed {self.seed}, step {len(self.losses) + 1}: "
                    f"training diverged: {error}; try a smaller --lr"
                ) from None

    def _lookup(self, batch: Block) -> torch.Tensor:
        offsets = (
            torch.arange(batch.ids.size + 1, dtype=torch.int32)  # one id a bag
            if batch.offsets is None
            else torch.from_numpy(batch.offsets)
        )
        pooled: torch.Tensor = self._tables(torch.from_numpy(batch.ids.reshape(-1)), offsets)
        return pooled

    def _step(self, batch: Block) -> None:
        start = perf_counter()
        pooled = self._lookup(batch)
        looked_up = perf_counter()
        timer = _BackwardTimer(pooled)
        logits = self._net(torch.from_numpy(batch.dense), pooled)
        loss = self._loss(logits, torch.from_numpy(batch.labels))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()}")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        end = perf_counter()
        self._trained.append(len(batch))
        self.losses.append(loss.item())
        self._step_seconds.append(end - start)
        self._table_seconds.append(looked_up - start + timer.seconds)

    @torch.no_grad()
    def predict(self, block: Block) -> None:
        """Predict the clicks of a block of the validation or test part; nothing is trained.

        Parameters
        ----------
        block : Block
            The clicks; labels and log odds are kept for :meth:`result`.
        """
        for batch in block.batches(self._batch_size):
            pooled = self._lookup(batch)
            logits = self._net(torch.from_numpy(batch.dense), pooled)
            self._labels[block.part].append(batch.labels)
            self._logits[block.part].append(logits.numpy())

    def hit_rate(self) -> float | None:
        """Return the share of unique rows so far that the cache held, or None without a cache."""
        if not self.setting.load_factor:
            return None
        stats = self._tables.tables.stats().values()
        hits = sum(s["hits"] for s in stats)
        misses = sum(s["misses"] for s in stats)
        return hits / (hits + misses) if hits + misses else None

    def recent_loss(self) -> float:
        """Return the mean training loss of the last hundred steps."""
        return float(np.mean(self.losses[-100:]))

    def rows_per_second(self) -> float:
        """Return the training rows a second, in the time of this model's own steps."""
        return sum(self._trained) / sum(self._step_seconds)

    def _curve(self) -> list[dict[str, float]]:
        """Return the mean training loss of each of about a hundred stretches of steps."""
        rows = np.cumsum(self._trained)
        stretches = np.array_split(np.arange(len(rows)), min(_CURVE_POINTS, len(rows)))
        losses = np.array(self.losses)
        return [{"rows": int(rows[s[-1]]), "loss": float(losses[s].mean())} for s in stretches]

    def _online_loss(self) -> float:
        """Return the loss of the first epoch's second half, each batch before it was trained on.

        It covers many more clicks than the test part, so it separates settings that the test part
        cannot.
        """
        epoch = len(self.losses) // self._epochs
        half = slice(epoch // 2, epoch)
        return float(np.average(self.losses[half], weights=self._trained[half]))

    def _scores(self, part: str) -> dict[str, float]:
        labels = np.concatenate(self._labels[part])
        logits = np.concatenate(self._logits[part])
        return {
            "log_loss": log_loss(labels, logits),
            "auc": auc(labels, logits),
            "accuracy": accuracy(labels, logits),
        }

    def result(self) -> dict[str, Any]:
        """Sum up the trial.

        Returns
        -------
        dict
            Scores of both parts, memory, cache statistics, the noise of rounding, times and the
            loss curve.
        """
        memory = self._tables.tables.memory_report()
        return {
            "setting": self.setting.name,
            "seed": self.seed,
            "online": {"log_loss": self._online_loss()},
            "validation": self._scores(VALIDATION),
            "test": self._scores(TEST),
            "memory": memory,
            "cache": self._tables.tables.stats(),
            "rounding": {
                name: _measured(table)
                for name, table in self._tables.tables.rounding_report().items()
            },
            "hit_rate": self.hit_rate(),
            "step_ms": 1e3 * float(np.median(self._step_seconds)),
            "embedding_ms": 1e3 * float(np.median(self._table_seconds)),
            "rows_per_second": self.rows_per_second(),
            "curve": self._curve(),
        }


def _measured(table: TableRounding) -> dict[str, Any]:
    """Return what was measured of a table; JSON has no NaN for the ratio where nothing was."""
    return asdict(table) | ({"ratio": None} if np.isnan(table.ratio) else {})
