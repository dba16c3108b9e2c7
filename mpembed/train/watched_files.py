"""Files that must stay as they are while a run reads them again and again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpembed.train.data.clicks import DataError


class ChangedError(DataError):
    """A file has changed since it was read first."""


class WatchedFiles:
    """Files as they were at a moment, by size, time of change and number.

    Parameters
    ----------
    paths : sequence of Path
        The files. One that cannot be found is left to those who read it.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._states = {path: _state(path) for path in paths}

    def check(self) -> None:
        """Raise ChangedError if one is not what it was."""
        for path, state in self._states.items():
            if _state(path) != state:
                raise ChangedError(
                    f"{path}: has changed since training started, so this run has not seen the "
                    "same clicks throughout; train anew"
                )


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
