"""Which data to train on, and how they are read: the options of the command line, checked."""

from __future__ import annotations

from dataclasses import dataclass

#: How numbers become features; see `docs/train.md`.
TRANSFORMS = ("auto", "log", "standard")


class OptionError(ValueError):
    """An option has a value that cannot be used."""


@dataclass(frozen=True)
class DataOptions:
    """The files of a run and the columns to take from them.

    Attributes
    ----------
    files : tuple of str
        Paths and globs, in order; none for synthetic clicks.
    label : str, optional
        Name or position (from 1) of the label's column.
    dense, categorical : tuple of str
        Names, positions, ranges such as ``2-14`` or ``C1-C9`` and patterns such as ``C*``; one
        text may hold several, separated by commas. Without them the files are in Criteo's format.
    header : bool, optional
        Whether the first line of a text file has names; by default this is recognised.
    delimiter : str, optional
        What separates the cells of a text file, one character; by default this is recognised.
    list_separator : str, optional
        What separates the values in a categorical text, one character; by default it is one value.
    dense_transform : str
        One of `TRANSFORMS`.

    Raises
    ------
    OptionError
        If a value cannot be used.
    """

    files: tuple[str, ...] = ()
    label: str | None = None
    dense: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    header: bool | None = None
    delimiter: str | None = None
    list_separator: str | None = None
    dense_transform: str = "auto"

    def __post_init__(self) -> None:
        if self.delimiter in ("\\t", "tab"):
            object.__setattr__(self, "delimiter", "\t")
        for name, value in (("delimiter", self.delimiter), ("list-separator", self.list_separator)):
            if value is not None and (len(value) != 1 or not value.isascii() or value in '"\r\n\0'):
                raise OptionError(
                    f"--{name} is {value!r}; it must be one ASCII character other than a quote"
                )
        if self.list_separator is not None and self.list_separator == self.delimiter:
            raise OptionError(f"--list-separator and --delimiter are both {self.delimiter!r}")
        if self.dense_transform not in TRANSFORMS:
            raise OptionError(
                f"--dense-transform {self.dense_transform!r} is not one of {', '.join(TRANSFORMS)}"
            )
        if self.selects_columns and not self.files:
            raise OptionError("--label, --dense and --categorical need --data")
        of_text = (self.header, self.delimiter, self.list_separator)
        if not self.files and of_text != (None, None, None):
            raise OptionError("--header, --delimiter and --list-separator need --data")
        if self.dense and not self.categorical:
            raise OptionError("--dense is given without --categorical: there would be no tables")

    @property
    def selects_columns(self) -> bool:
        """Whether columns are chosen, so that the files are not in Criteo's format."""
        return bool(self.label is not None or self.dense or self.categorical)
