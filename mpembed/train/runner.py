"""Train one model under several table settings, side by side on the same batches."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch

import mpembed as mpe
from mpembed.train.data.clicks import DataError
from mpembed.train.data.dataset import TEST, TRAIN, Dataset
from mpembed.train.data.digest import DigestedSource
from mpembed.train.data.encoding import Block
from mpembed.train.data.options import OptionError
from mpembed.train.data.sources import open_source
from mpembed.train.distributed import ALONE, Ranks
from mpembed.train.keeper import Keeper
from mpembed.train.options_json import described
from mpembed.train.settings import Setting, TrainOptions
from mpembed.train.summary import summarize
from mpembed.train.trial import Trial, never
from mpembed.train.watched_files import ChangedError

# Settings take turns after this many steps. They are few, so that one pass over the data serves all
# settings, and enough that a model's weights are in the processor's caches for nearly every step.
_STEPS_PER_TURN = 32

#: Their positions in a batch have 32 bits.
MAX_IDS = 2**31 - 1

#: Called after each turn with the trial and the number of clicks it just trained on.
Progress = Callable[[Trial, int], None]


def open_dataset(options: TrainOptions, *, digested: bool = False) -> Dataset:
    """Open the data of a run and assign table rows to its values.

    Parameters
    ----------
    options : TrainOptions
        The run; without a file the clicks are synthetic.
    digested : bool
        Whether the source is to be a `DigestedSource`.

    Returns
    -------
    Dataset
        Encoded clicks.
    """
    source = open_source(options.data, options.rows)
    if digested:
        source = DigestedSource(source)
    ids = options.batch_size * len(source.columns.categorical)
    if ids > MAX_IDS:
        raise OptionError(f"--batch-size is {options.batch_size}: a batch would have {ids:,} ids")
    transform = options.data.dense_transform
    return Dataset(source, options.min_count, options.max_rows, options.log_shift, transform)


class Stopped(Exception):  # noqa: N818 - not an error
    """Someone has asked to stop, and the step that was going on is done."""


class _Seed:
    """The training of all settings from one seed, side by side.

    Parameters
    ----------
    trials : list of Trial
        One a setting.
    options : TrainOptions
        The run.
    dataset : Dataset
        Its data.
    report : callable
        As in `run`.
    keeper : Keeper or None
        That of the only trial.
    check : callable
        As in `run`.
    """

    def __init__(
        self,
        trials: list[Trial],
        options: TrainOptions,
        dataset: Dataset,
        report: Progress,
        keeper: Keeper | None,
        check: Callable[[], None],
    ) -> None:
        self._check = check
        self._trials, self._options, self._dataset = trials, options, dataset
        self._report, self._keeper = report, keeper

    def run(self) -> None:
        """Train all epochs and score both parts; Stopped if someone has asked to stop."""
        options, keeper = self._options, self._keeper
        turn_rows = options.batch_size * _STEPS_PER_TURN
        for epoch in range(keeper.position.epoch if keeper else 0, options.epochs):
            last = TEST if epoch == options.epochs - 1 else TRAIN
            blocks = self._dataset.blocks(turn_rows, last)
            if keeper:
                blocks = keeper.rest(blocks)
            for part, same in groupby(blocks, lambda block: block.part):
                for block in same:
                    self._turn(block)
                if part != TRAIN:
                    for trial in self._trials:
                        trial.end_part(part)
            self._check()
            if keeper:
                keeper.end_epoch()

    def _turn(self, block: Block) -> None:
        for trial in self._trials:
            if block.part == TRAIN:
                done = trial.train(block)
                self._report(trial, done)
                if self._keeper:
                    self._keeper.trained(done)
            else:
                trial.predict(block)
            if trial.stopped:
                raise Stopped


def _trial(
    setting: Setting, options: TrainOptions, dataset: Dataset, seed: int, **more: Any
) -> Trial:
    try:
        return Trial(setting, options, dataset.table_rows, seed, dataset.source.columns, **more)
    except RuntimeError as error:  # PyTorch has no other type for it on the CPU
        if "not enough memory" in str(error):
            raise MemoryError(str(error)) from None
        raise


def run(
    options: TrainOptions,
    dataset: Dataset,
    report: Progress,
    *,
    ranks: Ranks = ALONE,
    stop: Callable[[], bool] = never,
    keeper: Keeper | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train and evaluate every setting from every seed.

    Parameters
    ----------
    options : TrainOptions
        The run.
    dataset : Dataset
        From :func:`open_dataset`.
    report : callable
        Called after each turn with the trial and the number of clicks it just trained on.
    ranks : Ranks
        That train together.
    stop : callable
        Returns whether to stop after the step that is going on.
    keeper : Keeper, optional
        Saves the model, where there is one setting and one seed, or goes on from a saved one.
    check : callable
        Called at the end of each epoch; raises ChangedError if the data have changed.

    Returns
    -------
    dict
        All that the table shows and the JSON file holds. ``complete`` is False where the run was
        stopped; what has not been measured by then is None. ``error`` says what has stopped it,
        data that could not be read; it is None after a signal.

    Raises
    ------
    DataError
        If one of several ranks cannot read the data; the others do not know where it stopped.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
        mpe.set_num_threads(options.threads)
    together = partial(ranks.together, check)
    results: list[dict[str, Any]] = []
    epoch_steps = -(-dataset.ends[TRAIN] // options.batch_size)
    complete, failure = True, None
    for seed in range(options.seed, options.seed + options.seeds):
        make = partial(_trial, options=options, dataset=dataset, seed=seed, ranks=ranks, stop=stop)
        # Only the results are kept: one seed's tables are freed before the next ones are made.
        if keeper is None:
            trials = [make(setting) for setting in options.settings]
        else:
            trials = [keeper.begin(partial(make, options.settings[0]))]
            if done := trials[0].records.trained:
                report(trials[0], done)
        try:
            _Seed(trials, options, dataset, report, keeper, together).run()
        except Stopped:
            complete = False
        except DataError as error:
            if ranks.size > 1 and not isinstance(error, ChangedError):
                raise
            complete, failure = False, str(error)
        results += [trial.result(epoch_steps) for trial in trials]
        if not complete:
            break
    return {
        "config": described(options),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "ranks": ranks.size,
        "complete": complete,
        "error": failure,
        "data": {
            **dataset.source.describe(),
            "split_ends": dataset.ends,
            "table_rows": dataset.table_rows,
        },
        "summary": summarize(results),
        "runs": results,
    }


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    return {
        "mpembed": mpe.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
