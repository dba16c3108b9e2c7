"""Standard output and error, which do not end a run where they cannot be written."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import TextIO, cast

from mpembed._files.targets import is_special


class _Lossy(io.TextIOBase):
    """A stream that loses what cannot be written."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            if self._stream is not None:
                self._stream.flush()


def lossy_stderr() -> TextIO:
    """Return standard error as it is now; what cannot be written there is lost."""
    return cast("TextIO", _Lossy(cast("TextIO | None", sys.stderr)))  # None where it is closed


def tell(text: str) -> None:
    """Print a line to standard error, if it can be written."""
    print(f"mpembed: {text}", file=lossy_stderr(), flush=True)


def output_path(path: Path | None) -> Path | None:
    """Return the file that an option of an output means: ``-`` is standard output."""
    return Path("/dev/stdout") if path == Path("-") else path


def is_stdout(path: Path) -> bool:
    """Return whether a name of a device, such as /dev/stdout, leads to standard output."""
    try:
        here, out = path.stat(), os.fstat(1)
        nowhere = os.path.samestat(here, Path(os.devnull).stat())
    except OSError:
        return False
    return is_special(path) and os.path.samestat(here, out) and not nowhere


def abandon(stream: TextIO | None) -> None:
    """Let go what a stream could not write; else the interpreter fails on it at its exit."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):  # it has no descriptor
            place = stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, place)
            os.close(nowhere)
