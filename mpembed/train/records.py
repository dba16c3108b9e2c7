"""What a model's training steps leave for the report: losses and times."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_CURVE_POINTS = 100
_RECENT = 100


@dataclass
class Records:
    """A list entry for each step so far.

    Attributes
    ----------
    rows : list of int
        Rows of the batch.
    losses : list of float
        Mean loss of the batch, before it was trained on.
    step_seconds, table_seconds : list of float
        Wall time of the step, and of the tables in it.
    trained : int
        Rows of all batches.
    """

    rows: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    table_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Sums are asked for after each turn, and the lists are long by then.
        self.trained, self._seconds = sum(self.rows), sum(self.step_seconds)

    def add(self, rows: int, loss: float, step_seconds: float, table_seconds: float) -> None:
        """Record a step."""
        self.trained += rows
        self._seconds += step_seconds
        self.rows.append(rows)
        self.losses.append(loss)
        self.step_seconds.append(step_seconds)
        self.table_seconds.append(table_seconds)

    def __len__(self) -> int:
        return len(self.losses)

    def recent_loss(self) -> float:
        """Return the mean training loss of the last hundred steps."""
        return float(np.mean(self.losses[-_RECENT:]))

    def rows_per_second(self) -> float:
        """Return the training rows a second, in the time of this model's own steps."""
        return self.trained / self._seconds

    def median_ms(self) -> dict[str, float | None]:
        """Return the median times of a step; None before the first."""
        return {
            name: 1e3 * float(np.median(seconds)) if seconds else None
            for name, seconds in (
                ("step_ms", self.step_seconds),
                ("embedding_ms", self.table_seconds),
            )
        }

    def curve(self) -> list[dict[str, float]]:
        """Return the mean training loss of each of about a hundred stretches of steps."""
        if not self.rows:
            return []
        rows = np.cumsum(self.rows)
        stretches = np.array_split(np.arange(len(rows)), min(_CURVE_POINTS, len(rows)))
        losses = np.array(self.losses)
        return [{"rows": int(rows[s[-1]]), "loss": float(losses[s].mean())} for s in stretches]

    def online_loss(self, epoch_steps: int) -> float | None:
        """Return the loss of the first epoch's second half, each batch before it was trained on.

        It covers many more rows than the test part, so it separates settings that the test part
        cannot. None before the end of that epoch, which has `epoch_steps` steps.
        """
        if len(self) < epoch_steps:
            return None
        half = slice(epoch_steps // 2, epoch_steps)
        return float(np.average(self.losses[half], weights=self.rows[half]))
