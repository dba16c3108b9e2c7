"""A new file takes the place of another when it is complete and on the disk."""

import contextlib
import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from mpembed._files import leftovers
from mpembed._files.targets import (
    is_special,
    named_errors,
    open_folder,
    place_of,
    refuse_folder_name,
    replaceable,
)

#: What folders answer to fsync on file systems that write them at once, or cannot.
_NOT_SYNCED = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
#: New files that others may lock before this process does.
_TRIES = 16


class ReplacementFile:
    """A file that is written beside another and takes its place at `commit`.

    It has a temporary name, which no reader looks for, and is locked. Those of dead writers to the
    same path are removed first. Any thread may call the methods, one at a time; a forked child
    may not `commit`, and leaves its parent's file alone. As a context manager it commits, or
    discards if there was an exception.

    Parameters
    ----------
    path : path-like
        Where the file will be. A file there keeps its permissions; a symbolic link is replaced, not
        followed.

    Attributes
    ----------
    place : tuple
        Of the file, by whichever path it is named.

    Raises
    ------
    OSError
        If nothing can be written there. Each error here and below has a number, and names `path`.

    Attributes
    ----------
    in_place : bool
        Whether the file has taken its place; after an exception, known once it is discarded.
    """

    # Descriptors, -1 if not open, and the name of what is not committed.
    _file = _lock = _folder = -1
    _temporary = ""
    in_place = _renaming = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        refuse_folder_name(path)
        self._path = Path(path)
        self._process = os.getpid()
        try:
            with named_errors(str(self._path)):
                self._folder = open_folder(self._path)
                self.place = place_of(self._path.name, self._folder)
                old = replaceable(self._path, self._folder)
                leftovers.remove(self._path.name, self._folder)
                self._create(old)
                # The lock outlives the file's own descriptor: closing may fail, renaming is last.
                self._lock = os.dup(self._file)
        except BaseException:
            self.discard()
            raise

    def _create(self, old: os.stat_result | None) -> None:
        """Open a new, locked file with the permissions that the target shall have."""
        # Read, write and execute alone: a file does not inherit whose rights a program runs with.
        mode = 0o666 if old is None else old.st_mode & 0o777
        for _ in range(_TRIES):
            self._open_new(mode)
            if leftovers.lock(self._file):
                break
            self._remove()  # another process has just taken it for a leftover
            self._close("_file")
        else:
            raise OSError(errno.EBUSY, "another process locks each new file", str(self._path))
        # The umask took some. Another user's file does not say what all may do with this one.
        new = os.fstat(self._file)
        if old is not None and old.st_uid == new.st_uid and new.st_mode & 0o777 != mode:
            os.fchmod(self._file, mode)

    def _open_new(self, mode: int) -> None:
        self._temporary = leftovers.temporary_name(self._path.name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with named_errors(str(self._path), f"no new file in {self._path.parent}"):
            self._file = os.open(self._temporary, flags, mode, dir_fd=self._folder)

    def write(self, data: bytes | memoryview) -> int:
        """Write all of some contiguous bytes; return their number."""
        left = memoryview(data)
        total = left.nbytes
        if total == 0:
            return 0
        left = left.cast("B")
        with named_errors(str(self._path)):
            while left:
                written = os.write(self._file, left)
                if written == 0:
                    raise OSError(errno.EIO, "nothing more can be written")
                left = left[written:]
        return total

    def seek(self, offset: int) -> int:
        """Continue at an offset from the beginning; what is left out is zeros."""
        with named_errors(str(self._path)):
            return os.lseek(self._file, offset, os.SEEK_SET)

    def commit(self) -> None:
        """Put the file where it belongs, so that it is there after a power cut too.

        Raises
        ------
        OSError
            If it cannot be; what was there still is, except where the error says otherwise.
        RuntimeError
            In a forked child.
        """
        if os.getpid() != self._process:
            raise RuntimeError(f"{self._path} is being written by the process that forked this one")
        try:
            with named_errors(str(self._path)):
                os.fsync(self._file)
                self._close("_file")
                self._rename()
            self.in_place, self._temporary = True, ""
            self._sync_folder()
        finally:
            self.discard()

    def _rename(self) -> None:
        self._renaming = True
        try:
            folder = self._folder
            os.replace(self._temporary, self._path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            self._renaming = False
            raise

    def _sync_folder(self) -> None:
        doing = f"the new file is in place, but the directory {self._path.parent} cannot be synced"
        with named_errors(str(self._path), doing):
            try:
                os.fsync(self._folder)
            except OSError as error:
                if error.errno not in _NOT_SYNCED:
                    raise

    def discard(self) -> None:
        """Remove what is not committed and close everything; again, it does nothing."""
        self._remove()
        for descriptor in ("_file", "_lock", "_folder"):
            with contextlib.suppress(OSError):
                self._close(descriptor)

    def __del__(self) -> None:
        # An interrupt may have come before all of `discard` was done, or before the `with` began.
        if max(self._file, self._lock, self._folder) >= 0:
            self.discard()

    def _remove(self) -> None:
        # What cannot be removed is left to the next save, which finds it without a lock.
        if self._temporary and os.getpid() == self._process:
            try:
                os.unlink(self._temporary, dir_fd=self._folder)
            except FileNotFoundError:
                self.in_place = self._renaming  # an interrupt came just after the rename
            except OSError:
                pass
        self._temporary = ""

    def _close(self, descriptor: str) -> None:
        """Close a descriptor; whatever happens, it is not closed twice."""
        number = getattr(self, descriptor)
        setattr(self, descriptor, -1)
        if number >= 0:
            os.close(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file at once, in place of what is there; a device or a pipe is written to."""
    if is_special(path):
        refuse_folder_name(path)
        with named_errors(str(path)), Path(path).open("wb") as file:
            file.write(data)
        return
    with ReplacementFile(path) as new:
        new.write(data)
