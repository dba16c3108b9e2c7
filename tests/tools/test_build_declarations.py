"""What Cython is told of the C interface is what its headers say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from folders import ROOT

from mpembed_build import declarations
from mpembed_build.settings import BuildError

INCLUDE = ROOT / "include"


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    """Return a copy of the headers."""
    return shutil.copytree(INCLUDE, tmp_path / "include") / "mpembed"


def change(header: Path, old: str, new: str) -> None:
    text = header.read_text()
    assert old in text
    header.write_text(text.replace(old, new, 1))


def test_functions_stand_in_the_order_of_the_table() -> None:
    listed = (INCLUDE / "mpembed" / "api_functions.h").read_text()
    names = re.findall(r"^MPE_FUNCTION\([^,]+, (\w+),", listed, re.MULTILINE)
    written = declarations.declarations(INCLUDE / "mpembed")
    _, table = written.split("ctypedef struct mpe_backend:")
    assert re.findall(r"\(\*(\w+)\)\(", table) == names
    assert len(names) > 40


@pytest.mark.parametrize(
    "line",
    [
        "    const unsigned long long MPE_DROPPED",
        "    const int MPE_API_VERSION",
        "    ctypedef enum mpe_status:\n        MPE_OK\n        MPE_ERR_INDEX",
        "    ctypedef struct mpe_matrix:\n        void* data\n        int64_t stride",
        "        double values[MPE_MAX_PARAMETERS]",
        "        mpe_state states[MPE_MAX_STATES]",
        "        char name[256]",
        "        const mpe_table* device_tables",
        "        int32_t api_version\n        const char* name\n        const char* level\n"
        "        mpe_status (*device_count)(int32_t*) noexcept nogil",
        "        const char* (*last_error)() noexcept nogil",
        "        mpe_status (*copy)(void*, const void*, int64_t, void*) noexcept nogil",
        "        mpe_status (*allocate)(int64_t, int32_t, void**) noexcept nogil",
        "    const mpe_backend* mpe_cpu_backend() noexcept",
        "    int64_t mpe_row_bytes(int32_t, int64_t) noexcept",
        "    ctypedef struct mpe_open_batch:\n        pass",
        "    mpe_status mpe_admit(mpe_open_batch*, void*) noexcept",
    ],
)
def test_what_is_declared(line: str) -> None:
    assert f"\n{line}\n" in declarations.declarations(INCLUDE / "mpembed")


def test_numbers_have_names_in_python() -> None:
    written = declarations.numbers(INCLUDE / "mpembed")
    assert "    const unsigned long long MPE_MAX_PINS\n" in written
    assert "\nMAX_PINS = MPE_MAX_PINS\n" in written
    stub = (ROOT / "mpembed" / "_bindings" / "contract.pyi").read_text().splitlines()
    assert stub == [f"{name}: int" for name in re.findall(r"^(\w+) = ", written, re.MULTILINE)]


def test_what_is_new_in_the_headers_is_declared(headers: Path) -> None:
    change(
        headers / "contract.h", "#define MPE_MAX_SEED", "#define MPE_NEW 7\n#define MPE_MAX_SEED"
    )
    change(headers / "api_types.h", "int64_t stride;", "int64_t stride; /* a; b */ double more;")
    change(headers / "api_functions.h", "MPE_FUNCTION(void, destroy_event", "MPE_FUNCTION(int64_t, "
           "new_one, (const float* x,\n  double))\nMPE_FUNCTION(void, destroy_event")  # fmt: skip
    written = declarations.declarations(headers)
    assert "        int64_t stride\n        double more\n" in written
    assert "        int64_t (*new_one)(const float*, double) noexcept nogil\n" in written
    assert "\nNEW = MPE_NEW\n" in declarations.numbers(headers)


@pytest.mark.parametrize(
    ("header", "old", "new", "problem"),
    [
        ("api_types.h", "typedef struct mpe_matrix", "union odd {};\ntypedef struct mpe_matrix",
         "api_types.h: not understood: union odd"),
        ("api_types.h", "MPE_OK = 0", "MPE_OK = 1 << 2", "api_types.h: not understood: MPE_OK = 1"),
        ("api.h", "MPE_EXPORT int32_t mpe_state_shape", "int32_t mpe_state_shape",
         "api.h: not understood: int32_t mpe_state_shape"),
        ("api_functions.h", "MPE_FUNCTION(void, destroy_event", "MPE_FUNCTION(destroy_event",
         "api_functions.h: not understood: MPE_FUNCTION(destroy_event"),
        ("api_functions.h", "(void** out))", "(void (*f)(int)))",
         "api_functions.h: not understood: MPE_FUNCTION(mpe_status, create_event"),
        ("api_functions.h", "MPE_FUNCTION(void, destroy_event", "#if 0\nMPE_FUNCTION(void, x",
         "api_functions.h: not understood: #if 0"),
        ("api_functions.h", "(int32_t* count)", "(unsigned int count)",
         "api.h: not understood: unsigned int count"),
        *(("contract.h", "#define MPE_MAX_PINS 127", line, f"contract.h: not understood: {line}")
          for line in ("static const int MPE_MAX_PINS = 127;", "#define MAX_PINS 127",
                       "#define MPE_MAX_PINS (-1)", "#define MPE_MAX_PINS 0.5",
                       "#define MPE_MAX_PINS \"127\"", "#define MPE_MAX_PINS(x) 127",
                       "#if 1", "# define MPE_MAX_PINS 127")),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_an_error(
    headers: Path, header: str, old: str, new: str, problem: str
) -> None:
    change(headers / header, old, new)
    with pytest.raises(BuildError, match=re.escape(problem)):
        declarations.declarations(headers)


def test_files_are_written_where_they_differ(tmp_path: Path) -> None:
    declarations.write(INCLUDE, tmp_path)
    pxd, pxi = tmp_path / declarations.PXD, tmp_path / declarations.PXI
    before = pxd.stat().st_mtime_ns
    pxi.write_text("old")
    declarations.write(INCLUDE, tmp_path)
    assert pxd.stat().st_mtime_ns == before
    assert pxi.read_text() == declarations.numbers(INCLUDE / "mpembed")
