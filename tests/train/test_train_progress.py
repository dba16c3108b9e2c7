"""What a run shows of itself while it goes on."""

from __future__ import annotations

import io
from typing import Any, cast

import pytest

pytest.importorskip("torch")

from rich.console import Console

from mpembed.train.distributed import Ranks
from mpembed.train.progress import BarDisplay, LineDisplay, progress_display
from mpembed.train.settings import Setting, TrainOptions
from mpembed.train.trial import Trial

pytestmark = pytest.mark.torch
OPTIONS = TrainOptions((Setting("fp32"), Setting("int4", 0.05)), epochs=2, seeds=5)


class FakeTrial:
    """As much of a trial as a display asks for."""

    def __init__(self, setting: Setting, loss: float, ranks: int = 1) -> None:
        self.setting, self._loss, self.ranks = setting, loss, Ranks(ranks)

    def recent_loss(self) -> float:
        return self._loss

    def hit_rate(self) -> float | None:
        return 0.5 if self.setting.load_factor else None

    def rows_per_second(self) -> float:
        return 1234.0


def trials() -> tuple[Trial, Trial]:
    fp32, int4 = OPTIONS.settings
    return cast("tuple[Trial, Trial]", (FakeTrial(fp32, 0.5), FakeTrial(int4, 0.25)))


def test_bars_are_for_terminals_only() -> None:
    for terminal, kind in ((True, BarDisplay), (False, LineDisplay)):
        console = Console(file=io.StringIO(), force_terminal=terminal)
        assert type(progress_display(console, OPTIONS, 100)) is kind


def test_bars_show_loss_hits_and_speed() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress_display(console, OPTIONS, 100) as display:
        for trial in trials():
            display(trial, 1000)
    shown = cast("Any", console.file).getvalue()
    for text in ("fp32", "int4 + 5 %", "loss 0.2500", "hits 50.0 %", "1,234 rows/s"):
        assert text in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_hits_of_several_ranks_are_called_the_first_ones(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=130)
    trial = cast("Trial", FakeTrial(OPTIONS.settings[1], 0.25, ranks=2))
    with progress_display(console, OPTIONS, 100) as display:
        display(trial, 1000)
    assert "hits 50.0 % (rank 0)" in cast("Any", console.file).getvalue()


def test_lines_come_at_the_start_at_each_tenth_and_at_the_end() -> None:
    console, now = Console(file=io.StringIO()), 100.0
    fp32, int4 = trials()
    lines: list[str] = []

    def new() -> list[str]:
        everything = cast("Any", console.file).getvalue().splitlines()
        fresh = everything[len(lines) :]
        lines.extend(fresh)
        return list(fresh)

    with LineDisplay(console, OPTIONS, 100, clock=lambda: now) as display:
        assert new() == [
            "mpembed: 2 setting(s) x 1,000 clicks: fp32, int4 + 5 %; "
            "losses are means of the last 100 steps"
        ]
        now += 59
        display(fp32, 100)
        assert new() == []
        display(int4, 100)
        assert new() == [
            "mpembed: 10 % after 0:00:59; training loss: fp32 0.5000, int4 + 5 % 0.2500"
        ]
        now += 59
        display(fp32, 10)
        assert new() == []
        now += 1
        display(fp32, 10)  # a minute without a line
        assert new() == [
            "mpembed: 11 % after 0:01:59; training loss: fp32 0.5000, int4 + 5 % 0.2500"
        ]
        display(fp32, 880)
        assert new() == [
            "mpembed: fp32 is trained: training loss 0.5000, 1,234 rows/s",
            "mpembed: 55 % after 0:01:59; training loss: fp32 0.5000, int4 + 5 % 0.2500",
        ]
        display(int4, 900)
        assert new() == [
            "mpembed: int4 + 5 % is trained: training loss 0.2500, hits 50.0 %, 1,234 rows/s",
            "mpembed: 100 % after 0:01:59; training loss: fp32 0.5000, int4 + 5 % 0.2500",
        ]


def test_lines_are_not_kept_back() -> None:
    class Log(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    log = Log()
    with LineDisplay(Console(file=log), OPTIONS, 100):
        assert log.flushed == 1
