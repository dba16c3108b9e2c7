"""What the C API's headers say: its version, and the functions of a backend."""

from __future__ import annotations

import re
from pathlib import Path

from folders import ROOT

INCLUDE = ROOT / "include" / "mpembed"


def words(header: Path) -> list[str]:
    """Return a header without comments and without its layout."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", header.read_text(), flags=re.DOTALL)
    return re.findall(r"\w+|[^\w\s]", text.replace("\\\n", " "))


def version() -> int:
    """Return MPE_API_VERSION."""
    found = re.search(r"#define MPE_API_VERSION (\d+)", (INCLUDE / "api.h").read_text())
    assert found is not None
    return int(found[1])


def table() -> list[str]:
    """Return the functions of a backend, in order."""
    text = " ".join(words(INCLUDE / "api_functions.h"))
    return re.findall(r"MPE_FUNCTION \( [^,()]+ , (\w+) , \(", text)
