"""Files of clicks: which there are, and what is in them by their first bytes."""

from __future__ import annotations

import glob
import stat
from collections.abc import Sequence
from pathlib import Path

from mpembed.train.data.clicks import DataError
from mpembed.train.data.lines import head

_PATTERN = frozenset("*?[")
_HEAD_BYTES = 64 << 10
_PARQUET = b"PAR1"
#: First bytes, name and suffix of what text files may be compressed with.
_COMPRESSIONS = ((b"\x1f\x8b", "gzip", ".gz"), (b"\x28\xb5\x2f\xfd", "zstd", ".zst"))
_CONVERT = "write it as CSV or Parquet"
_UNPACK = "gzip and zstd are read; decompress it or use one of them"
_ICONV = "convert it with iconv -f UTF-16 -t UTF-8"
#: First bytes of files that people have clicks in, their kind, and what to do.
_OTHER_KINDS = (
    (b"\x93NUMPY", "a NumPy array (npy)", _CONVERT),
    (b"PK\x03\x04", "a zip archive, such as npz or xlsx", f"unpack it, or {_CONVERT}"),
    (b"PK\x05\x06", "an empty zip archive", _CONVERT),
    (b"ARROW1", "an Arrow (Feather) file", _CONVERT),
    (b"FEA1", "a Feather file", _CONVERT),
    (b"PARE", "an encrypted Parquet file", "decrypt it"),
    (b"ORC", "an ORC file", _CONVERT),
    (b"Obj\x01", "an Avro file", _CONVERT),
    (b"\x89HDF", "an HDF5 file", _CONVERT),
    (b"SQLite format 3", "an SQLite database", _CONVERT),
    (b"\x80\x04", "a pickle", _CONVERT),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ", "compressed with xz", _UNPACK),
    (b"\x04\x22\x4d\x18", "compressed with lz4", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", f"unpack it, or {_CONVERT}"),
    (b"\xff\xfe\x00\x00", "UTF-32 text", "convert it with iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16 text", _ICONV),
    (b"\xfe\xff", "UTF-16 text", _ICONV),
    (b'{"', "JSON", _CONVERT),
    (b"{\n", "JSON", _CONVERT),
    (b"[{", "JSON", _CONVERT),
    # Inside another compression.
    *((magic, name, "decompress it") for magic, name, _ in _COMPRESSIONS),
)


def expand(files: Sequence[str]) -> list[Path]:
    """Return the files of paths and globs.

    Parameters
    ----------
    files : sequence of str
        Paths and globs; what exists by its name is not a glob.

    Returns
    -------
    list of Path
        In the order given, those of a glob sorted.

    Raises
    ------
    DataError
        If a glob has no file, if a file is given twice, or for "-".
    """
    found: list[Path] = []
    for text in files:
        if text == "-":
            raise DataError(
                "--data -: clicks are read several times, so a regular file is needed; copy "
                "standard input to a file first"
            )
        if _PATTERN.isdisjoint(text) or Path(text).exists():
            found.append(Path(text))
            continue
        matches = sorted(path for path in glob.glob(text, recursive=True) if Path(path).is_file())  # noqa: PTH207
        if not matches:
            raise DataError(f"--data {text}: no file has such a name")
        found += map(Path, matches)
    for path in found:
        if found.count(path) > 1:
            raise DataError(f"--data {path}: is given twice")
    return found


def check_regular(path: Path) -> None:
    """Raise DataError if a path is not a regular file that can be read.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    DataError
        If it is missing, a directory, a pipe, a device, or may not be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise DataError(f"{path}: is a directory, not a file of clicks; name its files")
        if not stat.S_ISREG(mode):
            raise DataError(
                f"{path}: is not a regular file; clicks are read several times, which a "
                "pipe or a device does not allow, so copy them to a file first"
            )
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def compression_of(path: Path) -> str | None:
    """Return how a file is compressed, by its first bytes.

    Parameters
    ----------
    path : Path
        A regular file.

    Returns
    -------
    str or None
        A key of `mpembed.train.data.lines.READERS`, or None.

    Raises
    ------
    DataError
        If it is not compressed, though its name says so.
    """
    with path.open("rb") as file:
        start = file.read(4)
    found = next((name for magic, name, _ in _COMPRESSIONS if start.startswith(magic)), None)
    for _, name, suffix in _COMPRESSIONS:
        if path.suffix == suffix and found is None:
            raise DataError(f"{path}: not {name} data, though the name ends in {suffix}")
    return found


def is_parquet(path: Path) -> bool:
    """Return whether a file is Parquet; refuse what is neither Parquet nor text.

    Parameters
    ----------
    path : Path
        A regular file.

    Returns
    -------
    bool
        False for text, which may be compressed.

    Raises
    ------
    DataError
        If the file is of another kind; the message says which, and what to do.
    """
    compression = compression_of(path)
    start = head(path, compression, _HEAD_BYTES)
    inside = f" inside {compression}" if compression else ""
    if start.startswith(_PARQUET):
        if compression:
            raise DataError(f"{path}: is a Parquet file{inside}; decompress it")
        return True
    for magic, kind, remedy in _OTHER_KINDS:
        if start.startswith(magic):
            raise DataError(f"{path}: is {kind}{inside}; {remedy}")
    if b"\0" in start:
        if _is_utf16(start):
            raise DataError(f"{path}: is UTF-16 text{inside}; {_ICONV}")
        raise DataError(f"{path}: is not text{inside}: it has zero bytes; {_CONVERT}")
    return False


def _is_utf16(start: bytes) -> bool:
    """Return whether text without a byte-order mark has a zero in every other byte."""
    evens, odds = start[0::2], start[1::2]
    few, many = sorted((evens.count(0) / len(evens), odds.count(0) / max(len(odds), 1)))
    return few < 0.1 and many > 0.9
