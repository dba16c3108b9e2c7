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
        "struct_size extensions=extension_start api context=ctx stage arguments=args results=rets "
        "attributes=attrs",
    ),
    "Attributes": (
        "XLA_FFI_Attrs",
        "struct_size extensions=extension_start size types names values=attrs",
    ),
    "Text": ("XLA_FFI_ByteSpan", "begin=ptr size=len"),
    "Scalar": ("XLA_FFI_Scalar", "type=dtype value"),
    "StreamArguments": (
        "XLA_FFI_Stream_Get_Args",
        "struct_size extensions=extension_start context=ctx stream",
    ),
    "DeviceArguments": (
        "XLA_FFI_DeviceOrdinal_Get_Args",
        "struct_size extensions=extension_start context=ctx device=device_ordinal",
    ),
    "Api": (
        "XLA_FFI_Api",
        "struct_size extensions=extension_start version=api_version internal=internal_api "
        "create_error=XLA_FFI_Error_Create get_stream=XLA_FFI_Stream_Get "
        "get_device=XLA_FFI_DeviceOrdinal_Get",
    ),
}
WHOLE = [  # with nothing behind what is used
    "Extension", "Version", "ErrorArguments", "Buffer", "Values", "Attributes", "Text", "Scalar",
    "StreamArguments", "DeviceArguments",
]  # fmt: skip
NUMBERS = {
    "kMajorVersion": "XLA_FFI_API_MAJOR",
    "kMetadata": "XLA_FFI_Extension_Metadata",
    "kExecute": "XLA_FFI_ExecutionStage_EXECUTE",
    "kBuffer": "XLA_FFI_ArgType_BUFFER",
    "kBuffer ": "XLA_FFI_RetType_BUFFER",
    "kScalar": "XLA_FFI_AttrType_SCALAR",
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
Error* get_stream(StreamArguments* given) {
  given->stream = &given->stream;
  return nullptr;
}
Error* get_device(DeviceArguments* given) { return given->device = 5, nullptr; }
Error* no_device(DeviceArguments*) {
  ErrorArguments made{sizeof(ErrorArguments), nullptr, "no device", kInternal};
  return create_error(&made);
}
int body(const CallFrame* frame, const Place* place, std::string* message) {
  *message = "said";
  std::printf("called on %d, stream %d, %d %d\\n", place->device, place->stream != nullptr,
              static_cast<int>(number_attribute(frame, "key")),
              static_cast<int>(number_attribute(frame, "other")));
  return kInternal;
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
  std::printf("%d\\n", handle(&frame, false, body) == nullptr);
  std::printf("%d.%d %u\\n", metadata.version.major, metadata.version.minor, metadata.traits);
  frame.extensions = nullptr;
  handle(&frame, false, body);
  frame.results.struct_size += 8;
  handle(&frame, false, body);
  frame.results.struct_size -= 8;
  api.version.major = 1;
  handle(&frame, false, body);
  api.version.major = 0;
  handle(&frame, true, body);  // an Api that ends before get_device
  api.struct_size = sizeof(XLA_FFI_Api);
  api.get_stream = get_stream;
  api.get_device = get_device;
  int64_t value = 77;
  Scalar scalar{kS64, &value}, narrow{kS32, &value};
  Text key{"key", 3}, keys{"keys", 4}, other{"other", 5};
  Text* names[] = {&keys, &key, &other};
  int types[] = {kScalar, kScalar, kScalar};
  void* values[] = {&narrow, &scalar, &narrow};
  frame.attributes = {sizeof(Attributes), nullptr, 3, types, names, values};
  handle(&frame, true, body);
  api.get_device = no_device;
  handle(&frame, true, body);
  stop();
  handle(&frame, false, body);
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
        if ours in WHOLE:
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
    assert lines[:2] == ["1", "0.7 0"]  # without a trait: never in a command buffer
    assert lines[2:4] == ["called on -1, stream 0, -1 -1", "error 13 said"]
    assert [line.startswith(UNKNOWN) for line in lines[4:7]] == [True] * 3
    assert lines[7:9] == ["called on 5, stream 1, 77 -1", "error 13 said"]
    assert lines[9:] == ["error 13 no device", "error 1 mpembed: the interpreter ends"]


def test_a_difference_is_found(tmp_path: Path) -> None:
    text = program().replace("XLA_FFI_Buffer, rank)", "XLA_FFI_Buffer, dims)", 1)
    with pytest.raises(AssertionError, match="static assertion failed"):
        compile_program(text, tmp_path)
