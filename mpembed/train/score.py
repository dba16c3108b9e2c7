"""The job behind ``mpembed score``: scores of clicks by a saved model, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpembed.train.array_file import DamagedError
from mpembed.train.data.clicks import Source
from mpembed.train.data.encoding import Encoding
from mpembed.train.data.options import DataOptions, OptionError
from mpembed.train.data.sources import open_source
from mpembed.train.forward import Forward
from mpembed.train.metrics import accuracy, auc, log_loss
from mpembed.train.saved_model import SavedModel
from mpembed.train.score_files import ScoreFile
from mpembed.train.score_unknown import UnknownValues

F32 = npt.NDArray[np.float32]
_BLOCK_ROWS, _BATCH_ROWS = 16_384, 2_048


@dataclass(frozen=True)
class Scored:
    """What scoring has found.

    Attributes
    ----------
    rows : int
        Rows that were scored.
    labels : int
        Those with a label.
    log_loss, auc, accuracy : float
        Of the rows with a label; NaN if there are none, the AUC also if all are of one class.
    note : str
        What makes the scores doubtful: columns whose values the model does not know; or empty.
    """

    rows: int
    labels: int
    log_loss: float
    auc: float
    accuracy: float
    note: str = ""

    def __str__(self) -> str:
        if not self.labels:
            return f"{self.rows:,} rows; no labels, so no metrics"
        of = "" if self.labels == self.rows else f" of the {self.labels:,} with a label"
        area = "-" if np.isnan(self.auc) else f"{self.auc:.4f}"
        return (
            f"{self.rows:,} rows; log loss {self.log_loss:.4f}, AUC {area}, "
            f"accuracy {100 * self.accuracy:.2f} %{of}"
        )


def score(
    path: Path, data: DataOptions, rows: int | None = None, out: Path | None = None
) -> Scored:
    """Score clicks.

    Parameters
    ----------
    path : Path
        The folder that ``mpembed train --save`` has written.
    data : DataOptions
        The files and how they are read. The model knows its columns.
    rows : int, optional
        Use the first `rows` rows only.
    out : Path, optional
        File for the scores, each the probability of a click, in the order of the data; CSV or
        Parquet by its suffix. It takes its place when it is whole.

    Returns
    -------
    Scored
        Numbers of rows, and metrics where labels are there. They need 8 bytes a row.

    Raises
    ------
    DamagedError, DataError, OptionError
        If the model, the data or an option cannot be used.
    OSError
        If `out` cannot be written.
    """
    if rows is not None and rows < 1:
        raise OptionError(f"--rows is {rows}; it must be at least 1")
    saved = SavedModel(path)
    encoding = saved.encoding()
    if not data.files and saved.facts.options.data.files:
        raise OptionError("--data is needed: the model was not trained on synthetic clicks")
    if data.list_separator is None:
        data = replace(data, list_separator=saved.facts.options.data.list_separator)
    source = open_source(data, rows, encoding.columns)
    for kind in ("dense", "categorical"):
        if getattr(source.columns, kind) != getattr(encoding.columns, kind):
            raise DamagedError(f"{path}: its {kind} columns are not those of its kind of data")
    try:
        model = Forward(saved.arrays(), saved.all_tables(encoding), encoding.columns)
    except DamagedError:
        raise
    except ValueError as error:
        raise DamagedError(f"{path}: {error}") from None
    unknown = UnknownValues(encoding)
    file = nullcontext() if out is None else ScoreFile(out)
    labels, logits = [np.empty(0, np.float32)], [np.empty(0, np.float32)]
    with file as opened:
        for own, found in _scored(model, encoding, source, unknown):
            if isinstance(opened, ScoreFile):
                opened.write(_sigmoid(found))
            known = ~np.isnan(own)
            labels.append(own[known])
            logits.append(found[known])
        if out is None and not any(map(len, labels)):
            raise OptionError("--out is needed: the data have no labels to score against")
    measured = _measured(source.rows, np.concatenate(labels), np.concatenate(logits))
    return replace(measured, note=unknown.note())


def _scored(
    model: Forward, encoding: Encoding, source: Source, unknown: UnknownValues
) -> Iterator[tuple[F32, F32]]:
    """Yield the labels, NaN without one, and the log odds of one batch after the other."""
    for block in encoding.blocks(source, _BLOCK_ROWS):
        unknown.add(block)
        for batch in block.batches(_BATCH_ROWS):
            yield batch.labels, model(batch)


def _sigmoid(logits: F32) -> F32:
    with np.errstate(over="ignore"):  # exp(-z) of a score next to 0
        return (1.0 / (1.0 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def _measured(rows: int, labels: F32, logits: F32) -> Scored:
    if not len(labels):
        return Scored(rows, 0, np.nan, np.nan, np.nan)
    scores = log_loss(labels, logits), auc(labels, logits), accuracy(labels, logits)
    return Scored(rows, len(labels), *scores)
