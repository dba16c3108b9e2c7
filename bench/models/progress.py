"""Shows what has run: a bar on a terminal, and a line for each training."""

from __future__ import annotations

from models.cases import Result
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_WIDTH = 160


class Display:
    """The trainings of all cases.

    Parameters
    ----------
    total : int
        How many there are.
    """

    def __init__(self, total: int) -> None:
        self._console = Console(stderr=True, soft_wrap=True)
        self._bar = Progress(
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def finished(self, results: list[Result]) -> None:
        """Count trainings and say how each ended."""
        for one in results:
            self._bar.update(self._task, advance=1, description=one["key"])
            said = f"{one['seconds']:.0f} s" if one["ok"] else f"{one['stage']}: {one['error']}"
            said = said.split("\n")[0][:_WIDTH]
            self._console.print(f"{one['key']}: {said}", markup=False, highlight=False)
