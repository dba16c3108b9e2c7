"""Run the parts of gpu.sh one after another, each with a limit; whatever ends it, nothing is lost.

What a part prints goes into ``log.txt`` as it comes. ``parts.jsonl`` gets a line when a part ends,
and the report is then written anew.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import tarfile
import threading
import time
import traceback
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import gpu_figures
import gpu_report

MOST_TEXT, LAST_TEXT = 512 << 10, 64 << 10  # bytes of a part's output that are kept
GRACE = 3  # seconds between an interrupt, upon which pytest still reports, and the kill
ARCHIVE = "archive.tar.gz"
RESULTS = ("log.txt", "parts.jsonl", "figures.jsonl", "tests.jsonl", "results.json", "results.txt")
ARCHIVE_BYTES = 16 << 20
RESERVE = 5  # seconds for the archive


@dataclass(frozen=True)
class Part:
    """A command, its limit in seconds, and how much longer it may take if others took less.

    What all later parts need is `vital`: it may take their time as well.
    """

    name: str
    limit: float
    command: Sequence[str]
    stretch: float = 1.5
    vital: bool = False


class Log:
    """Writes what a part prints: the beginning at once, of more only the end."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size = file, 0
        self.last: collections.deque[bytes] = collections.deque()
        self.kept = 0

    def pump(self, pipe: int) -> None:
        """Read until the other end is closed."""
        with contextlib.suppress(OSError):
            while chunk := os.read(pipe, 1 << 16):
                self.add(chunk)

    def add(self, chunk: bytes) -> None:
        """Take what was printed."""
        if self.size < MOST_TEXT:
            self.file.write(chunk)
        else:
            self.last.append(chunk)
            self.kept += len(chunk)
            while self.kept - len(self.last[0]) > LAST_TEXT:
                self.kept -= len(self.last.popleft())
        self.size += len(chunk)

    def finish(self) -> None:
        """Write the end of what was too much."""
        if self.last:
            self.file.write(b"\n[...]\n" + b"".join(self.last))
            self.last.clear()


class Parts:
    """Runs parts and keeps what comes of them in a folder."""

    def __init__(self, out: Path, environment: dict[str, str], seconds: float | None) -> None:
        self.out, self.started, self.seconds = out, time.monotonic(), seconds
        self.failed = False
        self.environment = {
            **environment,
            "PYTHONUNBUFFERED": "1",
            "MPEMBED_GPU_FIGURES": str(out / "figures.jsonl"),
            "MPEMBED_GPU_TESTS": str(out / "tests.jsonl"),
        }

    def left(self) -> float:
        """Return the seconds that are left of all."""
        if self.seconds is None:
            return float("inf")
        return self.seconds - RESERVE - (time.monotonic() - self.started)

    def share(self, part: Part, later: float) -> float:
        """Return the seconds that a part may take, those after it needing `later`."""
        if self.seconds is None:
            return part.limit
        spare = self.left() - (0 if part.vital else later)
        return min(self.left(), max(part.limit, min(part.limit * part.stretch, spare)))

    def run_all(self, parts: Sequence[Part]) -> None:
        """Run them in order; each has its own limit, and some of what those before it left."""
        for i, part in enumerate(parts):
            limit = self.share(part, sum(other.limit for other in parts[i + 1 :]))
            if limit < 1:
                self.keep(part, "no time left", 0.0)
            else:
                self.run(part, limit)

    def run(self, part: Part, limit: float) -> None:
        """Run one part; at its limit it is interrupted, then killed with all that it started."""
        print(f"== {part.name} (at most {limit:.0f} s)", flush=True)
        start = time.monotonic()
        with (self.out / "log.txt").open("ab", buffering=0) as file:
            file.write(f"\n== {part.name}: {' '.join(part.command)}\n".encode())
            log = Log(file)
            status = self.call(part, limit, log)
            log.finish()
            taken = time.monotonic() - start
            file.write(f"-- {part.name}: {status}, {taken:.1f} s\n".encode())
        self.keep(part, status, taken)

    def call(self, part: Part, limit: float, log: Log) -> int | str:
        """Return the part's exit status, or what else came of it."""
        environment = {**self.environment, "MPEMBED_GPU_PART": part.name}
        try:
            process = subprocess.Popen(
                part.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,  # no session of its own, which would outlive the command's end
            )
        except OSError as error:
            log.add(f"{error}\n".encode())
            return "cannot be started"
        assert process.stdout is not None
        pump = threading.Thread(target=log.pump, args=(process.stdout.fileno(),), daemon=True)
        pump.start()
        try:
            status: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            end(process, signal.SIGINT)
            status = "limit"
        finally:
            end(process, signal.SIGKILL)  # what it left behind, too
        pump.join(GRACE)
        if not pump.is_alive():  # else something that left the group still writes
            process.stdout.close()
        return status

    def keep(self, part: Part, status: int | str, seconds: float) -> None:
        """Keep what came of a part, and report all so far."""
        self.failed |= status != 0
        line = {"part": part.name, "status": status, "seconds": round(seconds, 1)}
        gpu_figures.append(self.out / "parts.jsonl", line)
        print(f"   {part.name}: {gpu_report.status_text(status)}, {seconds:.1f} s", flush=True)
        try:
            gpu_report.write(self.out)
        except Exception:  # what was measured matters more than its table
            traceback.print_exc()


def end(process: subprocess.Popen[Any], number: int) -> None:
    """Signal a process and all that it started; wait a little."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)


def archive(out: Path, more: Sequence[Path], most: int = ARCHIVE_BYTES) -> list[str]:
    """Pack the results, then other files, the smallest first; return what found no room."""
    results = [out / name for name in RESULTS if (out / name).is_file()]
    others = sorted((p for p in more if p.is_file()), key=lambda p: p.stat().st_size)
    left_out, size = [], 0
    part = out / f"{ARCHIVE}.part"
    with tarfile.open(part, "w:gz") as packed:
        for path in [*results, *others]:
            adds = len(zlib.compress(path.read_bytes())) + 2048  # its header and padding too
            if size + adds > most:
                left_out.append(path.name)
                continue
            size += adds
            packed.add(path, arcname=path.name)
    part.replace(out / ARCHIVE)
    return left_out
