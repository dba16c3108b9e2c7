"""The C interface stays what it is: the headers have one digest for each version of it.

Where a test of the digest fails on purpose: raise MPE_API_VERSION if a program that was compiled
before would misbehave (api.h says when). Then put into DIGESTS what this prints in `tests/c_api`:
``PYTHONPATH=../support python -P test_api.py``. It replaces the version's old digest, if there is
one.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from api_header import INCLUDE, table, version, words

LIBRARY = ("api.h", "step.h", "checkpoint.h")  # these declare what the libraries show
HEADERS = ("contract.h", "registry.h", "api_types.h", "api_functions.h", *LIBRARY)
DIGESTS = {5: "5cc36d3794df4da86e1896d1b6562429a0dcfb3f08a4e8d4a22f05b820304aee"}
CUDA_ALONE = {"mpe_cuda_backend", "mpe_cuda_load_optimizer"}  # in the second library


def digest(folder: Path) -> str:
    """Return what every declaration and every number of the interface has a part in."""
    lines = (" ".join([name, *words(folder / name)]) for name in HEADERS)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def functions() -> set[str]:
    """Return the functions that the libraries are to show."""
    text = " ".join(word for name in LIBRARY for word in words(INCLUDE / name))
    return set(re.findall(r"MPE_EXPORT (?!__attribute__)[^;(]*?(\w+) \(", text))


def test_the_interface_is_that_of_its_version() -> None:
    assert digest(INCLUDE) == DIGESTS.get(version()), __doc__


CHANGES = {
    "a field's type": ("api_types.h", "int32_t precision;", "int64_t precision;"),
    "a field more": ("api_types.h", "int32_t ways;", "int32_t ways; int32_t more;"),
    "a field less": ("api_types.h", "uint64_t seed;", ""),
    "a state more": ("contract.h", "MPE_MAX_STATES 2", "MPE_MAX_STATES 3"),
    "fields' order": ("api_types.h", "int64_t num_indices;", ""),
    "a status": ("api_types.h", "MPE_ERR_VALUE = 3", "MPE_ERR_VALUE = 7"),
    "a function less": ("api_functions.h", "MPE_FUNCTION(void, destroy_event, (void* event))", ""),
    "functions' order": ("api_functions.h", "MPE_FUNCTION(void, destroy_event, (void* event))", ""),
    "an argument": ("api_functions.h", "(int32_t* count)", "(int64_t* count)"),
    "a result": ("api_functions.h", "(void, release", "(mpe_status, release"),
    "the table": ("api.h", "const char* level;", "const char* level; int32_t more;"),
    "an argument of the step": ("step.h", "int32_t n,", "int64_t n,"),
    "what a checkpoint tells": ("checkpoint.h", "int32_t rounding;", "int64_t rounding;"),
    "a symbol": ("api.h", "mpe_row_bytes(int32_t precision", "mpe_row_bytes(int64_t precision"),
    "a number": ("contract.h", "MPE_MAX_PINS 127", "MPE_MAX_PINS 63"),
    "a registered number": ("registry.h", "X(1, lfu, Lfu)", "X(2, lfu, Lfu)"),
}


MOVED = {
    "fields' order": "int64_t batch_size;",
    "functions' order": "MPE_FUNCTION(const char*, last_error, (void))",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_changes_the_digest(change: str, tmp_path: Path) -> None:
    name, old, new = CHANGES[change]
    for header in HEADERS:
        shutil.copy(INCLUDE / header, tmp_path)
    text = (tmp_path / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1))
    if change in MOVED:  # and not only left out
        after = MOVED[change]
        assert after in text
        moved = text.replace(old, "", 1).replace(after, f"{after} {old}", 1)
        (tmp_path / name).write_text(moved)
        assert sorted(words(tmp_path / name)) == sorted(words(INCLUDE / name))
    assert digest(tmp_path) != digest(INCLUDE)


def test_words_and_layout_do_not(tmp_path: Path) -> None:
    for header in HEADERS:
        text = (INCLUDE / header).read_text()
        (tmp_path / header).write_text(f"/* {header}:\n */\n\n{text}".replace("  ", "   "))
    assert digest(tmp_path) == digest(INCLUDE)


def test_the_digest_is_of_whole_headers() -> None:
    """What it is made of has not silently become less."""
    assert len(table()) == len(set(table())) > 40
    assert len(functions()) > 30
    types = words(INCLUDE / "api_types.h")
    assert {
        "mpe_table",
        "mpe_state",
        "mpe_cache",
        "mpe_batch",
        "mpe_optimizer",
        "mpe_gradient",
    } <= {*types}
    assert "mpe_backend" in words(INCLUDE / "api.h")
    assert {"MPE_EMPTY_TAG", "MPE_DROPPED"} <= {*words(INCLUDE / "contract.h")}


def test_a_backend_has_all_functions() -> None:
    """Before them lie the version and two texts; none is missing, and nothing else is a pointer."""

    class Backend(ctypes.Structure):
        _fields_ = (
            ("api_version", ctypes.c_int32),
            ("name", ctypes.c_char_p),
            ("level", ctypes.c_char_p),
            ("functions", ctypes.c_void_p * len(table())),
        )

    loaded = ctypes.CDLL(str(library("mpembed")))
    loaded.mpe_cpu_backend.restype = ctypes.POINTER(Backend)
    backend = loaded.mpe_cpu_backend().contents
    assert (backend.api_version, backend.name) == (version(), b"cpu")
    assert all(backend.functions)


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
    sys.stdout.write(f'DIGESTS = {{{version()}: "{digest(INCLUDE)}"}}\n')
