"""The options of a run as JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mpembed.train.data.from_json import from_json
from mpembed.train.settings import TrainOptions


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
        if _listed(value) != _listed(old):
            found.append((f"--{name.replace('_', '-')}", value, old))
    return found


def _listed(value: Any) -> Any:
    """Return columns one by one: "a,b" as "a" and "b"."""
    if isinstance(value, tuple) and all(isinstance(one, str) for one in value):
        return [name.strip() for one in value for name in one.split(",")]
    return value
