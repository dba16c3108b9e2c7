"""The declarations of XLA's C ABI are jaxlib's: sizes, offsets, numbers and signatures."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("jax")

import compilers
import jax
from folders import ROOT

STRUCTS = {  # ours -> XLA's, and the fields of both in pairs
    "Extension": ("XLA_FFI_Extension_Base", "struct_size type next"),
    "Version": (
        "XLA_FFI_Api_Version",
        "struct_size extensions=extension_start major=major_version minor=minor_version",
    ),
    "ErrorArguments": (
        "XLA_FFI_Error_Create_Args",
        "struct_size extensions=extension_start message code=errc",
    ),
    "Buffer": (
        "XLA_FFI_Buffer",
        "struct_size extensions=extension_start type=dtype data rank dims",
    ),
    "Metadata": ("XLA_FFI_Metadata", "struct_size version=api_version traits"),
    "MetadataExtension": ("XLA_FFI_Metadata_Extension", "base=extension_base metadata"),
    "CallFrame": (
        "XLA_FFI_CallFrame",
        "struct_size extensions=extension_start api context=ctx stage arguments=args results=rets",
    ),
    "Api": (
        "XLA_FFI_Api",
        "struct_size extensions=extension_start version=api_version internal=internal_api "
        "create_error=XLA_FFI_Error_Create",
    ),
}
WHOLE = ["Extension", "Version", "ErrorArguments", "Buffer"]  # with nothing behind what is used
NUMBERS = {
    "kMajorVersion": "XLA_FFI_API_MAJOR",
    "kMetadata": "XLA_FFI_Extension_Metadata",
    "kExecute": "XLA_FFI_ExecutionStage_EXECUTE",
    "kBuffer": "XLA_FFI_ArgType_BUFFER",
    "kBuffer ": "XLA_FFI_RetType_BUFFER",
    "kS32": "XLA_FFI_DataType_S32",
    "kS64": "XLA_FFI_DataType_S64",
    "kF32": "XLA_FFI_DataType_F32",
    "kOk": "XLA_FFI_Error_Code_OK",
    "kCancelled": "XLA_FFI_Error_Code_CANCELLED",
    "kInvalidArgument": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
    "kResourceExhausted": "XLA_FFI_Error_Code_RESOURCE_EXHAUSTED",
    "kFailedPrecondition": "XLA_FFI_Error_Code_FAILED_PRECONDITION",
    "kUnimplemented": "XLA_FFI_Error_Code_UNIMPLEMENTED",
    "kInternal": "XLA_FFI_Error_Code_INTERNAL",
}

# A runtime of a few lines: it prints what a handler answers.
MAIN = """
#include <cstdio>
Error* create_error(ErrorArguments* given) {
  std::printf("error %d %s\\n", given->code, given->message);
  return reinterpret_cast<Error*>(given);
}
int body(const CallFrame*, std::string* message) {
  *message = "said";
  return std::puts("called"), kInternal;
}
int main() {
  Api api{};
  api.version = {sizeof(Version), nullptr, 0, 7};
  api.create_error = create_error;
  CallFrame frame{};
  frame.struct_size = sizeof(XLA_FFI_CallFrame);
  frame.api = &api;
  frame.stage = kExecute;
  frame.arguments.struct_size = frame.results.struct_size = sizeof(Values);
  Metadata metadata{};
  MetadataExtension extension{{sizeof(MetadataExtension), kMetadata, nullptr}, &metadata};
  frame.extensions = &extension.base;
  std::printf("%d\\n", handle(&frame, body) == nullptr);
  std::printf("%d.%d\\n", metadata.version.major, metadata.version.minor);
  frame.extensions = nullptr;
  handle(&frame, body);
  frame.results.struct_size += 8;
  handle(&frame, body);
  frame.results.struct_size -= 8;
  api.version.major = 1;
  handle(&frame, body);
  api.version.major = 0;
  stop();
  handle(&frame, body);
}
"""
UNKNOWN = "error 12 mpembed: this jaxlib's interface of foreign functions is not the one"


def program() -> str:
    """Return a program that compiles if both headers say the same."""
    lines = [
        '#include "mpembed/_bindings/xla/handler.h"',
        '#include "xla/ffi/api/c_api.h"',
        "using namespace mpembed_xla;",
        "#define SAME(a, b) static_assert((a) == (b), #a)",
    ]
    for ours, theirs in NUMBERS.items():
        lines.append(f"SAME(static_cast<int>({ours}), static_cast<int>({theirs}));")
    values = ("XLA_FFI_Args", "args"), ("XLA_FFI_Rets", "rets")
    structs = [(ours, theirs, fields) for ours, (theirs, fields) in STRUCTS.items()]
    for theirs, name in values:
        fields = f"struct_size extensions=extension_start size types values={name}"
        structs.append(("Values", theirs, fields))
    for ours, theirs, fields in structs:
        for field in fields.split():
            own, _, other = field.partition("=")
            other = other or own
            lines.append(f"SAME(offsetof({ours}, {own}), offsetof({theirs}, {other}));")
            lines.append(f"SAME(sizeof({ours}::{own}), sizeof({theirs}::{other}));")
        if ours in WHOLE or ours == "Values":
            lines.append(f"SAME(sizeof({ours}), sizeof({theirs}));")
    return "\n".join([*lines, MAIN])


def compile_program(text: str, tmp_path: Path) -> None:
    command = [*compilers.FIRST, "-std=c++17", "-pthread", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{ROOT}", "-isystem", jax.ffi.include_dir(), "-o", str(tmp_path / "abi")]
    compilers.compile_text(command, tmp_path / "abi.cpp", text)


def test_what_is_declared_is_what_jaxlib_has(tmp_path: Path) -> None:
    """And a handler asks of a runtime no more than it has."""
    compile_program(program(), tmp_path)
    lines = compilers.run([tmp_path / "abi"]).splitlines()
    assert lines[:4] == ["1", "0.7", "called", "error 13 said"]
    assert [line.startswith(UNKNOWN) for line in lines[4:6]] == [True, True]
    assert lines[6:] == ["error 1 mpembed: the interpreter ends"]


def test_a_difference_is_found(tmp_path: Path) -> None:
    text = program().replace("XLA_FFI_Buffer, rank)", "XLA_FFI_Buffer, dims)", 1)
    with pytest.raises(AssertionError, match="static assertion failed"):
        compile_program(text, tmp_path)
