"""What lies where a file shall be written, and whether a new file may take its place."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def named_errors(path: str, doing: str = "") -> Iterator[None]:
    """Let each OSError name a file as the caller does, and keep its number."""
    try:
        yield
    except OSError as error:
        if error.filename == path and error.filename2 is None:
            raise
        text = error.strerror or str(error)
        raise OSError(error.errno, f"{doing}: {text}" if doing else text, path) from error


def is_special(path: str | os.PathLike[str]) -> bool:
    """Return whether a path leads to a device, a pipe or a socket, or lies among them in /dev."""
    with contextlib.suppress(OSError):
        kind = Path(path).stat().st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            return True
    with contextlib.suppress(OSError):
        return _is_dev(Path(path).parent.stat())
    return False


def _is_dev(folder: os.stat_result) -> bool:
    """Return whether a folder is /dev: its links, such as /dev/stdout, may lead to plain files."""
    with contextlib.suppress(OSError):
        return os.path.samestat(folder, Path("/dev").stat())
    return False


def check_place(path: str | os.PathLike[str]) -> None:
    """Raise OSError if no file can be written to a path; nothing changes."""
    refuse_folder_name(path)
    target = Path(path)
    if is_special(target):
        if not os.access(target, os.W_OK):
            raise OSError(errno.EACCES, "Permission denied", str(target))
        return
    with named_errors(str(target)):
        folder = open_folder(target)
        try:
            replaceable(target, folder)
        finally:
            os.close(folder)
    if not os.access(target.parent, os.W_OK | os.X_OK):
        text = f"no new file in {target.parent}: Permission denied"
        raise OSError(errno.EACCES, text, str(target))


def refuse_folder_name(path: str | os.PathLike[str]) -> None:
    """Raise OSError for a path that ends as that of a folder does; a `Path` drops such an end."""
    text = os.fspath(path)
    if text.endswith(("/", "/.")):
        name = os.path.normpath(text)
        raise OSError(errno.EISDIR, f"ends as a folder does; that of a file is {name!r}", text)


def open_folder(path: Path) -> int:
    """Open the folder that a file shall lie in; return its descriptor."""
    folder = path.parent
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as error:
        raise OSError(error.errno, f"there is no directory {folder}", str(path)) from None
    except OSError as error:
        text = f"the directory {folder} cannot be opened: {error.strerror}"
        raise OSError(error.errno, text, str(path)) from None


def place_of(name: str, folder: int) -> tuple[int, int, str]:
    """Return what two paths to the same entry of an open folder have in common."""
    status = os.fstat(folder)
    return status.st_dev, status.st_ino, name


def replaceable(path: Path, folder: int) -> os.stat_result | None:
    """Return the status of the regular file that will be replaced, None if there is none.

    Parameters
    ----------
    path : Path
        The file.
    folder : int
        Its folder, open.

    Raises
    ------
    OSError
        If something else lies there. A symbolic link is replaced itself, unless it leads to such.
    """
    try:
        old = os.stat(path.name or ".", dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    is_link, final = stat.S_ISLNK(old.st_mode), old.st_mode
    if is_link:
        try:
            final = os.stat(path.name, dir_fd=folder).st_mode
        except OSError:
            return None  # it leads nowhere
    if stat.S_ISDIR(final):
        raise OSError(errno.EISDIR, "is a directory; nothing was saved", str(path))
    if not stat.S_ISREG(final) or _is_dev(os.fstat(folder)):
        raise OSError(errno.EINVAL, "is not a regular file; nothing was saved", str(path))
    return None if is_link else old
