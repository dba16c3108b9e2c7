"""Temporary files: their names and locks, and the removal of those whose writer is dead.

A writer keeps its file locked, and the system drops the lock with the process. The lock belongs to
the open file, so threads of one process tell each other's files apart too.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import stat

_END = ".tmp"


def _beginning(name: str) -> str:
    """Return how the temporary files for a target begin; short, whatever the target's length."""
    return f".mpembed-{hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()}-"


def temporary_name(name: str) -> str:
    """Return a new name for a file that will be renamed to `name`."""
    return f"{_beginning(name)}{secrets.token_hex(8)}{_END}"


def lock(file: int) -> bool:
    """Lock a file that this process writes, as long as it is open.

    Returns
    -------
    bool
        False if another process has taken it for a leftover.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # The file system has no locks. Then no file there looks dead, and none is removed.
        return True
    return os.fstat(file).st_nlink > 0


def remove(name: str, folder: int) -> None:
    """Remove the temporary files for `name` in an open folder that no process is writing.

    What cannot be listed, opened or removed is left.
    """
    entries: list[str] = []
    with contextlib.suppress(OSError):
        entries = os.listdir(folder)
    beginning = _beginning(name)
    for entry in entries:
        if entry.startswith(beginning) and entry.endswith(_END):
            with contextlib.suppress(OSError):
                _remove_dead(entry, folder)


def _remove_dead(entry: str, folder: int) -> None:
    # Shared: network file systems want a file open for writing for the other kind.
    kind = fcntl.LOCK_SH
    try:
        file = _open(entry, os.O_RDONLY, folder)
    except PermissionError:  # a target that may only be written has leftovers of that kind
        kind, file = fcntl.LOCK_EX, _open(entry, os.O_WRONLY, folder)
    try:
        if stat.S_ISREG(os.fstat(file).st_mode):
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            os.unlink(entry, dir_fd=folder)
    finally:
        os.close(file)


def _open(entry: str, access: int, folder: int) -> int:
    # Neither a link nor a pipe that lies there may lead or hold this process elsewhere.
    return os.open(entry, access | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
