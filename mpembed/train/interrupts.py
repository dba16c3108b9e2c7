"""Ctrl-C and SIGTERM: the first one asks a run to stop, the second ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from time import monotonic
from types import FrameType
from typing import Any

_SIGNALS = signal.SIGINT, signal.SIGTERM
#: Seconds in which signals count as one: ``timeout`` sends one to a process and to its group, and
#: ``torchrun`` passes on to each rank what the terminal has sent it already.
_ONE_ALONE, _ONE_OF_RANKS = 1.0, 10.0
_ASKED = "stops after this step and writes what there is; another {} ends it at once"


class Interrupted(BaseException):
    """A signal came while there was nothing to lose."""


class Interrupts:
    """Handles signals from its ``with`` statement's beginning to its end.

    Attributes
    ----------
    number : int or None
        The first signal that came.
    raises : bool
        Whether a signal raises Interrupted where the program is; otherwise it only sets `number`.
    quiet : bool
        Whether nothing is printed when a signal comes.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.raises, self.quiet = True, False
        self._together = _ONE_ALONE
        self._time = 0.0
        self._old: dict[int, Any] = {}

    def of_ranks(self, rank: int) -> None:
        """Be one of several ranks, of which the first alone prints."""
        self._together, self.quiet = _ONE_OF_RANKS, rank > 0

    def asked(self) -> bool:
        """Return whether a signal has come."""
        return self.number is not None

    @property
    def status(self) -> int:
        """The exit status: 128 and the signal's number, or 0."""
        return 0 if self.number is None else 128 + self.number

    @property
    def name(self) -> str:
        """The name of the signal that came."""
        return "" if self.number is None else signal.Signals(self.number).name

    def __enter__(self) -> Interrupts:
        with contextlib.suppress(ValueError):  # not in the main thread: signals go elsewhere
            for one in _SIGNALS:
                if signal.getsignal(one) != signal.SIG_IGN:  # as a shell has it for jobs with &
                    self._old[one] = signal.signal(one, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for one, old in self._old.items():
            signal.signal(one, old)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = monotonic()
        if self.number is None:
            self.number, self._time = number, now
            if self.raises:
                raise Interrupted
            if not self.quiet and sys.__stderr__ is not None:  # else 2 may be another file
                name = "Ctrl-C" if number == signal.SIGINT else "signal"
                with contextlib.suppress(OSError):
                    os.write(2, f"\nmpembed: {self.name}: {_ASKED.format(name)}\n".encode())
        elif now - self._time > self._together:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
