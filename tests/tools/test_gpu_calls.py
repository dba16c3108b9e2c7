"""The stub of the CUDA runtime, and what is counted with it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import compilers
import pytest

from mpembed_gpu import calls, stub

REPORT = """call cudaEventRecord 2
call cudaFreeAsync 3
call cudaGetDevice 7
call cudaLaunchKernel 4
call cudaLaunchKernelExC 5
call cudaMallocFromPoolAsync 3
call cudaMemsetAsync 1
call cudaStreamWaitEvent 1
launch _ZN3cub6detail4scan10DeviceScanIjEEvv 4
launch _ZN7mpembed4cuda41_GLOBAL__N__4c112dc9_9_lookup_cu_a774ab9f11keys_kernelIjEEvv 2
launch _ZN7mpembed4cuda41_GLOBAL__N__552a0d38_8_dedup_cu_3d0169ae611load_kernelEv 3
"""


def test_what_is_counted() -> None:
    found = calls.parse(REPORT)
    assert (found.launches, found.of_cub, found.fills) == (9, 4, 1)
    assert set(found.kernels) == {"cub::DeviceScan", "keys_kernel<uint32>", "load_kernel"}
    assert (found.memory, found.events, found.all) == (6, 3, 26)


def test_functions_that_the_stub_defines() -> None:
    source = stub.SOURCE.read_text()
    found = stub.defined(source)
    assert {"cudaMalloc", "__cudaRegisterFunction", "cudaLaunchKernelExC"} <= found
    assert "cudaEventRecord" not in found  # which only counts itself


def headers() -> str:
    """Return the folder of the toolkit's headers; skip without."""
    for folder in (Path("/usr/local/cuda/include"), Path("/usr/include")):
        if (folder / "cuda_runtime_api.h").is_file():
            return str(folder)
    pytest.skip("there is no CUDA toolkit")


PROGRAM = """
extern "C" {
int cudaMalloc(void**, unsigned long);
int cudaMemcpy(void*, const void*, unsigned long, int);
int cudaEventRecord(void*, void*);
int cudaFree(void*);
int use(char* host) {
  void* memory;
  return cudaMalloc(&memory, 1UL << 42) + cudaMemcpy(host, memory, 3, 2) +
         cudaEventRecord(nullptr, nullptr) + cudaFree(memory);
}
}
"""


def test_a_program_on_the_stub(tmp_path: Path) -> None:
    """Memory is as much as one likes, and zero; functions that nobody wrote are counted too."""
    include, soname = headers(), "libcudart.so.13"
    names = ["cudaMalloc", "cudaMemcpy", "cudaEventRecord", "cudaFree"]
    versions, stand_in = tmp_path / "versions.map", tmp_path / "stand_in.cpp"
    versions.write_text(f"{soname} {{ global: cuda*; }};")
    stand_in.write_text("".join(f'extern "C" int {name}() {{ return 1; }}\n' for name in names))
    program = tmp_path / "program.cpp"
    program.write_text(PROGRAM)
    shared = [*compilers.FIRST, "-shared", "-fPIC"]
    real, user = tmp_path / soname, tmp_path / "user.so"
    link = [f"-Wl,-soname,{soname}", f"-Wl,--version-script={versions}"]
    compilers.run([*shared, *link, str(stand_in), "-o", str(real)])
    compilers.run([*shared, str(program), str(real), "-o", str(user)])
    assert stub.needed(user) == dict.fromkeys(names, soname)
    folder = stub.build(compilers.FIRST, [include], [user], tmp_path / "stub")
    runtime: Any = ctypes.CDLL(str(folder / soname))
    made: Any = ctypes.CDLL(str(user))  # finds the library of that name, which is loaded
    host = ctypes.create_string_buffer(b"xyz")
    assert made.use(host) == 0
    assert host.raw == b"\0\0\0\0"
    runtime.stub_report.restype = ctypes.c_char_p
    found = calls.parse(runtime.stub_report().decode())
    assert found.calls == dict.fromkeys(names, 1)
    runtime.stub_reset()
    assert runtime.stub_report() == b""
