"""Reads public formats of interactions: MovieLens, RecBole's, and tables of sessions.

The first line decides. A file may be compressed with gzip.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TextIO

import numpy as np
from study.events import DataError, Events

#: The names that a column may have, without "_" and in lower case.
COLUMNS = {
    "user": ("userid", "user", "sessionid", "session", "visitorid"),
    "item": ("itemid", "item", "movieid", "productid"),
    "rating": ("rating",),
    "time": ("timestamp", "time", "eventdate", "date", "timeframe"),
}
FORMATS = (
    "MovieLens' u.data, ratings.dat or ratings.csv, RecBole's .inter, or a table with the columns "
    "user_id or session_id, item_id, timestamp and perhaps rating"
)
_MOVIELENS = {"\t": ("user", "item", "rating", "time"), "::": ("user", "item", "rating", "time")}
_SESSIONS = ("user", "item", "time")


def read_events(path: Path) -> Events:
    """Read a file of interactions.

    Raises
    ------
    DataError
        If there is no such file or its format is not known.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="latin-1") if zipped else _plain(path) as lines:
            return _parse(path, (line.rstrip("\r\n") for line in lines))
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {reason}; give a file with --data") from None


def _plain(path: Path) -> TextIO:
    return path.open(encoding="latin-1")


def _parse(path: Path, lines: Iterator[str]) -> Events:
    first = next(lines, "")
    separator = next((s for s in ("::", "\t", ";", ",") if s in first), None)
    if separator is None:
        raise DataError(f"{path}: the format is not known; accepted are {FORMATS}")
    head = first.split(separator)
    places = _header(head)
    rows = _rows(path, lines, separator, 2)
    if places is None:
        names = _without_header(head, separator)
        if names is None:
            raise DataError(f"{path}: line 1 names no known columns; accepted are {FORMATS}")
        places = {name: at for at, name in enumerate(names)}
        rows = _rows(path, iter([first, *lines]), separator, 1)
    return _events(path, places, rows)


def _header(cells: list[str]) -> dict[str, int] | None:
    """Return the place of each known column, or None where users or items are missing."""
    # RecBole writes "user_id:token".
    plain = [c.split(":")[0].strip(' "\ufeff').replace("_", "").lower() for c in cells]
    found = {
        column: next(plain.index(name) for name in names if name in plain)
        for column, names in COLUMNS.items()
        if any(name in plain for name in names)
    }
    return found if {"user", "item"} <= set(found) else None


def _without_header(cells: list[str], separator: str) -> tuple[str, ...] | None:
    """Return the columns of MovieLens or of sessions, which are told by their number."""
    try:
        _time(cells[-1])
    except ValueError:
        return None
    if len(cells) == 4:
        return _MOVIELENS.get(separator)
    return _SESSIONS if len(cells) == 3 else None


def _rows(
    path: Path, lines: Iterator[str], separator: str, number: int
) -> Iterator[tuple[int, list[str]]]:
    for at, line in enumerate(lines, number):
        if line:
            yield at, line.split(separator)


def _events(path: Path, places: dict[str, int], rows: Iterator[tuple[int, list[str]]]) -> Events:
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user, item, times, ratings = [], [], [], []
    for at, cells in rows:
        try:
            user.append(users.setdefault(cells[places["user"]], len(users)))
            item.append(items.setdefault(cells[places["item"]], len(items)))
            times.append(_time(cells[places["time"]]) if "time" in places else float(at))
            ratings.append(float(cells[places["rating"]]) if "rating" in places else 0.0)
        except (IndexError, ValueError):
            wanted = ", ".join(sorted(places, key=places.__getitem__))
            raise DataError(
                f"{path}: line {at} does not hold {wanted} where line 1 has them; mend or remove it"
            ) from None
    if not user:
        raise DataError(f"{path}: holds no interactions; accepted are {FORMATS}")
    rating = np.array(ratings, np.float32) if "rating" in places else None
    made = Events(path.name, np.array(user), np.array(item), np.array(times, np.float64), rating)
    return made.renumbered()


def _time(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text.strip()).timestamp()
