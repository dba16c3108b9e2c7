"""The results of a run as a table and as a JSON file, and checks of the output files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from mpembed._files.replacement import write_file
from mpembed._files.targets import check_place
from mpembed.rounding import BAD, NOISE_LIMIT
from mpembed.train.data.options import OptionError
from mpembed.train.save_folder import holds_model
from mpembed.train.streams import is_stdout

_COLUMNS = (
    "log\nloss",
    "to first\n%",
    "online\n%",
    "\nAUC",
    "accuracy\n%",
    "\nmemory",
    "\nratio",
    "rows\nonly",
    "hits\n%",
    "step\nms",
    "tables\nms",
)
_PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def _check_writable(option: str, path: Path) -> None:
    """Raise OptionError if an output file cannot be written."""
    try:
        check_place(path)
    except OSError as error:
        raise OptionError(f"{option} {path}: cannot be written: {error.strerror}") from None
    if option == "--plot" and path.suffix.lower() not in _PLOT_SUFFIXES:
        raise OptionError(f"{option} {path}: the name must end in {', '.join(_PLOT_SUFFIXES)}")


def _same_file(a: Path, b: Path) -> bool:
    """Return whether two names lead to one file, through links of any kind, even to no file yet."""
    if os.path.realpath(a) == os.path.realpath(b):
        return True
    try:
        return a.samefile(b)
    except OSError:  # one of them does not exist
        return False


def check_outside(option: str, path: Path, folders: Sequence[Path] = ()) -> None:
    """Raise OptionError for an output in the folder of a model, whose files it could replace.

    Parameters
    ----------
    option : str
        What names the output.
    path : Path
        The output.
    folders : sequence of Path
        Those of models, besides all that have one already.
    """
    for place in (path, path.parent):
        if holds_model(place) or any(_same_file(place, one) for one in folders):
            raise OptionError(
                f"{option} {path}: {place} is the folder of a model; name a place outside of it"
            )


def check_outputs(
    data: Sequence[Path], outputs: Mapping[str, Path | None], folders: Sequence[Path] = ()
) -> None:
    """Raise OptionError for an output file that cannot be written or is used twice.

    Parameters
    ----------
    data : sequence of Path
        The files of clicks.
    outputs : mapping of str to Path or None
        The files to write, by option; this does not touch them. They replace what is there, a link
        itself.
    folders : sequence of Path
        Those of models that this run reads or writes.

    Raises
    ------
    OptionError
        If one lies in the folder of a model, is a directory, its directory does not exist, writing
        is not allowed, or it is the same file as another one.
    """
    used = [("--data", path) for path in data]
    for option, path in outputs.items():
        if path is None:
            continue
        _check_writable(option, path)
        check_outside(option, path, folders)
        for other, taken in used:
            if _same_file(path, taken):
                raise OptionError(f"{option} {path}: is the same file as {other} {taken}")
        used.append((option, path))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:{form}}"


def _percent(share: float | None, form: str) -> str:
    return _number(None if share is None else 100 * share, form)


def _difference(difference: dict[str, float | None], is_base: bool) -> str:
    percent, error = difference["percent"], difference["standard_error"]
    if is_base or percent is None:
        return "-"
    text = f"{percent:+.2f}"
    if float(text) == 0:  # neither better nor worse
        text = "0.00"
    return text if error is None else f"{text} ± {error:.2f}"


def results_table(result: dict[str, Any]) -> Table:
    """Lay out the table of a run.

    Parameters
    ----------
    result : dict
        From :func:`mpembed.train.runner.run`.

    Returns
    -------
    rich.table.Table
        One row a setting.
    """
    data, summary = result["data"], result["summary"]
    title = (
        f"{data['source']}: {data['rows']:,} clicks, {sum(data['table_rows']):,} table rows of "
        f"{result['config']['dim']}, {summary[0]['seeds']} seed(s)"
    )
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("tables", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for index, row in enumerate(summary):
        table.add_row(
            row["setting"],
            _number(row["log_loss"], ".4f"),
            _difference(row["difference"], index == 0),
            _difference(row["online_difference"], index == 0),
            _number(row["auc"], ".4f"),
            _percent(row["accuracy"], ".2f"),
            decimal(row["bytes"]),
            _number(row["ratio"], ".2f"),
            _number(row["ratio_embeddings"], ".2f"),
            _percent(row["hit_rate"], ".1f"),
            _number(row["step_ms"], ".1f"),
            _number(row["embedding_ms"], ".2f"),
        )
    return table


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # the error that is being handled; Rich would end the process


def print_table(table: Table, stream: TextIO) -> None:
    """Print a table, never wrapped to the width of the terminal or pipe.

    Parameters
    ----------
    table : rich.table.Table
        The table.
    stream : text stream
        Where to print it.
    """
    console = _Console(file=stream)
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    _Console(file=stream, width=max(needed, console.width)).print(table)


def _plain(value: Any) -> Any:
    """Replace NaN and infinities, which JSON cannot express, by None."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rounding_notes(result: dict[str, Any]) -> list[str]:
    """Say which settings have tables whose rounding noise is too large.

    Parameters
    ----------
    result : dict
        From :func:`mpembed.train.runner.run`.

    Returns
    -------
    list of str
        One line a setting; of several seeds, the first counts.
    """
    notes: dict[str, str] = {}
    for run in result["runs"]:
        tables = list(run["rounding"].values())
        bad = [table for table in tables if table["verdict"] in BAD]
        if run["seed"] == result["config"]["seed"] and bad:
            worst = max(bad, key=lambda table: float(table["ratio"]))
            notes[run["setting"]] = (
                f"{run['setting']}: rounding noise exceeds {NOISE_LIMIT:g} of the updates in "
                f"{len(bad)} of {len(tables)} tables, most in {worst['name']} "
                f"({worst['ratio']:.2g}); {worst['verdict']}: {worst['advice']}"
            )
    return list(notes.values())


def write_json(result: dict[str, Any], path: Path) -> None:
    """Write all results of a run.

    Parameters
    ----------
    result : dict
        From :func:`mpembed.train.runner.run`.
    path : Path
        The file.
    """
    data = f"{json.dumps(_plain(result), indent=1, allow_nan=False)}\n".encode()
    if is_stdout(path):  # opened by its name, a file would lose what is there before
        with open(1, "wb", closefd=False) as file:
            file.write(data)
    else:
        write_file(path, data)
