"""Options from a TOML file: its keys are the names of the command line's options."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from mpembed.train.data.options import OptionError

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def read_config(path: Path, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Read options.

    Parameters
    ----------
    path : Path
        The file.
    hints : mapping of str to type
        The options that there are, by name with underscores, and their types.

    Returns
    -------
    dict
        The options that the file has, by the same names.

    Raises
    ------
    OptionError
        If the file cannot be read, or has another key or a value of another type.
    """
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise OptionError(f"--config {path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # of TOML or of UTF-8
        raise OptionError(f"--config {path}: is not TOML: {error}") from None
    options: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise OptionError(f"--config {path}: there is no option {key!r}{_like(key, hints)}")
        if name in options:
            raise OptionError(f"--config {path}: {key!r} is there twice")
        options[name] = _value(f"--config {path}: {key}", value, hints[name])
    return options


def _like(key: str, hints: Mapping[str, Any]) -> str:
    names = [name.replace("_", "-") for name in hints]
    close = difflib.get_close_matches(key.replace("_", "-"), names, 1)
    return f"; did you mean {close[0]!r}?" if close else "; see mpembed train --help"


def _value(where: str, value: Any, hint: Any) -> Any:
    """Return a value of a type, which may be optional or a list; a single one makes a list."""
    hint = next(kind for kind in (*get_args(hint), hint) if kind is not NoneType and _is_kind(kind))
    if get_origin(hint) is list:
        items = value if isinstance(value, list) else [value]
        return [_value(where, one, get_args(hint)[0]) for one in items]
    kind = str if hint is Path else hint
    if type(value) is kind or (kind is float and type(value) is int):
        return kind(value)
    raise OptionError(f"{where} is {value!r}; it must be {_KINDS[kind]}")


def _is_kind(kind: Any) -> bool:
    return kind in _KINDS or kind is Path or get_origin(kind) is list
