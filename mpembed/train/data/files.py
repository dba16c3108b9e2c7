"""Files of clicks: which there are, and what is in them by their first bytes."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from mpembed.train.data.clicks import DataError

_PATTERN = frozenset("*?[")


def expand(files: Sequence[str]) -> list[Path]:
    """Return the files of paths and globs.

    Parameters
    ----------
    files : sequence of str
        Paths and globs; what exists by its name is not a glob.

    Returns
    -------
    list of Path
        In the order given, those of a glob sorted.

    Raises
    ------
    DataError
        If a glob has no file, if a file is given twice, or for "-".
    """
    found: list[Path] = []
    for text in files:
        if text == "-":
            raise DataError(
                "--data -: clicks are read several times, so a regular file is needed; copy "
                "standard input to a file first"
            )
        if _PATTERN.isdisjoint(text) or Path(text).exists():
            found.append(Path(text))
            continue
        matches = sorted(path for path in glob.glob(text, recursive=True) if Path(path).is_file())  # noqa: PTH207
        if not matches:
            raise DataError(f"--data {text}: no file has such a name")
        found += map(Path, matches)
    for path in found:
        if found.count(path) > 1:
            raise DataError(f"--data {path}: is given twice")
    return found
