"""One model under one table setting: it trains, predicts and records scores and times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mpembed.collection import EmbeddingBagCollection
from mpembed.rounding import TableRounding
from mpembed.torch import EmbeddingBagCollection as TorchCollection
from mpembed.torch.distributed import DistributedEmbeddingBagCollection
from mpembed.train.data.clicks import CRITEO_COLUMNS, Columns
from mpembed.train.data.dataset import TEST, VALIDATION
from mpembed.train.data.encoding import Block
from mpembed.train.distributed import ALONE, Ranks, merge_memory, merge_tables
from mpembed.train.metrics import accuracy, auc, log_loss
from mpembed.train.model import Perceptrons, make_sharded_tables, make_tables, mlp_optimizer
from mpembed.train.records import Records
from mpembed.train.settings import Setting, TrainOptions

F32 = npt.NDArray[np.float32]


class DivergedError(ArithmeticError):
    """A loss or an update was not finite; the message names the setting, seed and step."""


def never() -> bool:
    """Return False: nobody asks to stop."""
    return False


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
    ranks : Ranks
        Several train together, each its part of every batch; all make the same calls.
    stop : callable
        Returns whether to stop after the step that is going on. With several ranks one asks for
        all.
    tables : mpembed.EmbeddingBagCollection, optional
        Tables to go on with, instead of new ones; of several ranks, this one's.

    Attributes
    ----------
    ranks : Ranks
        As given.
    net : Perceptrons
        The model without its tables.
    optimizer : torch.optim.Optimizer
        That of the perceptrons.
    records : Records
        Of the steps so far.
    stopped : bool
        Whether it was asked to stop during the last call.
    scores : dict of str to dict
        Of the validation and the test part; None until they are measured.
    """

    def __init__(
        self,
        setting: Setting,
        options: TrainOptions,
        table_rows: Sequence[int],
        seed: int,
        columns: Columns = CRITEO_COLUMNS,
        ranks: Ranks = ALONE,
        stop: Callable[[], bool] = never,
        tables: EmbeddingBagCollection | None = None,
    ) -> None:
        self.setting, self.seed = setting, seed
        self._batch_size, self.ranks, self._stop = options.batch_size, ranks, stop
        self.net = Perceptrons(options.dim, seed, columns)
        self.optimizer = mlp_optimizer(self.net, options)
        made = table_rows, setting, options, seed, columns
        self._tables: TorchCollection | DistributedEmbeddingBagCollection
        if ranks.size > 1:
            self._tables = make_sharded_tables(*made, ranks)
            if tables is not None:
                self._tables.local = tables
        elif tables is None:
            self._tables = make_tables(*made)
        else:
            self._tables = TorchCollection.from_collection(tables)
        self._names = columns.categorical
        self._trained_net = ranks.wrap(self.net)
        self.records, self.stopped = Records(), False
        self._failed: DivergedError | None = None
        self.scores: dict[str, dict[str, float] | None] = {VALIDATION: None, TEST: None}
        self._predicted: dict[str, tuple[list[F32], list[F32]]] = {}

    @property
    def tables(self) -> EmbeddingBagCollection:
        """The tables, or of several ranks this one's."""
        if isinstance(self._tables, DistributedEmbeddingBagCollection):
            return self._tables.local
        return self._tables.tables

    def train(self, block: Block) -> int:
        """Train on the batches of a block.

        Parameters
        ----------
        block : Block
            Clicks of the training part.

        Returns
        -------
        int
            How many of them; fewer than all if it was asked to stop.

        Raises
        ------
        DivergedError
            If a loss, or the update of a row, is not finite.
        """
        done = 0
        for batch in block.batches(self._batch_size):
            try:
                self.stopped = self._step(batch)
            except FloatingPointError as error:
                raise self._diverged(error) from None
            done += len(batch)
            if self.stopped:
                break
        self.ranks.together(self._raise_failed)
        return done

    def _diverged(self, error: FloatingPointError) -> DivergedError:
        return DivergedError(
            f"{self.setting.name}, seed {self.seed}, step {len(self.records) + 1}: "
            f"training diverged: {error}; try a smaller --lr"
        )

    def _raise_failed(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _lookup(self, batch: Block) -> torch.Tensor:
        ids, offsets = batch.bags()
        pooled: torch.Tensor = self._tables(torch.from_numpy(ids), torch.from_numpy(offsets))
        return pooled

    def _step(self, batch: Block) -> bool:
        """Train on a batch; return whether to stop after it."""
        mine = batch[self.ranks.share(len(batch))]
        start = perf_counter()
        pooled = self._lookup(mine)
        looked_up = perf_counter()
        # A leaf: the tables' backward is a call of its own, so that its time can be measured, and
        # an update that is not finite leaves no rank waiting in the middle of DDP's backward.
        vectors = pooled.detach().requires_grad_()
        logits = self._trained_net(torch.from_numpy(mine.dense), vectors)
        loss = self.ranks.loss(logits, torch.from_numpy(mine.labels), len(batch))
        # Several ranks agree in the middle of a step, where they exchange numbers anyway.
        agree = self.ranks.size > 1
        shares, stops = self.ranks.sums(loss.item(), agree and self._stop())
        mean = shares / self.ranks.size
        if not np.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        passed_back = perf_counter()
        self._update_tables(pooled, vectors)
        updated = perf_counter()
        self.optimizer.step()
        end = perf_counter()
        in_tables = looked_up - start + updated - passed_back
        self.records.add(len(batch), mean, end - start, in_tables)
        return stops > 0 if agree else self._stop()

    def _update_tables(self, pooled: torch.Tensor, vectors: torch.Tensor) -> None:
        try:
            pooled.backward(vectors.grad)
        except FloatingPointError as error:
            if self.ranks.size == 1:
                raise
            # It may be this rank's alone. All other rows of all ranks have been updated; at the
            # end of the turn, the ranks tell each other.
            self._failed = self._failed or self._diverged(error)

    @torch.no_grad()
    def predict(self, block: Block) -> None:
        """Predict the clicks of a block of the validation or test part; nothing is trained.

        Parameters
        ----------
        block : Block
            The clicks; labels and log odds are kept for :meth:`end_part`.
        """
        labels, logits = self._predicted.setdefault(block.part, ([], []))
        for batch in block.batches(self._batch_size):
            mine = batch[self.ranks.share(len(batch))]
            found = self.net(torch.from_numpy(mine.dense), self._lookup(mine))
            labels.append(mine.labels)
            logits.append(found.numpy())
        self.stopped = any(self.ranks.sums(self._stop()))

    def end_part(self, part: str) -> None:
        """Score what was predicted, which is all of a part, and forget it."""
        by_rank = self.ranks.gather(self._predicted.pop(part))
        # Batch by batch, each in the order of the ranks: the order of the data.
        labels, logits = (
            np.concatenate([one for batch in zip(*lists, strict=True) for one in batch])
            for lists in zip(*by_rank, strict=True)
        )
        self.scores[part] = {
            "log_loss": log_loss(labels, logits),
            "auc": auc(labels, logits),
            "accuracy": accuracy(labels, logits),
        }

    def hit_rate(self) -> float | None:
        """Return the share of unique rows so far that the cache held, or None without a cache.

        With several ranks it is that of this rank's tables.
        """
        return self._hit_rate(self.tables.stats()) if self.setting.load_factor else None

    def _hit_rate(self, stats: dict[str, dict[str, int]]) -> float | None:
        if not self.setting.load_factor:
            return None
        hits = sum(s["hits"] for s in stats.values())
        misses = sum(s["misses"] for s in stats.values())
        return hits / (hits + misses) if hits + misses else None

    def recent_loss(self) -> float:
        """Return the mean training loss of the last hundred steps."""
        return self.records.recent_loss()

    def rows_per_second(self) -> float:
        """Return the training rows a second, in the time of this model's own steps."""
        return self.records.rows_per_second()

    def result(self, epoch_steps: int) -> dict[str, Any]:
        """Sum up the trial so far.

        Parameters
        ----------
        epoch_steps : int
            Steps of an epoch.

        Returns
        -------
        dict
            Scores of both parts, memory, cache statistics, the noise of rounding, times and the
            loss curve. What has not been measured yet is None.
        """
        tables = self.tables
        memory, stats, rounding = zip(
            *self.ranks.gather(
                (tables.memory_report(), tables.stats(), dict(tables.rounding_report()))
            ),
            strict=True,
        )
        cache = merge_tables(stats, memory, self._names)
        return {
            "setting": self.setting.name,
            "seed": self.seed,
            "online": {"log_loss": self.records.online_loss(epoch_steps)},
            "validation": self.scores[VALIDATION],
            "test": self.scores[TEST],
            "memory": merge_memory(memory),
            "cache": cache,
            "rounding": {
                name: _measured(table)
                for name, table in merge_tables(rounding, memory, self._names).items()
            },
            "hit_rate": self._hit_rate(cache),
            **self.records.median_ms(),
            "rows_per_second": self.records.rows_per_second() if len(self.records) else None,
            "curve": self.records.curve(),
        }


def _measured(table: TableRounding) -> dict[str, Any]:
    """Return what was measured of a table; JSON has no NaN for the ratio where nothing was."""
    return asdict(table) | ({"ratio": None} if np.isnan(table.ratio) else {})
