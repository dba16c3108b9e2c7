"""Train one model under several table settings, side by side on the same batches."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

import mpembed as mpe
from mpembed.train.data.dataset import TEST, TRAIN, Dataset
from mpembed.train.data.options import OptionError
from mpembed.train.data.sources import open_source
from mpembed.train.settings import Setting, TrainOptions
from mpembed.train.summary import summarize
from mpembed.train.trial import Trial

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


def _trial(setting: Setting, options: TrainOptions, dataset: Dataset, seed: int) -> Trial:
    try:
        return Trial(setting, options, dataset.table_rows, seed, dataset.source.columns)
    except RuntimeError as error:  # PyTorch has no other type for it on the CPU
        if "not enough memory" in str(error):
            raise MemoryError(str(error)) from None
        raise


def _run_seed(options: TrainOptions, dataset: Dataset, seed: int, report: Progress) -> list[Trial]:
    trials = [_trial(s, options, dataset, seed) for s in options.settings]
    turn_rows = options.batch_size * _STEPS_PER_TURN
    for epoch in range(1, options.epochs + 1):
        last = TEST if epoch == options.epochs else TRAIN
        for block in dataset.blocks(turn_rows, last):
            for trial in trials:
                if block.part == TRAIN:
                    trial.train(block)
                    report(trial, len(block))
                else:
                    trial.predict(block)
    return trials


def run(options: TrainOptions, dataset: Dataset, report: Progress) -> dict[str, Any]:
    """Train and evaluate every setting from every seed.

    Parameters
    ----------
    options : TrainOptions
        The run.
    dataset : Dataset
        From :func:`open_dataset`.
    report : callable
        Called after each turn with the trial and the number of clicks it just trained on.

    Returns
    -------
    dict
        All that the table shows and the JSON file holds.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
        mpe.set_num_threads(options.threads)
    results: list[dict[str, Any]] = []
    for seed in range(options.seed, options.seed + options.seeds):
        # Only the results are kept: one seed's tables are freed before the next ones are made.
        results += [trial.result() for trial in _run_seed(options, dataset, seed, report)]
    config = asdict(options)
    config["settings"] = [{"name": s.name, **asdict(s)} for s in options.settings]
    return {
        "config": config,
        "versions": {
            "mpembed": mpe.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
        "data": {
            **dataset.source.describe(),
            "split_ends": dataset.ends,
            "table_rows": dataset.table_rows,
        },
        "summary": summarize(results),
        "runs": results,
    }
