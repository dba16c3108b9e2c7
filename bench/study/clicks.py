"""The click model: the DLRM of ``mpembed train``, one run a setting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study.events import DataError
from study.model import Advance, Model, Outcome
from study.settings import Setting

from mpembed.train.data.clicks import DataError as ClickDataError
from mpembed.train.data.criteo import CriteoFile
from mpembed.train.data.dataset import TEST, TRAIN, VALIDATION, Dataset
from mpembed.train.data.synthetic import SyntheticSource
from mpembed.train.settings import Setting as TableSetting
from mpembed.train.settings import TrainOptions
from mpembed.train.trial import Trial

BLOCK = 4_096


class Clicks(Model):
    """A DLRM on clicks in Criteo's format, one pass."""

    name = "clicks"
    title = "Click model"
    metric = "online log loss"
    higher = False
    dim = 16
    other_dim = 64
    equal_bytes: Mapping[str, int] = {"fp32": 4, "int8": 8, "int8_fp16": 12}
    optimizer = "rowwise_adagrad"
    rates: Mapping[str, float] = {"rowwise_adagrad": 0.1, "adagrad": 0.1, "adam": 0.001}

    def load(self, path: Path | None, quick: bool) -> Dataset:
        try:
            source = SyntheticSource(20_000 if quick else 40_000)
            return Dataset(source if path is None else CriteoFile(path, None))
        except ClickDataError as error:
            raise DataError(f"{error}; docs/train.md describes the format") from None

    def describe(self, data: Dataset) -> dict[str, Any]:
        generated = isinstance(data.source, SyntheticSource)
        name = "synthetic" if generated else "Criteo's format"
        return {"name": name, "events": data.source.rows, "rows": sum(data.table_rows)}

    def run(self, data: Dataset, setting: Setting, seed: int, advance: Advance) -> Outcome:
        kind = setting.optimizer or self.optimizer
        table = TableSetting(setting.precision, setting.load, setting.rounding)
        options = TrainOptions(
            (table,),
            dim=setting.dim or self.dim,
            optimizer=kind,
            lr=self.rates[kind] * setting.rate,
            policy=setting.policy,
            batch_size=TrainOptions.batch_size * setting.batch,
        )
        trial = Trial(table, options, data.table_rows, seed)
        done = 0
        for block in data.blocks(BLOCK):
            if block.part == TRAIN:
                trial.train(block)
            else:
                trial.predict(block)
            done += len(block)
            advance(done / data.source.rows)
        for part in (VALIDATION, TEST):
            trial.end_part(part)
        return _outcome(trial, sum(data.table_rows))


def _outcome(trial: Trial, rows: int) -> Outcome:
    found = trial.result(epoch_steps=len(trial.records))
    metrics = {
        "online log loss": found["online"]["log_loss"],
        "test log loss": found["test"]["log_loss"],
        "test auc": found["test"]["auc"],
    }
    ratios = {name: table["ratio"] for name, table in found["rounding"].items()}
    noise = {name: ratio for name, ratio in ratios.items() if ratio is not None}  # was measured
    return Outcome(metrics, trial.records.losses, found["memory"], found["cache"], rows, noise)
