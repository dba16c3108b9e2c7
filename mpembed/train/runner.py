"""Train one model under several table settings, side by side on the same batches."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np
import torch

import mpembed as mpe
from mpembed.train.data.dataset import TEST, TRAIN, Dataset
from mpembed.train.data.encoding import Block
from mpembed.train.data.options import OptionError
from mpembed.train.data.sources import open_source
from mpembed.train.distributed import ALONE, Ranks
from mpembed.train.settings import Setting, TrainOptions
from mpembed.train.summary import summarize
from mpembed.train.trial import Trial, never

# Settings take turns after this many steps. They are few, so that one pass over the data serves all
# settings, and enough that a model's weights are in the processor's caches for nearly every step.
_STEPS_PER_TURN = 32

#: Their positions in a batch have 32 bits.
MAX_IDS = 2**31 - 1

#: Called after each turn with the trial and the number of clicks it just trained on.
Progress = Callable[[Trial, int], None]


def open_dataset(options: TrainOptions) -> Dataset:
    """Open the data of a run and assign table rows to its values.

    Parameters
    ----------
    options : TrainOptions
        The run; without a file the clicks are synthetic.

    Returns
    -------
    Dataset
        Encoded clicks.
    """
    source = open_source(options.data, options.rows)
    ids = options.batch_size * len(source.columns.categorical)
    if ids > MAX_IDS:
        raise OptionError(f"--batch-size is {options.batch_size}: a batch would have {ids:,} ids")
    transform = options.data.dense_transform
    return Dataset(source, options.min_count, options.max_rows, options.log_shift, transform)


class Stopped(Exception):  # noqa: N818 - not an error
    """Someone has asked to stop, and the step that was going on is done."""


def _trial(setting: Setting, options: TrainOptions, dataset: Dataset, seed: int, *rest: Any) -> Trial:
    try:
        return Trial(setting, options, dataset.table_rows, seed, dataset.source.columns, *rest)
    except RuntimeError as error:  # PyTorch has no other type for it on the CPU
        if "not enough memory" in str(error):
            raise MemoryError(str(error)) from None
        raise


def _train_epochs(
    trials: list[Trial], options: TrainOptions, dataset: Dataset, report: Progress
) -> None:
    turn_rows = options.batch_size * _STEPS_PER_TURN
    for epoch in range(1, options.epochs + 1):
        last = TEST if epoch == options.epochs else TRAIN
        for part, blocks in groupby(dataset.blocks(turn_rows, last), lambda block: block.part):
            for block in blocks:
                _one_turn(trials, block, report)
            if part != TRAIN:
                for trial in trials:
                    trial.end_part(part)


def _one_turn(trials: list[Trial], block: Block, report: Progress) -> None:
    for trial in trials:
        if block.part == TRAIN:
            done = trial.train(block)
            report(trial, done)
            goes_on = done == len(block)
        else:
            goes_on = trial.predict(block)
        if not goes_on:
            raise Stopped


def run(
    options: TrainOptions,
    dataset: Dataset,
    report: Progress,
    *,
    ranks: Ranks = ALONE,
    stop: Callable[[], bool] = never,
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

    Returns
    -------
    dict
        All that the table shows and the JSON file holds. ``complete`` is False where the run was
        stopped; what has not been measured by then is None.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
        mpe.set_num_threads(options.threads)
    results: list[dict[str, Any]] = []
    epoch_steps = -(-dataset.ends[TRAIN] // options.batch_size)
    complete = True
    for seed in range(options.seed, options.seed + options.seeds):
        # Only the results are kept: one seed's tables are freed before the next ones are made.
        trials = [_trial(s, options, dataset, seed, ranks, stop) for s in options.settings]
        try:
            _train_epochs(trials, options, dataset, report)
        except Stopped:
            complete = False
        results += [trial.result(epoch_steps) for trial in trials]
        if not complete:
            break
    return {
        "config": described(options),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "ranks": ranks.size,
        "complete": complete,
        "data": {
            **dataset.source.describe(),
            "split_ends": dataset.ends,
            "table_rows": dataset.table_rows,
        },
        "summary": summarize(results),
        "runs": results,
    }


def described(options: TrainOptions) -> dict[str, Any]:
    """Return options as JSON has them."""
    config = asdict(options)
    config["settings"] = [{"name": s.name, **asdict(s)} for s in options.settings]
    return config


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    return {
        "mpembed": mpe.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
