"""Show the progress of a run: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mpembed.train.settings import TrainOptions
from mpembed.train.trial import Trial

_LINE_SHARE = 10  # a line each tenth of the run
_LINE_SECONDS = 60.0  # or each minute, whichever comes first
_LOSS = "training loss"  # of a batch before it is trained on


def progress_display(
    console: Console, options: TrainOptions, train_rows: int
) -> BarDisplay | LineDisplay:
    """Return bars for a terminal and lines for a log, where bars would appear only at the end.

    Parameters
    ----------
    console : Console
        Where to show it.
    options : TrainOptions
        The run.
    train_rows : int
        Clicks of the training part.
    """
    display = BarDisplay if console.is_terminal else LineDisplay
    return display(console, options, train_rows)


def _clicks(options: TrainOptions, train_rows: int) -> int:
    """Return the number of clicks that each setting trains on."""
    return train_rows * options.epochs * options.seeds


def _hits(trial: Trial) -> str | None:
    """Return the hit rate, None without a cache; it is one rank's, as the others show nothing."""
    hits = trial.hit_rate()
    if hits is None:
        return None
    return f"{100 * hits:.1f} %{' (rank 0)' if trial.ranks.size > 1 else ''}"


class BarDisplay:
    """A bar for each setting, with its loss, hit rate and speed; see `progress_display`."""

    def __init__(self, console: Console, options: TrainOptions, train_rows: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn(
                "training loss {task.fields[loss]}  hits {task.fields[hits]}  {task.fields[speed]}"
            ),
            console=console,
        )
        total = _clicks(options, train_rows)
        self._tasks = {
            s.name: self._progress.add_task(s.name, total=total, loss="-", hits="-", speed="-")
            for s in options.settings
        }

    def __enter__(self) -> BarDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def __call__(self, trial: Trial, rows: int) -> None:
        """Count `rows` more clicks of a trial as trained on."""
        self._progress.update(
            self._tasks[trial.setting.name],
            advance=rows,
            loss=f"{trial.recent_loss():.4f}",
            hits=_hits(trial) or "-",
            speed=f"{trial.rows_per_second():,.0f} rows/s",
        )


class LineDisplay:
    """Lines at the start, at each tenth or minute, and when a setting is trained.

    `clock` returns the time in seconds; the other arguments are those of `progress_display`.
    """

    def __init__(
        self,
        console: Console,
        options: TrainOptions,
        train_rows: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._console, self._clock = console, clock
        self._names = [setting.name for setting in options.settings]
        self._each = _clicks(options, train_rows)
        self._done = dict.fromkeys(self._names, 0)
        self._losses: dict[str, float] = {}
        self._tenths = 0

    def __enter__(self) -> LineDisplay:
        self._start = self._last = self._clock()
        names = ", ".join(self._names)
        count = f"{len(self._names)} setting(s) x {self._each:,} clicks"
        self._print(f"{count}: {names}; losses are means of the last 100 steps")
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __call__(self, trial: Trial, rows: int) -> None:
        """Count `rows` more clicks of a trial as trained on."""
        name, now = trial.setting.name, self._clock()
        self._done[name] += rows
        self._losses[name] = trial.recent_loss()
        if self._done[name] == self._each:
            hits = _hits(trial)
            held = "" if hits is None else f", hits {hits}"
            loss, speed = self._losses[name], trial.rows_per_second()
            self._print(f"{name} is trained: {_LOSS} {loss:.4f}{held}, {speed:,.0f} rows/s")
        share = sum(self._done.values()) / (self._each * len(self._names))
        tenths = int(share * _LINE_SHARE)
        if tenths > self._tenths or now - self._last >= _LINE_SECONDS:
            self._tenths, self._last = tenths, now
            spent = timedelta(seconds=round(now - self._start))
            losses = ", ".join(f"{key} {loss:.4f}" for key, loss in self._losses.items())
            self._print(f"{100 * share:.0f} % after {spent}; {_LOSS}: {losses}")

    def _print(self, line: str) -> None:
        print(f"mpembed: {line}", file=self._console.file, flush=True)
