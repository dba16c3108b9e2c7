"""Files of clicks for tests: the same rows in every format that `mpembed train` reads."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mpembed.train.data.clicks import CRITEO_COLUMNS, MISSING_CAT, MISSING_INT, Clicks
from mpembed.train.data.options import DataOptions

NAMES = ("label", *CRITEO_COLUMNS.dense, *CRITEO_COLUMNS.categorical)
#: Options that name the columns of Criteo's data.
BY_NAME: dict[str, Any] = {"dense": ("I*",), "categorical": ("C*",)}
BY_POSITION: dict[str, Any] = {"label": "1", "dense": ("2-14",), "categorical": ("15-40",)}


def criteo_lines(clicks: Clicks) -> list[str]:
    """Return clicks as lines in Criteo's format, without their ends."""
    ints = [["" if v == MISSING_INT else str(v) for v in column] for column in clicks.dense]
    cats = [["" if v == MISSING_CAT else f"{v:08x}" for v in column] for column in clicks.cats]
    rows = zip(map(str, clicks.labels), *ints, *cats, strict=True)
    return ["\t".join(row) for row in rows]


def write_lines(path: Path, lines: list[str], delimiter: str = "\t") -> Path:
    """Write Criteo's lines with another delimiter, compressed as the name says."""
    text = "".join(line.replace("\t", delimiter) + "\n" for line in lines).encode()
    if path.suffix == ".gz":
        text = gzip.compress(text)
    elif path.suffix == ".zst":
        text = pa.Codec("zstd").compress(text, asbytes=True)
    path.write_bytes(text)
    return path


def parquet_table(clicks: Clicks, kind: str) -> pa.Table:
    """Return clicks as a table whose categoricals are "strings", "dictionaries" or "integers"."""
    columns: dict[str, Any] = {"label": clicks.labels}
    for name, column in zip(CRITEO_COLUMNS.dense, clicks.dense, strict=True):
        columns[name] = pa.array(column, mask=column == MISSING_INT)
    for name, column in zip(CRITEO_COLUMNS.categorical, np.asarray(clicks.cats), strict=True):
        missing = column == MISSING_CAT
        if kind == "integers":
            columns[name] = pa.array(column, mask=missing)
            continue
        texts = pa.array([None if v == MISSING_CAT else f"{v:08x}" for v in column.tolist()])
        columns[name] = texts.dictionary_encode() if kind == "dictionaries" else texts
    return pa.table(columns)


def write_format(folder: Path, name: str, clicks: Clicks) -> DataOptions:
    """Write clicks in a format and return the options that read them.

    Parameters
    ----------
    folder : Path
        Where to.
    name : str
        A key of `FORMATS`.
    clicks : Clicks
        The clicks.

    Returns
    -------
    DataOptions
        Files and columns.
    """
    suffix, delimiter, header, chosen = FORMATS[name]
    path = folder / f"clicks{suffix}"
    if suffix == ".parquet":
        pq.write_table(parquet_table(clicks, delimiter), path, row_group_size=300)
    else:
        head = ["\t".join(NAMES)] if header else []
        write_lines(path, head + criteo_lines(clicks), delimiter)
    return DataOptions(files=(str(path),), **chosen)


#: Suffix, delimiter or kind of the categoricals, whether there is a header, and options.
FORMATS: dict[str, tuple[str, str, bool, dict[str, Any]]] = {
    "Criteo, zstd": (".zst", "\t", False, {}),
    "CSV": (".csv", ",", True, BY_NAME),
    "CSV, gzip": (".csv.gz", ",", True, BY_NAME),
    "CSV without a header": (".csv", ",", False, BY_POSITION),
    "TSV, zstd": (".tsv.zst", "\t", True, BY_NAME),
    "bars": (".txt", "|", True, BY_POSITION),
    "Parquet": (".parquet", "strings", True, BY_NAME),
    "Parquet, dictionaries": (".parquet", "dictionaries", True, BY_POSITION),
    "Parquet, integers": (".parquet", "integers", True, BY_NAME),
}
