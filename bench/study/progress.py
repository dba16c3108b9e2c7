"""Shows the progress of the study: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from study.model import Advance
from study.results import Run
from study.runner import Job


class Display:
    """The runs of all models, and the share of the one that is running.

    Parameters
    ----------
    console : Console
        Where to show it.
    jobs : list of Job
        The runs to do.
    metrics : dict of str to str
        The metric of each model.
    """

    def __init__(self, console: Console, jobs: list[Job], metrics: dict[str, str]) -> None:
        self._console, self._metrics = console, metrics
        self._total, self._done = len(jobs), 0
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[now]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks = {
            name: self._bars.add_task(name, total=sum(j.model == name for j in jobs), now="")
            for name in dict.fromkeys(job.model for job in jobs)
        }

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def started(self, job: Job) -> Advance:
        """Return what shows a run's progress."""

        def advance(share: float) -> None:
            now = f"{job.setting.name}, seed {job.seed}: {100 * share:.0f} %"
            self._bars.update(self._tasks[job.model], now=now)

        return advance

    def finished(self, job: Job, run: Run) -> None:
        """Count a run and say what it found."""
        self._done += 1
        self._bars.advance(self._tasks[job.model])
        metric = self._metrics[job.model]
        said = run.get("error") or f"{metric} {run['metrics'][metric]:.4f}"
        if not self._console.is_terminal:
            name = f"{job.model}, {run['data']['name']}: {run['name']}, seed {job.seed}"
            line = f"study: {self._done}/{self._total} {name}: {said} ({run['seconds']:.0f} s)"
            print(line, file=self._console.file, flush=True)
