"""What is run: a case is a model of a library with its settings, a training one run of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Kind = Literal["original", "converted"]
KINDS: tuple[Kind, ...] = ("original", "converted")


@dataclass(frozen=True)
class Case:
    """A model with settings.

    Parameters
    ----------
    library : str
        ``"recbole"``, ``"torchfm"`` or ``"deepctr"``.
    name : str
        Of the case, unique in its library.
    model : str
        Of the model; several cases may have the same.
    settings : dict
        What the library's own test or documentation passes.
    """

    library: str
    name: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> str:
        """Library and name."""
        return f"{self.library}/{self.name}"


@dataclass(frozen=True)
class Training:
    """One run of a case: before or after `convert`, with an optimizer and a seed."""

    case: Case
    kind: Kind
    learner: str
    seed: int

    @property
    def key(self) -> str:
        """What names the run in the results file."""
        return f"{self.case.key} {self.kind} {self.learner} {self.seed}"


@dataclass(frozen=True)
class Sizes:
    """How long the runs are, and where RecBole's repository lies."""

    epochs: int
    batch: int
    list_length: int  # of sequences, at most
    user_items: int  # users of RecBole's data with more are left out
    saved: bool  # RecBole's trainer saves the best model and loads it for the evaluation
    recbole: str | None


Result = dict[str, Any]
#: Called with what a run does next, so that a failure says where it happened.
At = Callable[[str], None]


class Library(Protocol):
    """A module with the models of a library."""

    def cases(self, sizes: Sizes) -> list[Case]:
        """Return the library's cases."""

    def train(self, training: Training, sizes: Sizes, at: At) -> Result:
        """Fit and evaluate; return ``losses``, ``metrics`` and ``tables``."""
