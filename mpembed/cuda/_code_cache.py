"""Compiled code in the user's cache folder, each file whole or not there."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from mpembed._files.replacement import write_file
from mpembed.version import __version__


def folder() -> Path:
    """Return the folder of compiled code, made where it is missing.

    ``MPEMBED_CACHE_DIR``; else ``mpembed`` in ``XDG_CACHE_HOME`` or ``~/.cache``.

    Raises
    ------
    OSError
        If it cannot be made, or others may write to it: its code runs in this process.
    """
    chosen = os.environ.get("MPEMBED_CACHE_DIR")
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        found = Path(chosen) if chosen else Path(base) / "mpembed"
        found.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = found.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise OSError(
            f"there is no folder for compiled code: {error}: set MPEMBED_CACHE_DIR to one that "
            "you may write to"
        ) from error
    if about.st_uid not in (os.geteuid(), 0) or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(
            f"{found} belongs to others or may be written by them, so its code is not run: set "
            "MPEMBED_CACHE_DIR to a folder of your own"
        )
    return found


def kept(suffix: str, what: Mapping[str, object], compile_code: Callable[[], bytes]) -> Path:
    """Return the file of compiled code, compiled now if there is none.

    Parameters
    ----------
    suffix : str
        Of the file.
    what : mapping
        All that the code depends on, besides mpembed's version.
    compile_code : callable
        Returns the code.
    """
    text = json.dumps({"mpembed": __version__, **what}, sort_keys=True)
    path = folder() / (hashlib.sha256(text.encode()).hexdigest()[:40] + suffix)
    if not path.is_file():
        write_file(path, compile_code())
    return path
