"""Arrays by name in a safetensors file with a checksum each, read without trust."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed._checkpoint import strict_json
from mpembed._checkpoint.header import LENGTH_BYTES, header_bytes
from mpembed._checkpoint.manifest import KEY as CHECKPOINT_KEY
from mpembed._checkpoint.tensor_file import Reader, Writer, one_place
from mpembed._files.replacement import ReplacementFile

_KEY = "mpembed_train"
_TYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64}

Arrays = dict[str, npt.NDArray[Any]]


class DamagedError(ValueError):
    """A file does not hold what was saved; the message names it."""


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a whole file, in place of what is there.

    Parameters
    ----------
    path : Path
        The file.
    arrays : mapping of str to ndarray
        Of float32, float64 or int64.
    """
    kept = {name: np.asarray(one, order="C") for name, one in arrays.items()}
    checksums = dict.fromkeys(kept, 2**32 - 1)  # the longest one
    with ReplacementFile(path) as file:
        types = {name: (one.dtype, one.shape) for name, one in kept.items()}
        writer = Writer(file, types, {_KEY: json.dumps(checksums)})
        for name in writer.names:
            checksums[name] = writer.write(iter([kept[name]]))
        writer.finish({_KEY: json.dumps(checksums)})


def header_digest(path: Path) -> str:
    """Return a digest of a safetensors file's header, which has the checksums of its arrays.

    Raises
    ------
    DamagedError
        If it has no header.
    """
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES)
        try:
            text = file.read(header_bytes(start, os.fstat(file.fileno()).st_size))
        except ValueError:
            raise DamagedError(f"{path}: is not a safetensors file") from None
    return hashlib.blake2b(start + text, digest_size=16).hexdigest()


def is_saved_file(path: Path) -> bool:
    """Return whether a file is one of `write_arrays`, or a checkpoint; OSError if unreadable."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return not {_KEY, CHECKPOINT_KEY}.isdisjoint(Reader(file).metadata)
    except (EOFError, ValueError):
        return False
    finally:
        os.close(file)


def read_arrays(path: Path) -> Arrays:
    """Read a file that `write_arrays` wrote.

    Raises
    ------
    OSError
        If it cannot be read.
    DamagedError
        If it is not what was written.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        reader = Reader(file)
        checksums = strict_json.parse(reader.metadata.get(_KEY, "null"))
        found = reader.arrays()
        if not isinstance(checksums, dict) or set(checksums) != set(found):
            raise DamagedError(f"{path}: was not written by mpembed train")
        arrays: Arrays = {}
        for name, (kind, shape) in found.items():
            if kind not in _TYPES:
                raise DamagedError(f"{path}: {name} is of type {kind}")
            arrays[name] = np.empty(shape, _TYPES[kind])
            if reader.read(name, one_place(arrays[name])) != checksums[name]:
                raise DamagedError(f"{path}: {name} is damaged (checksum)")
    except EOFError:
        raise DamagedError(f"{path}: is cut short") from None
    except ValueError as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{path}: {error}") from None
    finally:
        os.close(file)
    return arrays
