"""Makes a source archive independent of the machine: its times, owners and order of files."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from mpembed_build.settings import BuildError


def epoch(environment: Mapping[str, str]) -> int | None:
    """Return the time of ``SOURCE_DATE_EPOCH`` for every file, or None if it is not set.

    Raises
    ------
    BuildError
        ``SOURCE_DATE_EPOCH`` is not a number of seconds.
    """
    text = environment.get("SOURCE_DATE_EPOCH", "")
    if text and not (text.isascii() and text.isdecimal()):
        raise BuildError(f"SOURCE_DATE_EPOCH must be a number of seconds, got {text!r}")
    return int(text) if text else None


def normalise(archive: Path, epoch: int | None) -> None:
    """Rewrite a ``.tar.gz`` in order of the names, without owners and with plain permissions.

    Parameters
    ----------
    archive : Path
        The archive; it is replaced when the new one is complete.
    epoch : int or None
        The time of every file and of the compression; with None the files keep their times.
    """
    packed = io.BytesIO()
    with (
        tarfile.open(archive) as old,
        gzip.GzipFile("", "wb", mtime=epoch or 0, fileobj=packed) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            new.addfile(_plain(member, epoch), old.extractfile(member) if member.isfile() else None)
    fresh = archive.with_suffix(".new")
    fresh.write_bytes(packed.getvalue())
    fresh.replace(archive)


def _plain(member: tarfile.TarInfo, epoch: int | None) -> tarfile.TarInfo:
    """Return an entry with only the name, type, size, time and plain permissions."""
    plain = tarfile.TarInfo(member.name)
    plain.type, plain.linkname, plain.size = member.type, member.linkname, member.size
    plain.mtime = int(member.mtime) if epoch is None else epoch
    plain.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return plain
