"""Save while training goes on: a thread writes a snapshot to the file."""

import logging
import os
import threading
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mpembed._bindings.device import Stream
from mpembed._checkpoint.manifest import manifest_of, metadata
from mpembed._checkpoint.tensor_file import Arrays, Writer, raw
from mpembed._collection.snapshot import Snapshot
from mpembed._collection.state import CollectionState
from mpembed._files.replacement import ReplacementFile
from mpembed._files.targets import open_folder, place_of

Ended = Callable[[dict[str, Any] | None], None]
_LOG = logging.getLogger("mpembed")


class BackgroundSave:
    """A save that goes on while the collection is trained; `EmbeddingBagCollection.save` starts it.

    The interpreter waits for it before it exits, and it holds what it needs of a collection that is
    dropped. In a forked child it is over, without a result: the parent writes the file. A failure
    is logged as an error of the logger ``mpembed``, and again as a warning at the next save if
    nobody has asked for the result by then.

    Parameters
    ----------
    path : str
        The file.
    step : int
        The step of the save: `EmbeddingBagCollection.step` at the call.
    """

    def __init__(self, path: str, step: int) -> None:
        self.path, self.step = path, step
        self._unasked = True
        self._process = os.getpid()
        self._finished = threading.Event()
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended: the file is complete, or writing it has failed."""
        return self._forked() or self._finished.is_set()

    def result(self, timeout: float | None = None) -> None:
        """Wait for the end of the save, and raise what went wrong.

        Parameters
        ----------
        timeout : float, optional
            The most seconds to wait.

        Raises
        ------
        TimeoutError
            If the save still goes on.
        OSError, MemoryError
            If it has failed; what was at its path still is there.
        RuntimeError
            In a forked child.
        """
        if self._forked():
            raise RuntimeError("the process that forked this one writes the file: ask there")
        if not self._finished.wait(timeout):
            raise TimeoutError(f"the save is still going on after {timeout} seconds")
        self._unasked = False
        if self._error is not None:
            raise self._error

    def __repr__(self) -> str:
        if self._forked():
            state = "of another process"
        elif not self._finished.is_set():
            state = "going on"
        else:
            state = "complete" if self._error is None else f"failed: {_text(self._error)}"
        return f"<BackgroundSave of step {self.step} to {self.path!r}: {state}>"

    def remind(self) -> None:
        """Log a failure as a warning if nobody has asked for the result; once."""
        if self._unasked and self._error is not None and not self._forked():
            self._unasked = False
            _LOG.warning(
                "an earlier save in the background has failed, and its result() was not asked for: "
                "%r",
                self,
            )

    def _forked(self) -> bool:
        return os.getpid() != self._process

    def _finish(self, error: BaseException | None) -> None:
        self._error = error
        try:
            if error is not None:
                _LOG.error("a save in the background has failed: %s: %s", self.path, _text(error))
        finally:
            self._finished.set()


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class _Job:
    """A snapshot that is written to a file, by the thread that runs this or by none."""

    def __init__(
        self,
        state: CollectionState,
        path: str,
        file: ReplacementFile,
        on: Stream,
        ended: Ended,
    ) -> None:
        arrays = state.arrays()
        self.handle = BackgroundSave(path, state.counters(on).step)
        self._claim, self._begun = threading.Lock(), threading.Event()
        self._state, self._file, self._ended = state, file, ended
        self._types: Arrays = {name: (one.dtype, one.shape) for name, one in arrays.items()}
        self._manifest = manifest_of(state, on)
        self._snapshot = state.snapshot(on)
        self._snapshot.place = file.place

    def start(self) -> None:
        """Let the kernels keep what they write from now on."""
        self._state.start_snapshot(self._snapshot)

    def begin(self) -> None:
        """Let the thread write the file."""
        self._begun.set()

    def cancel(self) -> bool:
        """Let it return at once; whether the file is the caller's to close."""
        self._state.storage.end_snapshot(self._snapshot)  # none of another save
        is_own = self._claim.acquire(blocking=False)
        self.begin()
        return is_own

    def run(self) -> None:
        """Write the file, once `begin` was called."""
        self._begun.wait()
        if not self._claim.acquire(blocking=False):
            return
        error: BaseException | None = None
        manifest: dict[str, Any] | None = None
        try:
            self._snapshot.prepare()
            with self._file as file:
                manifest = _write(file, self._types, self._manifest, self._snapshot)
        except BaseException as found:  # whatever it is, `result` raises it
            error = found
        # Without a turn among the collection's calls: one of them may be waiting for this thread,
        # and a fork in the middle of a turn would leave the child without any.
        try:
            self._ended(manifest if error is None else None)
        finally:
            self._snapshot.finish()
            self.handle._finish(error)


def save_in_background(
    state: CollectionState, path: str | os.PathLike[str], on: Stream, ended: Ended
) -> BackgroundSave:
    """Start to write a collection, as it is now, to `path`.

    `ended` gets the manifest when the file is complete, None if that fails, in the thread and
    outside of all turns; no other save in the background begins before it returns.

    Raises
    ------
    ValueError
        If the collection is on a device.
    RuntimeError
        If a save in the background is going on.
    OSError
        If nothing can be written there.
    """
    if not on.device.synchronous:
        raise ValueError(
            f"background=True is for a collection on the CPU, this one is on {on.device.name!r}: "
            "call save(path) without it, which waits"
        )
    state.refuse_second_snapshot()
    file = ReplacementFile(path)
    job = None
    try:
        job = _Job(state, os.fspath(path), file, on, ended)
        job.start()
        threading.Thread(target=job.run, name="mpembed save").start()
        state.storage.saves.background = job.handle
        job.begin()
    except BaseException:
        if job is None or job.cancel():
            file.discard()
        raise
    return job.handle


def wait_for_same_place(state: CollectionState, path: str | os.PathLike[str]) -> None:
    """Wait for a save in the background to the same file, which would replace what comes now."""
    snapshot = state.storage.snapshot
    if snapshot is None or snapshot.over:
        return
    target = Path(path)
    try:
        folder = open_folder(target)
    except OSError:  # the save says it
        return
    try:
        place = place_of(target.name, folder)
    finally:
        os.close(folder)
    if place == snapshot.place:
        snapshot.wait()


def _write(
    file: ReplacementFile, types: Arrays, manifest: Mapping[str, Any], snapshot: Snapshot
) -> dict[str, Any]:
    checksums = dict.fromkeys(types, 2**32 - 1)  # the longest one
    writer = Writer(file, types, metadata(manifest, checksums))
    checksums = dict.fromkeys(types, 0)
    for name, begin, piece in snapshot.pieces():
        checksums[name] = zlib.crc32(raw(piece), checksums[name])
        writer.write_at(name, begin, piece)
    writer.finish(metadata(manifest, checksums))
    return {**manifest, "crc32": checksums}
