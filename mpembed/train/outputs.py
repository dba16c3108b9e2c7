"""What a run leaves behind: its table, and all files but the model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from mpembed.train.report import print_table, results_table, rounding_notes, write_json
from mpembed.train.streams import abandon, is_stdout


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

    The table goes to standard error where the JSON goes to standard output.

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
    if json is not None and is_stdout(json):
        failures += _print_results(result, "stderr", sys.stderr)
    else:
        failures += _print_results(result, "stdout", sys.stdout)
    return failures + write_output("--plot", plot, lambda path: _plot(result, path))


def _print_results(result: dict[str, Any], name: str, stream: TextIO | None) -> list[str]:
    if stream is None:  # it was closed before the program started
        return []
    try:
        print_table(results_table(result), stream)
        for note in rounding_notes(result):
            print(note, file=stream)
        stream.flush()
    except OSError as error:
        abandon(stream)
        return [f"{name}: cannot be written: {error.strerror or error}"]
    return []


def _plot(result: dict[str, Any], path: Path) -> None:
    from mpembed.train.plot import write_plot  # matplotlib takes a second to import

    write_plot(result, path)
