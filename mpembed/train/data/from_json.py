"""Dataclasses from JSON that may be damaged: each field of its type, none missing, none more."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_json(kind: type[T], found: Any) -> T:
    """Make a dataclass of what ``asdict`` has given, also after a round trip through JSON.

    Parameters
    ----------
    kind : type
        The dataclass. Its fields are numbers, texts, booleans, None, dataclasses, or tuples of
        one of them.
    found : Any
        From JSON.

    Returns
    -------
    kind
        It, as its own checks leave it.

    Raises
    ------
    ValueError
        If there are other fields, or values of another type.
    """
    if not isinstance(found, dict) or not is_dataclass(kind):
        raise ValueError(f"{found!r} is not {kind.__name__}")
    names = [one.name for one in fields(kind)]
    if set(found) != set(names):
        raise ValueError(f"{kind.__name__} has {sorted(found)}, not {names}")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], found[name], name) for name in names})


def _value(hint: Any, found: Any, name: str) -> Any:
    if is_dataclass(hint):
        return from_json(hint, found)  # type: ignore[arg-type]  # a class
    if get_origin(hint) is tuple and isinstance(found, list | tuple):
        return tuple(_value(get_args(hint)[0], one, name) for one in found)
    kinds = get_args(hint) or (hint,)
    number = float if type(found) is int and int not in kinds else type(found)
    if number not in kinds and not (found is None and NoneType in kinds):
        raise ValueError(f"{name} is {found!r}")
    try:
        return number(found) if number is float else found
    except OverflowError:
        raise ValueError(f"{name} is too large") from None
