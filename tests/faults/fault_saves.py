"""A program that lets each call of a save or a load fail in turn; it prints what came of each.

The tests run it with `fault_shim.cpp` preloaded: ``fault_saves.py PART FOLDER STRIDE``. Of calls
that a save makes often, every STRIDE-th fails.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faults
import versions
from helpers import digest

import mpembed as mpe
from mpembed._files.leftovers import temporary_name

SAVE = {
    "open": [errno.EMFILE, errno.EACCES],
    "fstatat": [errno.EIO],
    "fstat": [errno.EIO],
    "flock": [errno.EWOULDBLOCK, errno.ENOLCK],
    "fchmod": [errno.EPERM],
    "dup": [errno.EMFILE],
    "lseek": [errno.EIO],
    "write": [errno.ENOSPC, errno.EDQUOT],
    "fsync": [errno.EIO],
    "close": [errno.EIO, errno.EDQUOT],
    "rename": [errno.EXDEV, errno.EACCES],
    "unlink": [errno.EIO],
}
LOAD = {
    "open": [errno.EMFILE, errno.EACCES],
    "fstat": [errno.EIO],
    "read": [errno.EIO],
    "close": [errno.EIO],
}
STRIDE = int(sys.argv[3])
Case = dict[str, Any]
Collection = versions.Collection


def attempt(fault: faults.Fault, call: Callable[[], Any]) -> Case:
    """Return what a call says under a fault."""
    case: Case = {"function": fault.function, "number": fault.number, "action": fault.action}
    case |= {"nth": fault.first, "smallest": fault.smallest, "error": None, "text": ""}
    try:
        with fault:
            call()
    except Exception as error:
        case |= {"error": type(error).__name__, "text": str(error)}
        case |= {"errno": getattr(error, "errno", 0), "file": getattr(error, "filename", None)}
    return case


class Saves:
    """A training that saves over a file of an earlier step, beside a dead save's leftover."""

    def __init__(self, path: Path) -> None:
        self.path, self.emb, self.twin = path, versions.make(), versions.make()
        self.emb.save(path)
        self.old = digest(self.emb)

    def prepare(self) -> None:
        """Train a step, let the file need other permissions, and leave a leftover."""
        for emb in (self.emb, self.twin):
            versions.train(emb)
        self.path.chmod(0o646)
        self.planted = self.path.with_name(temporary_name(self.path.name))
        self.planted.touch()

    def others(self) -> list[str]:
        """Return the files beside the target."""
        return [e.name for e in self.path.parent.iterdir() if e.name != self.path.name]

    def look(self) -> Case:
        """Return what the file holds and what lies beside it, also after the next save."""
        known = {self.old: "old", digest(self.emb): "new"}
        holds = known.get(digest(mpe.EmbeddingBagCollection.load(self.path)), "damaged")
        own = [name for name in self.others() if name != self.planted.name]
        self.emb.save(self.path)
        self.old = digest(mpe.EmbeddingBagCollection.load(self.path))
        return {
            "holds": holds,
            "left": len(own),
            "left_then": len(self.others()),
            "trains_on": self.old == digest(self.emb) == digest(self.twin),
            "mode": self.path.stat().st_mode & 0o777,
        }


def save_faults(path: Path) -> Iterator[Case]:
    """Let each call of a save fail."""
    saves = Saves(path)
    for fault in faults.each(SAVE, path.parent, STRIDE):
        saves.prepare()
        case = attempt(fault, lambda: saves.emb.save(path)) | saves.look()
        if fault.happened:
            yield case


def save_kills(path: Path) -> Iterator[Case]:
    """End a process that saves before each of its calls."""
    saves = Saves(path)
    for fault in faults.each(SAVE, path.parent, STRIDE, [faults.KILL]):
        saves.prepare()
        child = os.fork()
        if child == 0:
            with fault:
                saves.emb.save(path)
            os._exit(0)
        status, case = os.waitpid(child, 0)[1], saves.look()
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            fault.calls = fault.first
            yield {"function": fault.function, "nth": fault.first} | case
        elif status:
            raise RuntimeError(f"the child ended with status {status}")


def load_memory(path: Path) -> Iterator[Case]:
    """Load without memory."""
    return no_memory(path, lambda saves: mpe.EmbeddingBagCollection.load(path))


def under_limits(call: Callable[[], Any]) -> Iterator[Case]:
    """Make a call in processes that may take 0 bytes more, then more and more."""
    for more in (0, *(2**power for power in range(12, 28, STRIDE))):
        child = os.fork()
        if child == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + more
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            try:
                call()
            except (MemoryError, OSError):
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        yield {"more": more, "status": os.waitstatus_to_exitcode(status)}


def save_limits(path: Path) -> Iterator[Case]:
    """Save tables of 25 MB."""
    tables = [mpe.TableConfig("a", 100_000, 64), mpe.TableConfig("b", 9, 4)]
    emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.RowwiseAdagrad(0.1))
    for case in under_limits(lambda: emb.save(path)):
        others = [entry for entry in path.parent.iterdir() if entry != path]
        right = case["status"] != 0 or digest(mpe.EmbeddingBagCollection.load(path)) == digest(emb)
        yield case | {"left": len(others), "right": right, "there": path.exists()}
        path.unlink(missing_ok=True)


def load_limits(path: Path) -> Iterator[Case]:
    """Load tables of 25 MB."""
    tables = [mpe.TableConfig("a", 100_000, 64), mpe.TableConfig("b", 9, 4)]
    mpe.EmbeddingBagCollection(tables, optimizer=mpe.RowwiseAdagrad(0.1)).save(path)
    return under_limits(lambda: mpe.EmbeddingBagCollection.load(path))


def load_faults(path: Path) -> Iterator[Case]:
    """Let each call of a load fail."""
    emb = versions.make()
    emb.save(path)
    want, loaded = digest(emb), list[Collection]()
    for fault in faults.each(LOAD, path.parent, STRIDE):
        loaded.clear()
        case = attempt(fault, lambda: loaded.append(mpe.EmbeddingBagCollection.load(path)))
        if fault.happened:
            yield case | {"right": all(digest(one) == want for one in loaded)}


def no_memory(path: Path, call: Callable[[Saves], Any]) -> Iterator[Case]:
    """Let each allocation of some size fail, alone and with all after it."""
    saves = Saves(path)
    for smallest, last in ((1024, 0), (4096, faults.EVERY_LATER)):
        for nth in itertools.count(1, STRIDE):
            fault = faults.Fault("malloc", path.parent, nth, last, smallest=smallest)
            saves.prepare()
            case = attempt(fault, lambda: call(saves)) | saves.look()
            if not fault.happened:
                break
            yield case


def save_memory(path: Path) -> Iterator[Case]:
    """Save without memory."""
    return no_memory(path, lambda saves: saves.emb.save(path))


_SAVES = (save_faults, save_kills, save_memory, save_limits)
PARTS = {f.__name__: f for f in (*_SAVES, load_faults, load_memory, load_limits)}

if __name__ == "__main__":
    mpe.set_num_threads(1)
    json.dump(list(PARTS[sys.argv[1]](Path(sys.argv[2]) / "file")), sys.stdout)
