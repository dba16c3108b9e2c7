"""Which columns of a file are the label, the numbers and the categoricals."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mpembed.train.data.clicks import Columns, DataError
from mpembed.train.data.options import DataOptions

DEFAULT_LABEL = "label"
_SHOWN_NAMES = 40
_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Selection:
    """Places of the chosen columns, from 0; no label where it may be absent and is.

    Attributes
    ----------
    label : int or None
        Place of the label.
    dense, categorical : tuple of int
        Places of the others, in the order of the model.
    names : tuple of str
        What the model calls the columns of the file, all of them.
    label_name : str
        What the model calls the label, also where it is absent.
    partly_labelled : bool
        Whether rows may lack a label.
    """

    label: int | None
    dense: tuple[int, ...]
    categorical: tuple[int, ...]
    names: tuple[str, ...]
    label_name: str
    partly_labelled: bool = False

    @property
    def places(self) -> tuple[int, ...]:
        """All chosen places, without repetition, in the order of the file."""
        own = () if self.label is None else (self.label,)
        return tuple(sorted({*own, *self.dense, *self.categorical}))


def show_names(names: Sequence[str]) -> str:
    """Return names for a message, the first ones only if they are many."""
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more


def unique_names(names: Sequence[str]) -> list[str]:
    """Return names of which each is one of a kind and not empty.

    Parameters
    ----------
    names : sequence of str
        The names of a file's columns.

    Returns
    -------
    list of str
        The same, but for empty ones and those that several columns have: with their position.
    """
    counts = Counter(names)
    unique = [
        name if name and counts[name] == 1 else f"{name or 'column'} ({place})"
        for place, name in enumerate(names, 1)
    ]
    return unique if len(set(unique)) == len(unique) else unique_names(unique)


def is_position(text: str) -> bool:
    """Return whether a text can be the position of a column."""
    return bool(_NUMBER.fullmatch(text))


def place_of(text: str, columns: int) -> int | None:
    """Return which of some columns a text names by its position.

    Parameters
    ----------
    text : str
        Any text; a position counts from 1 and may have leading zeros.
    columns : int
        Number of columns.

    Returns
    -------
    int or None
        The place, from 0; None for other texts and positions that are not there.
    """
    digits = text.lstrip("0")
    # Python refuses to convert thousands of digits.
    known = is_position(text) and len(digits) <= 10 and 1 <= int(digits or "0") <= columns
    return int(digits) - 1 if known else None


class _Names:
    """The names of a file's columns, and what texts of the user mean by them.

    Parameters
    ----------
    names : sequence of str
        All names, in the order of the file.
    file : str
        What messages call the file, such as "clicks.csv: this is a Parquet file".
    """

    def __init__(self, names: Sequence[str], file: str) -> None:
        self.names, self._file = list(names), file

    def _refuse(self, text: str, option: str) -> DataError:
        listed = show_names(self.names)
        return DataError(
            f"{self._file} without a column {text!r}; it has {len(self.names)}: {listed}; "
            f"pass --{option} with one of them or its position"
        )

    def one(self, text: str, option: str) -> int:
        """Return the place of a name or position."""
        if text in self.names:
            return self.names.index(text)
        place = place_of(text, len(self.names))
        if place is None:
            raise self._refuse(text, option)
        return place

    def _bounds(self, text: str) -> tuple[str, str] | None:
        """Return the ends of a range; names may have hyphens of their own."""
        for at, character in enumerate(text):
            first, last = text[:at], text[at + 1 :]
            known = all(end in self.names or is_position(end) for end in (first, last))
            if character == "-" and known:
                return first, last
        return None

    def _some(self, text: str, option: str, taken: Sequence[int]) -> list[int]:
        """Return the places of a name, position or range, or of a pattern but for `taken`."""
        if text in self.names or is_position(text):
            return [self.one(text, option)]
        if bounds := self._bounds(text):
            first, last = (self.one(bound, option) for bound in bounds)
            if first > last:
                raise DataError(f"--{option} {text}: the range is empty")
            return list(range(first, last + 1))
        if "*" in text or "?" in text:
            places = [
                place
                for place, name in enumerate(self.names)
                if fnmatch.fnmatchcase(name, text) and place not in taken
            ]
            if places:
                return places
        raise self._refuse(text, option)

    def many(self, texts: Sequence[str], option: str, taken: Sequence[int] = ()) -> list[int]:
        """Return the places of what several texts name; patterns leave out what is taken."""
        places: list[int] = []
        for text in texts:
            parts = [text] if text in self.names else [p.strip() for p in text.split(",")]
            for part in parts:
                places += self._some(part, option, [*taken, *places])
        for place in places:
            if places.count(place) > 1:
                raise DataError(f"--{option}: column {self.names[place]!r} is named twice")
            if place in taken:
                raise DataError(
                    f"--{option}: column {self.names[place]!r} is already the label or a number"
                )
        return places


def select(names: Sequence[str], options: DataOptions, file: str) -> Selection:
    """Find the columns that the options name.

    Parameters
    ----------
    names : sequence of str
        All names of a file, in order; positions as text where it has none.
    options : DataOptions
        The label, by default "label", the numbers and the categoricals.
    file : str
        What messages call the file.

    Returns
    -------
    Selection
        Where they are.

    Raises
    ------
    DataError
        If a column is not there, ambiguous or named twice, or no categorical is named.
    """
    known = _Names(names, file)
    label = known.one(options.label or DEFAULT_LABEL, "label")
    if not options.categorical:
        raise DataError(
            f"{file}; pass --categorical, and --dense if there are numbers, with some of its "
            f"{len(names)} columns: {show_names(names)}"
        )
    dense = known.many(options.dense, "dense", [label])
    categorical = known.many(options.categorical, "categorical", [label, *dense])
    return Selection(label, tuple(dense), tuple(categorical), tuple(names), names[label])


def select_again(
    names: Sequence[str], columns: Columns, file: str, positions: bool = False
) -> Selection:
    """Find the columns of a stored encoding; the label may be absent.

    Parameters
    ----------
    names : sequence of str
        All names of a file, in order; positions as text where it has none.
    columns : Columns
        Those of the encoding.
    file : str
        What messages call the file.
    positions : bool
        Whether `names` are positions, as those of an encoding may be.

    Returns
    -------
    Selection
        Where they are.

    Raises
    ------
    DataError
        If a column other than the label is not there.
    """
    if positions or not columns.header:
        # Without names, the columns after an absent label have moved.
        unlabelled = [name for name in columns.names if name != columns.label]
        by_length = {len(columns.names): columns.names, len(unlabelled): unlabelled}
        names = by_length.get(len(names), names)
    places = {name: place for place, name in enumerate(names)}
    for name in (*columns.dense, *columns.categorical):
        if name not in places:
            raise DataError(
                f"{file} without the column {name!r} that the model was trained on; it has "
                f"{len(names)}: {show_names(names)}"
            )
    dense = tuple(places[name] for name in columns.dense)
    categorical = tuple(places[name] for name in columns.categorical)
    label = places.get(columns.label)
    return Selection(label, dense, categorical, tuple(names), columns.label, partly_labelled=True)
