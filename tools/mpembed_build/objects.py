"""Objects in ``build/objs``; an object is compiled again only when its sources have changed."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mpembed_build.settings import BuildError

BUILD = Path("build")  # relative to the root of the project, where builds run


@dataclass(frozen=True)
class Job:
    """A source file, its object and the command that compiles it.

    With `own`, only changes of the project's own headers count. The others belong to a toolkit: its
    release is part of the object's key, and its folder may no longer exist at the next build.
    """

    source: Path
    target: Path
    command: list[str]
    own: bool = False

    def fresh(self) -> bool:
        """Return whether the object is newer than all its sources."""
        try:
            made = self.target.stat().st_mtime_ns
            files = prerequisites(self.target.with_suffix(".d"))
            if self.own:
                files = [path for path in files if not path.is_absolute()]
            return all(path.stat().st_mtime_ns < made for path in files)
        except FileNotFoundError:
            return False

    def run(self) -> str:
        """Compile; return an error message, empty on success."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.target.unlink(missing_ok=True)
        start = time.time_ns()
        sys.stdout.write(shlex.join(self.command) + "\n")
        done = subprocess.run(self.command, stderr=subprocess.PIPE, text=True)
        sys.stderr.write(done.stderr)
        if done.returncode:
            return f"compiling {self.source} failed:\n{done.stderr}"
        os.utime(self.target, ns=(start, start))  # edits made meanwhile must look newer
        return ""


def prerequisites(rule: Path) -> list[Path]:
    """Return the files that a compiler's dependency file names."""
    text = rule.read_text().replace("\\\n", " ")
    return [Path(path) for path in shlex.split(text.partition(": ")[2])]


def target(source: Path, key: Iterable[str], level: str = "") -> Path:
    """Return the object of a source file compiled under a key."""
    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
    stem = "-".join([*source.with_suffix("").parts, *filter(None, [level])])
    return BUILD / "objs" / digest / f"{stem}.o"


def compilers() -> int:
    """Return how many compilers may run at the same time."""
    return int(os.environ.get("MAX_JOBS", "2"))


def compile_all(jobs: Sequence[Job]) -> list[str]:
    """Bring all objects up to date and return their paths."""
    stale = [job for job in jobs if not job.fresh()]
    with ThreadPoolExecutor(compilers()) as pool:
        errors = [error for error in pool.map(Job.run, stale) if error]
    if errors:
        raise BuildError("\n".join(errors))
    return [str(job.target) for job in jobs]
