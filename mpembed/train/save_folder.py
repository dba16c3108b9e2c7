"""The folder of ``--save``: a manifest that names the files of one whole save.

Each save writes new files beside those of the last one, and then replaces the manifest: it is the
moment at which the new save takes the place of the old one. Files that no manifest names, of the
last save or of one that was killed, are removed by the next save.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mpembed._checkpoint import strict_json
from mpembed._files.replacement import write_file
from mpembed.train.array_file import DamagedError, header_digest, is_saved_file
from mpembed.train.data.options import OptionError

MANIFEST = "model.json"
#: Kinds of files; further ranks have tables1, tables2 and so on.
KINDS = "tables", "dense", "encoding"
FORMAT, VERSION = "mpembed-train", 1
_MAX_MANIFEST = 64 << 20
_SLOTS = "ab"
_TRIES = 100  # to lock a folder that other processes make and remove
_START, _REST = '{"crc32": "', '", '  # the checksum of all that follows them
_FIELDS = {"format", "version", "files", "model"}


def _file_name(kind: str, slot: str) -> str:
    return f"{kind}-{slot}.safetensors"


def table_kind(rank: int) -> str:
    """Return the kind of the file that has the tables of a rank."""
    return f"tables{rank}" if rank else "tables"


_OWN_NAME = re.compile(r"(tables([1-9][0-9]{0,4})?|dense|encoding)-[ab]\.safetensors")


class SaveFolder:
    """A folder that one process at a time saves a model to.

    Parameters
    ----------
    path : path-like
        The folder; its parent must exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock, self._made = -1, False
        self._files: dict[str, list[str]] = {}

    def open(self) -> None:
        """Make the folder if there is none, and keep other processes from saving to it.

        Raises
        ------
        OptionError
            If it cannot be one: there is something else, or another process saves to it.
        """
        check_folder(self.path)
        try:
            if not any(self._lock_folder() for _ in range(_TRIES)):
                raise BlockingIOError
        except BlockingIOError:
            self.close()
            raise OptionError(f"--save {self.path}: another process saves to it") from None
        except OSError as error:
            self.close()
            raise _unusable(self.path, error) from None

    def _lock_folder(self) -> bool:
        """Make and lock the folder; False if another process has removed it meanwhile."""
        with contextlib.suppress(FileExistsError):
            self.path.mkdir()
            self._made = True
        try:
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._made = False  # it is the other one's now
            raise
        except OSError:  # the file system has no locks
            return True
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._lock), self.path.stat()):
                return True
        os.close(self._lock)
        self._lock, self._made = -1, False
        return False

    def close(self) -> None:
        """Let other processes save; a folder that `open` made and nothing is in is removed."""
        if self._lock >= 0:
            if self._made:  # before the lock is given back, so that no other process loses it
                with contextlib.suppress(OSError):
                    self.path.rmdir()
            os.close(self._lock)
            self._lock = -1

    def new_names(self, kinds: Iterable[str]) -> dict[str, str]:
        """Return names for new files, by kind; none is that of a file of the last save."""
        old = self._files or self._named()
        return {
            kind: next(
                name
                for name in (_file_name(kind, slot) for slot in _SLOTS)
                if old.get(kind, [""])[0] != name
            )
            for kind in kinds
        }

    def commit(self, model: Mapping[str, Any], files: Mapping[str, list[str]]) -> None:
        """Put a save in the place of the last one; after an error or a kill, that one is there.

        Parameters
        ----------
        model : mapping
            What the manifest says, as JSON.
        files : mapping of str to list
            For each kind of file that is new, its name and its `header_digest`; the others are
            those of this process's last save.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        whole = {**self._files, **files}
        manifest = {"format": FORMAT, "version": VERSION, "files": whole, "model": model}
        write_file(self.path / MANIFEST, sealed(manifest))
        self._files = whole
        kept = {name for name, _ in whole.values()}
        with contextlib.suppress(OSError):
            for entry in list(self.path.iterdir()):
                if _OWN_NAME.fullmatch(entry.name) and entry.name not in kept:
                    entry.unlink()

    def discard(self, names: Iterable[str]) -> None:
        """Remove new files of a save that has failed before `commit`."""
        for name in names:
            with contextlib.suppress(OSError):
                (self.path / name).unlink()

    def _named(self) -> dict[str, list[str]]:
        """Return the files that the manifest names; none if there is none or it is damaged."""
        try:
            files: dict[str, list[str]] = read_manifest(self.path)["files"]
        except (OSError, DamagedError):
            return {}
        return files


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest as a file has it, with its checksum."""
    text = json.dumps(manifest, allow_nan=False)
    return f"{_START}{_checksum(text)}{_REST}{text[1:]}".encode()


def _checked(text: str) -> str:
    """Return the JSON of a manifest without its checksum; ValueError if that is wrong."""
    start, rest = text[: len(_START)], text[len(_START) + 8 :]
    whole = "{" + rest.removeprefix(_REST)
    if start != _START or text[len(_START) :][:8] != _checksum(whole):
        raise ValueError("its checksum is wrong")
    return whole


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _unusable(path: Path, error: OSError) -> OptionError:
    return OptionError(f"--save {path}: cannot be written: {error.strerror or error}")


def check_folder(path: Path) -> None:
    """Raise OptionError if a model cannot be saved to a folder; nothing changes."""
    try:
        if not path.exists() and not path.is_symlink():
            if not path.parent.is_dir():
                raise OptionError(f"--save {path}: there is no directory {path.parent}")
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise OptionError(f"--save {path}: no new folder may be made in {path.parent}")
            return
        if not path.is_dir():
            raise OptionError(f"--save {path}: is not a folder")
        entries = [one.name for one in path.iterdir()]
    except OSError as error:
        raise _unusable(path, error) from None
    others = sorted(
        one
        for one in entries
        if one != MANIFEST and not _OWN_NAME.fullmatch(one) and not one.endswith(".tmp")
    )
    if others:
        raise OptionError(
            f"--save {path}: has other files, such as {others[0]}; name a new or an empty folder"
        )
    _check_ours(path, entries)
    if not os.access(path, os.W_OK | os.X_OK):
        raise OptionError(f"--save {path}: cannot be written: Permission denied")


def _check_ours(path: Path, entries: Iterable[str]) -> None:
    """Raise OptionError where files with the names of a save are not of one."""
    named: set[str] = set()
    try:
        if MANIFEST in entries:
            named = {name for name, _ in read_manifest(path)["files"].values()}
        for entry in sorted(set(entries) - named):
            if _OWN_NAME.fullmatch(entry) and not is_saved_file(path / entry):
                raise DamagedError(f"{path / entry}: was not written by mpembed train --save")
    except DamagedError as error:
        raise OptionError(f"--save {error}; name a new or an empty folder") from None
    except OSError as error:
        raise _unusable(path, error) from None


def holds_model(path: Path) -> bool:
    """Return whether a folder has the manifest of a save, be it damaged."""
    try:
        with (path / MANIFEST).open("rb") as file:
            return file.read(len(_START)) == _START.encode()
    except OSError:
        return False


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what a folder's manifest says: ``files`` and ``model``.

    Raises
    ------
    OSError
        If it cannot be read.
    DamagedError
        If it is not a manifest, or names other files than a save writes.
    """
    target = path / MANIFEST
    if not stat.S_ISREG(target.stat().st_mode):
        raise DamagedError(f"{target}: is not a regular file")
    with target.open("rb") as file:
        data = file.read(_MAX_MANIFEST)
    try:
        found = strict_json.parse(_checked(data.decode()))
    except ValueError as error:
        raise DamagedError(f"{target}: is damaged: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DamagedError(f"{target}: was not written by mpembed train --save")
    if found.get("version") != VERSION:
        raise DamagedError(
            f"{target}: has layout {found.get('version')!r}; this mpembed reads {VERSION}"
        )
    files = found.get("files")
    if set(found) != _FIELDS or not isinstance(found["model"], dict) or not _fits(files):
        raise DamagedError(f"{target}: is not a manifest of mpembed train")
    return found


def _fits(files: Any) -> bool:
    """Return whether the files are one of each kind, with a name that a save gives."""
    if not isinstance(files, dict):
        return False
    further = [table_kind(rank) for rank in range(1, len(files) - len(KINDS) + 1)]
    return set(files) == {*KINDS, *further} and all(
        isinstance(one, list)
        and len(one) == 2
        and all(isinstance(text, str) for text in one)
        and one[0] in [_file_name(kind, slot) for slot in _SLOTS]
        for kind, one in files.items()
    )


def named_file(path: Path, manifest: Mapping[str, Any], kind: str) -> Path:
    """Return a file of a save, which is the one that its manifest means.

    Raises
    ------
    OSError
        If it cannot be read.
    DamagedError
        If it is another one.
    """
    name, digest = manifest["files"][kind]
    file = path / str(name)
    if not stat.S_ISREG(file.stat().st_mode):
        raise DamagedError(f"{file}: is not a regular file")
    if header_digest(file) != digest:
        raise DamagedError(
            f"{file}: is not the file that {MANIFEST} names: it is damaged, or a run has saved "
            "meanwhile; in that case try again"
        )
    return file
