"""The version is written in pyproject.toml, and in CHANGELOG.md beside what changed; only there."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version

from folders import ROOT

import mpembed


def written() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def test_the_installed_version_is_the_written_one() -> None:
    assert mpembed.__version__ == mpembed.info()["version"] == version("mpembed") == written()


def test_the_changelog_begins_with_it() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## (\S+)", text, re.MULTILINE)
    assert first is not None
    assert first[1] == written()


def test_no_source_repeats_it() -> None:
    sources = [ROOT / "setup.py"]
    for folder in ("mpembed", "include", "kernels", "tools"):
        sources += [path for path in (ROOT / folder).rglob("*") if path.suffix not in {".so", ""}]
    made = ROOT / "mpembed" / "cmake" / "mpembedConfigVersion.cmake", ROOT / "mpembed" / "pkgconfig"
    sources = [path for path in sources if not {path, path.parent} & set(made)]  # by the build
    assert len(sources) > 100
    word = re.compile(rf"(?<![\d.]){re.escape(written())}(?![\d.])".encode())
    repeated = [
        str(path.relative_to(ROOT))
        for path in sources
        if path.is_file() and "__pycache__" not in path.parts and word.search(path.read_bytes())
    ]
    assert repeated == []
