"""What a run leaves behind: its table, and all files but the model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpembed.train.report import print_table, results_table, rounding_notes, write_json
from mpembed.train.streams import abandon


def write_output(option: str, path: Path | None, write: Callable[[Path], None]) -> list[str]:
    """Write to a path, if there is one; return what failed, as on a full disk."""
    try:
        if path is not None:
            write(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return [f"{option} {path}: cannot be written: {reason}"]
    return []


def write_results(result: dict[str, Any], json: Path | None, plot: Path | None) -> list[str]:
    """Print the table and write the files; return what failed.

    Parameters
    ----------
    result : dict
        From :func:`mpembed.train.runner.run`.
    json, plot : Path or None
        The files.

    Returns
    -------
    list of str
        A text for each output that failed; that does not stop the others.
    """
    # The JSON file holds everything, so it comes first.
    failures = write_output("--json", json, lambda path: write_json(result, path))
    failures += _print_results(result)
    return failures + write_output("--plot", plot, lambda path: _plot(result, path))


def _print_results(result: dict[str, Any]) -> list[str]:
    stdout: Any = sys.stdout
    if stdout is None:  # it was closed before the program started
        return []
    try:
        print_table(results_table(result))
        for note in rounding_notes(result):
            print(note)
        stdout.flush()
    except OSError as error:
        abandon(stdout)
        return [f"stdout: cannot be written: {error.strerror or error}"]
    return []


def _plot(result: dict[str, Any], path: Path) -> None:
    from mpembed.train.plot import write_plot  # matplotlib takes a second to import

    write_plot(result, path)
