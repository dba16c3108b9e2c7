"""What the report says of the runs of one model on one set of data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from study.results import Run
from study.runner import MODELS, make_model
from study.settings import BASE, CHANGES, CONTRAST, Setting, alike
from study.statistics import Estimate, estimate, loss_percent, losses_percent, share_percent

#: Bytes over those of INT4 and a cache of 5 % that still count as equal.
EQUAL = 1.07
#: The least loss, in per cent of the metric, of which shares are told.
LEAST = 1.0


@dataclass
class Group:
    """The finished runs of a model on one set of data.

    Attributes
    ----------
    model : str
        Its name.
    data : dict
        What the data are.
    runs : dict
        Runs by name of the setting and seed.
    """

    model: str
    data: dict[str, Any]
    runs: dict[str, dict[int, Run]]

    @property
    def title(self) -> str:
        return f"{make_model(self.model).title}, {self.data_name}"

    @property
    def data_name(self) -> str:
        return str(self.data["name"]).split(".")[0]

    @property
    def slug(self) -> str:
        plain = "".join(c if c.isalnum() else "_" for c in self.data_name.replace("'", ""))
        return f"study_{self.model}_{plain.lower()}"

    def setting(self, name: str) -> Setting:
        """Return a setting that was run."""
        return Setting(**next(iter(self.runs[name].values()))["setting"])

    def settings(self) -> list[Setting]:
        return [self.setting(name) for name in self.runs]

    def metric(self, name: str, metric: str | None = None) -> dict[int, float]:
        """Return a metric by seed, of the runs that did not diverge."""
        chosen = metric or make_model(self.model).metric
        found = self.runs.get(name, {}).items()
        return {seed: run["metrics"][chosen] for seed, run in found if "metrics" in run}

    def bytes(self, name: str) -> float:
        """Return the bytes a row, the cache's included; NaN if every run diverged."""
        sizes = [run["bytes"] for run in self.runs.get(name, {}).values() if "bytes" in run]
        return sizes[0]["row"] + sizes[0]["cache"] if sizes else float("nan")

    def hit_rate(self, name: str) -> float | None:
        rates = [r["hit_rate"] for r in self.runs[name].values() if r.get("hit_rate") is not None]
        return float(np.mean(rates)) if rates else None

    def noise(self, name: str) -> float | None:
        """Return the median over tables and seeds of the rounding noise, where it was measured."""
        ratios = [v for run in self.runs[name].values() for v in run.get("noise", {}).values()]
        return float(np.median(ratios)) if ratios else None

    def loss(self, name: str, base: str = BASE) -> Estimate:
        """Return by how many per cent a setting is worse than another."""
        higher = make_model(self.model).higher
        return loss_percent(self.metric(name), self.metric(base), higher)

    def alike(self, name: str) -> str:
        """Return the name of the FP32 run that is trained like a setting."""
        return alike(self.setting(name)).name

    def changes(self) -> list[str]:
        """Return the settings of `CHANGES` that were run, from one on with an FP32 run alike."""
        ran = [setting.name for setting in CHANGES.values() if setting.name in self.runs]
        while ran and self.alike(ran[0]) not in self.runs:
            del ran[0]
        return ran

    def left(self, name: str) -> Estimate:
        """Return how many per cent of the loss of the first of `changes` a setting has.

        That loss is to the FP32 run that is trained alike. Without seeds if it is too small for a
        share of it to mean something.
        """
        first = self.changes()[0]
        if self.loss(first, self.alike(first)).mean < LEAST:
            return estimate([])
        higher = make_model(self.model).higher
        whole = self.metric(first), self.metric(self.alike(first))
        part = self.metric(name), self.metric(BASE)
        return share_percent(losses_percent(*part, higher), losses_percent(*whole, higher))

    def excess(self, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
        """Return the training loss above FP32's of the same seed: means and errors by stretch."""
        mine, base = self.runs.get(name, {}), self.runs.get(BASE, {})
        pairs = [
            np.subtract(mine[seed]["curve"], base[seed]["curve"])
            for seed in sorted(mine.keys() & base.keys())
            if "curve" in mine[seed] and "curve" in base[seed]
        ]
        if not pairs:
            return None
        stretches = [estimate(list(values)) for values in zip(*pairs, strict=True)]
        return np.array([e.mean for e in stretches]), np.array([e.error for e in stretches])

    def equal_bytes(self) -> list[str]:
        """Return the settings that take the bytes of INT4 and a cache of 5 %, best first."""
        limit = self.bytes(CONTRAST) * EQUAL
        chosen = [
            s.name
            for s in self.settings()
            if s.optimizer is None
            and s.rate == 1.0
            and s.batch == 1
            and not s.per_lookup
            and s.name != BASE
            and self.bytes(s.name) <= limit
            and self.loss(s.name).seeds
        ]
        return sorted(chosen, key=lambda name: self.loss(name).mean)


def group_runs(runs: list[Run]) -> list[Group]:
    """Return the runs by model and data, in the order of the models."""
    groups: dict[str, Group] = {}
    for run in runs:
        made = Group(run["model"], run["data"], {})
        group = groups.setdefault(f"{run['model']} {run['data']}", made)
        group.runs.setdefault(Setting(**run["setting"]).name, {})[run["seed"]] = run
    order = list(MODELS)
    return sorted(
        groups.values(), key=lambda g: (order.index(g.model), g.data["name"] != "synthetic")
    )


def plain(group: Group) -> Iterator[Setting]:
    """Yield the settings of storage (precision, rounding, size of the cache), largest first."""
    order = ("paired", "stochastic", "nearest")
    size = {setting: group.bytes(setting.name) for setting in group.settings()}
    for setting in sorted(size, key=lambda s: (-size[s], s.storage, order.index(s.rounding))):
        if not setting.variant and setting.policy == "lfu":
            yield setting
