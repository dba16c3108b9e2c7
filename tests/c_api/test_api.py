"""The C interface stays what it is: declarations, numbers and symbols against a checked-in list.

Where a test fails on purpose: raise MPE_API_VERSION if a program that was compiled before would
misbehave (api.h says when), then, in `tests/c_api`,
``PYTHONPATH=../support python -P test_api.py >api.txt``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from folders import ROOT

INCLUDE = ROOT / "include" / "mpembed"
LIST = Path(__file__).with_name("api.txt")
CUDA_ALONE = {"mpe_cuda_backend"}  # in the second library


def without_comments(path: Path) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text(), flags=re.DOTALL)


def declarations() -> list[str]:
    """Return the structs, enums and functions of the C API, a line each and a line a member."""
    text = without_comments(INCLUDE / "api_types.h") + without_comments(INCLUDE / "api.h")
    text = re.sub(r"\\\n", " ", text)
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    text = re.sub(r'extern "C" \{|^\s*\}\s*$', "", text, flags=re.MULTILINE)
    parts = re.findall(r"[^;{}]*(?:\{|;|\}[^;]*;)", text)
    lines = [re.sub(r"\s+", " ", part).strip() for part in parts]
    return [line for line in lines if line]


def defines() -> list[str]:
    """Return the constants: those of the C API and the lists of names behind its numbers."""
    text = without_comments(INCLUDE / "api_types.h") + without_comments(INCLUDE / "api.h")
    values = re.findall(r"#define (MPE_(?!ENUM|EXPORT)\w+) (.+)", text)
    lists = re.findall(
        r"#define MPE_(\w+)\(X\)((?:.*\\\n)*.*\n)", (INCLUDE / "registry.h").read_text()
    )
    entries = [(name, re.findall(r"X\((\d+), (\w+)", body)) for name, body in lists]
    return [f"{name} {value.strip()}" for name, value in values] + [
        f"{name}: {' '.join(f'{number}={entry}' for number, entry in found)}"
        for name, found in entries
    ]


def as_it_is() -> str:
    return "\n".join([*defines(), "", *declarations(), ""])


def functions() -> set[str]:
    """Return the functions that the header declares."""
    exported = [line for line in declarations() if line.startswith("MPE_EXPORT")]
    return {str(re.findall(r"(\w+)\(", line)[0]) for line in exported}


def table() -> list[str]:
    """Return the members of the function table that are functions, in order."""
    text = without_comments(INCLUDE / "api.h")
    body = re.search(r"typedef struct mpe_backend \{(.*?)\n\}", text, re.DOTALL)
    assert body is not None
    return re.findall(r"\(\*(\w+)\)", body.group(1))


def test_the_interface_is_the_checked_in_one() -> None:
    assert as_it_is().splitlines() == LIST.read_text().splitlines()


def test_the_list_holds_everything() -> None:
    """What the list is made of has not silently become less."""
    text = LIST.read_text()
    assert re.search(r"^MPE_API_VERSION \d+$", text, re.MULTILINE)
    for name in ("mpe_table", "mpe_cache", "mpe_batch", "mpe_backend", "mpe_optimizer"):
        assert f"typedef struct {name} {{" in text
    assert len(table()) > 40
    assert len(functions()) > 8
    assert all(f"(*{name})(" in text for name in table())
    assert all(f" {name}(" in text or f"*{name}(" in text for name in functions())
    assert "FORMATS: 0=fp32 1=fp16" in text


def test_the_tables_order_stands_in_one_order_everywhere() -> None:
    """The backends fill it by position, where neighbours may have one type."""
    entries = re.sub(r"//.*", "", (ROOT / "kernels" / "entries.inc").read_text())
    assert [word for word in re.split(r"[,\s]+", entries) if word] == table()
    pxd = (ROOT / "mpembed" / "_bindings" / "api.pxd").read_text()
    assert re.findall(r"\(\*(\w+)\)\(", pxd) == table()


def exported(library: Path) -> set[str]:
    """Return what a library shows to the linker."""
    mac = sys.platform == "darwin"
    command = ["nm", "-gU"] if mac else ["nm", "-D", "--defined-only"]
    done = subprocess.run([*command, str(library)], capture_output=True, text=True, check=True)
    names = [line.split()[-1].removeprefix("_" if mac else "") for line in done.stdout.splitlines()]
    return set(names)


def library(name: str) -> Path:
    import mpembed

    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    return Path(mpembed.get_cmake_dir()).parent / "lib" / f"lib{name}{suffix}"


def test_the_library_shows_the_headers_functions_and_nothing_else() -> None:
    assert exported(library("mpembed")) == functions() - CUDA_ALONE


def test_so_does_the_one_for_cuda() -> None:
    if not library("mpembed_cuda").exists():
        pytest.skip("this build has no CUDA")
    assert exported(library("mpembed_cuda")) == CUDA_ALONE


if __name__ == "__main__":
    sys.stdout.write(as_it_is())
