"""The options of a run as JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from shlex import quote
from typing import Any

from mpembed.train.data.from_json import from_json
from mpembed.train.settings import TrainOptions

#: What the command line calls options that have other names here.
_OPTIONS = {"settings": "setting", "files": "data"}
_TAB = "\t"


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
    return from_json(TrainOptions, {**config, "settings": unnamed})


def changed(saved: TrainOptions, given: Mapping[str, Any]) -> list[tuple[str, str]]:
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
        What is given and what was saved, as on the command line.
    """
    found = []
    for name, value in given.items():
        holder: Any = saved if hasattr(saved, name) else saved.data
        old = getattr(holder, name)
        if _listed(value) != _listed(old):
            found.append((_typed(name, value), _typed(name, old)))
    return found


def _typed(name: str, value: Any) -> str:
    """Return an option as a user types it."""
    option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
    if value is None or value == ():
        return f"no {option}"
    if isinstance(value, bool):
        return option if value else option.replace("--", "--no-")
    if isinstance(value, tuple) and name != "settings":
        value = ",".join(value)  # of columns
    values = [one.text for one in value] if isinstance(value, tuple) else [str(value)]
    return " ".join(f"{option} {quote('tab' if one == _TAB else one)}" for one in values)


def _listed(value: Any) -> Any:
    """Return columns one by one: "a,b" as "a" and "b"."""
    if isinstance(value, tuple) and all(isinstance(one, str) for one in value):
        return [name.strip() for one in value for name in one.split(",")]
    return value
