"""What the results of a case say: does it run, and are its metrics equal within noise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from models.cases import Kind, Result

#: A difference of metrics that is no difference, where the seeds say nothing else.
LEAST = 1e-3


@dataclass
class Comparison:
    """All results of a case.

    Parameters
    ----------
    library, name, model : str
        As those of `models.cases.Case`.
    runs : dict
        Results by kind, learner and seed.
    """

    library: str
    name: str
    model: str
    runs: dict[tuple[Kind, str, int], Result] = field(default_factory=dict)

    def of(self, kind: Kind) -> list[Result]:
        """Return the results before or after `convert`."""
        return [run for (one, _, _), run in self.runs.items() if one == kind]

    def failure(self, kind: Kind) -> Result | None:
        """Return a result that failed, or None."""
        return next((run for run in self.of(kind) if not run["ok"]), None)

    @property
    def runs_before(self) -> bool:
        """Whether the original runs, with one optimizer at least."""
        return any(run["ok"] for run in self.of("original"))

    @property
    def tables(self) -> int:
        """Embedding modules of the original."""
        return max((run.get("tables", 0) for run in self.of("original")), default=0)

    @property
    def counts(self) -> bool:
        """Whether `convert` has something to do, and was tried."""
        return self.runs_before and self.tables > 0 and bool(self.of("converted"))

    @property
    def runs_after(self) -> bool:
        """Whether every run of the converted model ended well."""
        return self.counts and self.failure("converted") is None

    @property
    def diverged(self) -> list[str]:
        """Optimizers with which the original does not run, though it does with others."""
        failed = {run["learner"] for run in self.of("original") if not run["ok"]}
        return sorted(failed) if self.runs_before else []

    def pair(self, learner: str) -> tuple[Result, Result] | None:
        """Return the results before and after with the same seed, if both ended well."""
        before = self.runs.get(("original", learner, 0))
        after = self.runs.get(("converted", learner, 0))
        if before and after and before["ok"] and after["ok"]:
            return before, after
        return None

    def loss_difference(self, learner: str) -> float | None:
        """Return the largest relative difference of an epoch's training loss."""
        pair = self.pair(learner)
        if pair is None or not pair[0]["losses"]:
            return None
        both = zip(pair[0]["losses"], pair[1]["losses"], strict=False)
        found: float = max(abs(after - before) / max(abs(before), 1e-12) for before, after in both)
        return found

    def metric_difference(self, learner: str) -> float | None:
        """Return the largest absolute difference of a metric."""
        pair = self.pair(learner)
        if pair is None:
            return None
        before, after = pair[0]["metrics"], pair[1]["metrics"]
        found: float = max((abs(after[name] - before[name]) for name in before), default=0.0)
        return found

    @property
    def noise(self) -> dict[str, float]:
        """How far each metric of the original differs between seeds, with any optimizer."""
        spread: dict[str, float] = {}
        runs = [run for run in self.of("original") if run["ok"]]
        for learner in {run["learner"] for run in runs}:
            metrics = [run["metrics"] for run in runs if run["learner"] == learner]
            for name in metrics[0]:
                values = [one[name] for one in metrics if name in one]
                spread[name] = max(spread.get(name, 0.0), max(values) - min(values))
        return spread

    def equal(self, learner: str) -> bool | None:
        """Whether all metrics differ by no more than seeds do; None where it was not run."""
        pair = self.pair(learner)
        if pair is None:
            return None
        before, after, noise = pair[0]["metrics"], pair[1]["metrics"], self.noise
        return all(abs(after[name] - before[name]) <= max(LEAST, noise[name]) for name in before)


def compare(results: Iterable[Result]) -> list[Comparison]:
    """Return a comparison for each case, in the order of the results."""
    found: dict[tuple[str, str], Comparison] = {}
    for run in results:
        key = run["library"], run["case"]
        one = found.setdefault(key, Comparison(*key, run["model"]))
        one.runs[run["kind"], run["learner"], run["seed"]] = run
    return list(found.values())
