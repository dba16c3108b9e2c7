"""The declarations of DLPack are those of the header that others compile with."""

from __future__ import annotations

import re
from pathlib import Path

import compilers
import pytest
from folders import ROOT

from mpembed_build.host import package_directory

OURS = ROOT / "mpembed" / "_bindings" / "dlpack_abi.h"
STRUCTS = (
    "DLPackVersion",
    "DLDevice",
    "DLDataType",
    "DLTensor",
    "DLManagedTensor",
    "DLManagedTensorVersioned",
    "DLPackExchangeAPIHeader",
    "DLPackExchangeAPI",
)


def theirs() -> Path:
    """Return the DLPack header of Arrow, which has DLPack 1.0 and later."""
    return package_directory("pyarrow") / "include" / "arrow" / "c" / "dlpack_abi.h"


def fields(text: str, struct: str) -> list[str]:
    """Return the fields of a struct in a header, in order."""
    body = re.search(rf"typedef struct[^;{{]*\{{((?:(?!typedef).)*?)\n\}} {struct};", text, re.S)
    if body is None:
        return []
    plain = re.sub(r"/\*.*?\*/", "", body[1], flags=re.S)
    members = re.sub(r"\((?!\*)[^()]*(?:\([^()]*\)[^()]*)*\)", "", plain).split(";")
    return [found[-1] for one in members if (found := re.findall(r"\w+", one))]


def numbers(text: str) -> list[str]:
    """Return the names of the header's numbers."""
    return re.findall(r"^  (\w+) = ", text, re.M)


def program(ours: str) -> str:
    """Return a program that compiles where both headers agree on all that ours has."""
    lines = ["#include <cstddef>", "#include <cstdint>", "namespace ours {", ours, "}"]
    # Theirs has macros of the same names.
    for name in numbers(ours):
        lines.append(f"constexpr auto own_{name} = static_cast<unsigned long>(ours::{name});")
    lines += ["namespace theirs {", f'#include "{theirs()}"', "}"]
    for name in numbers(ours):
        value = name if name.startswith("DLPACK_") else f"theirs::{name}"
        lines.append(f'static_assert(own_{name} == {value}, "{name}");')
    text = theirs().read_text()
    for struct in STRUCTS:
        if f"}} {struct};" not in text:  # newer than Arrow's
            continue
        lines.append(f'static_assert(sizeof(ours::{struct}) == sizeof(theirs::{struct}), "");')
        for field in fields(ours, struct):
            offsets = (f"offsetof({where}::{struct}, {field})" for where in ("ours", "theirs"))
            lines.append(f'static_assert({" == ".join(offsets)}, "{struct}.{field}");')
    return "\n".join([*lines, "int main() {}", ""])


def compile_text(text: str, folder: Path) -> None:
    command = [*compilers.FIRST, "-std=c++17", "-fsyntax-only"]
    compilers.compile_text(command, folder / "program.cpp", text)


def test_the_declarations_agree(tmp_path: Path) -> None:
    text = program(OURS.read_text())
    assert text.count("static_assert") > 30
    compile_text(text, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kDLCUDAManaged = 13", "kDLCUDAManaged = 14"),
        ("IS_COPIED = 2", "IS_COPIED = 4"),
        ("uint64_t flags;\n  DLTensor dl_tensor;", "DLTensor dl_tensor;\n  uint64_t flags;"),
        ("uint16_t lanes;", "uint32_t lanes;"),
    ],
)
def test_a_change_does_not_compile(old: str, new: str, tmp_path: Path) -> None:
    ours = OURS.read_text()
    assert old in ours
    with pytest.raises(AssertionError):
        compile_text(program(ours.replace(old, new)), tmp_path)
