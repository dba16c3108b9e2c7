"""The options of a run as JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from mpembed.train.settings import TrainOptions

T = TypeVar("T")


def described(options: TrainOptions) -> dict[str, Any]:
    """Return the options of a run as JSON has them; each setting with its name, too."""
    config = asdict(options)
    config["settings"] = [{"name": s.name, **asdict(s)} for s in options.settings]
    return config


def restored(config: Mapping[str, Any]) -> TrainOptions:
    """Return options that `described` has described.

    Parameters
    ----------
    config : mapping
        From JSON that may be damaged.

    Returns
    -------
    TrainOptions
        The options.

    Raises
    ------
    ValueError
        If they are not those of a run.
    """
    settings = config.get("settings")
    if not isinstance(settings, list) or not all(isinstance(one, dict) for one in settings):
        raise ValueError("settings are not a list of objects")
    unnamed = [{k: v for k, v in one.items() if k != "name"} for one in settings]
    return _made(TrainOptions, {**config, "settings": unnamed})


def _made(kind: type[T], found: Any) -> T:
    """Return a dataclass of JSON, each of its fields of its type."""
    if not isinstance(found, dict) or not is_dataclass(kind):
        raise ValueError(f"{found!r} is not {kind.__name__}")
    names = [one.name for one in fields(kind)]
    if set(found) != set(names):
        raise ValueError(f"{kind.__name__} has {sorted(found)}, not {names}")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], found[name], name) for name in names})


def _value(hint: Any, found: Any, name: str) -> Any:
    if is_dataclass(hint):
        return _made(hint, found)  # type: ignore[arg-type]  # a class
    if get_origin(hint) is tuple and isinstance(found, list | tuple):
        return tuple(_value(get_args(hint)[0], one, name) for one in found)
    kinds = get_args(hint) or (hint,)
    number = float if type(found) is int and int not in kinds else type(found)
    if number not in kinds and not (found is None and NoneType in kinds):
        raise ValueError(f"{name} is {found!r}")
    return number(found) if number is float else found


def changed(saved: TrainOptions, given: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the options that differ from those of a saved run.

    Parameters
    ----------
    saved : TrainOptions
        Of the saved run.
    given : mapping
        Of this one, by the names of `TrainOptions` and its data, and only those that were given.

    Returns
    -------
    list of tuple
        Name on the command line, what is given, and what was saved.
    """
    found = []
    for name, value in given.items():
        holder: Any = saved if hasattr(saved, name) else saved.data
        old = getattr(holder, name)
        if value != old:
            found.append((f"--{name.replace('_', '-')}", value, old))
    return found
