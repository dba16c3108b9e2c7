"""``python -m mpembed_dist FILE...``: check source archives and wheels, and print their sizes.

No wheel may name the folders of this project, of Python and for temporary files, or those given
with ``--path``.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

from mpembed_dist import sdist, wheel

ROOT = Path(__file__).resolve().parents[2]


def version(root: Path) -> str:
    """Return the version of the project in `root`."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def own_paths(root: Path) -> list[str]:
    """Return the folders of this machine that a build could have recorded."""
    bases = {sys.prefix, sys.base_prefix, *filter(None, [sysconfig.get_path("include")])}
    # Any program may name /usr and /usr/local.
    kept = sorted(path for path in bases if len(Path(path).parts) > 3)
    return [str(root), *kept, f"{tempfile.gettempdir()}/"]


def check(file: Path, root: Path, paths: list[str]) -> list[str]:
    """Return what is wrong with a source archive or a wheel."""
    if file.name == f"mpembed-{version(root)}.tar.gz":
        return sdist.problems(file, root, sdist.tracked(root))
    if file.name.startswith(f"mpembed-{version(root)}-") and file.suffix == ".whl":
        return wheel.problems(file, root, version(root), paths)
    return [f"is neither a source archive nor a wheel of mpembed {version(root)}"]


def main(arguments: list[str]) -> int:
    """Check the files of the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="mpembed_dist")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--path", action="append", default=[], help="a folder no wheel may name")
    given = parser.parse_args(arguments)
    for file in given.files:
        if not file.is_file():
            parser.error(f"{file} is not a file")
    failed = False
    for file in given.files:
        wrong = check(file, ROOT, [*own_paths(ROOT), *given.path])
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        print(f"{file.name}  {file.stat().st_size / 1e6:.2f} MB  sha256 {digest}")
        for problem in wrong:
            print(f"  {problem}")
        failed |= bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
