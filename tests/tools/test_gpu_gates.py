"""The gates of the CUDA kernels and the page they keep, without compiling a kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from folders import ROOT

from mpembed_build import host, toolkit
from mpembed_gpu import cubins, gates, page, registry, report, sass, step_page
from mpembed_gpu.devices import DEVICES
from mpembed_gpu.occupancy import LIMITS, resident_warps
from mpembed_gpu.report import Kernel
from mpembed_gpu.scenarios import SCENARIOS

PLAIN = sass.mix(["LDG.E.128", "STG.E", "EXIT"])
GOOD = Kernel("lookup", "bags_kernel<AnyFormat, 8>", "90", 64, 0, 0, 0, PLAIN)
OTHERS = [
    *(
        replace(GOOD, family=title.split()[0], name=title.split(maxsplit=1)[1], registers=32)
        for title in gates.required()
        if title != "lookup bags_kernel<AnyFormat, 8>"
    ),
    *(
        replace(GOOD, family="cache", name=entry.split()[1], registers=40, stack=8)
        for entry in gates.STACK
    ),
]


def test_good_kernels_pass() -> None:
    assert gates.failures([GOOD, *OTHERS]) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stack": 16}, "16 bytes of stack"),
        ({"local": 8}, "8 of local memory"),
        ({"mix": sass.mix(["LDG.E.128", "STL", "LDL"])}, "2 loads and stores of local memory"),
        ({"registers": 160}, "160 registers, at most"),
        ({"registers": 160}, "12 warps a multiprocessor, at least"),
        ({"mix": sass.mix(["LDG.E.64"])}, "no loads of 128 bits"),
        ({"name": "bags_kernel<Other, 8>"}, "no such kernel"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], reason: str) -> None:
    lines = gates.failures([replace(GOOD, **change), *OTHERS])  # type: ignore[arg-type]
    assert any(reason in line and "bags_kernel" in line for line in lines), lines


def test_every_registered_format_optimizer_and_policy_has_its_kernels() -> None:
    required = " ".join(gates.required())
    types = [each.type for each in registry.FORMATS]
    types += [each.type for each in registry.OPTIMIZERS]
    types += [each.type for each in registry.POLICIES]
    assert all(f"<{name}" in required for name in types)
    for title in gates.required()[1:]:
        kernels = [k for k in (GOOD, *OTHERS) if f"{k.family} {k.name}" != title]
        assert gates.failures(kernels) == [f"{title}: no such kernel"]


def test_a_format_is_known_as_soon_as_it_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    include = shutil.copytree(registry.INCLUDE, tmp_path / "mpembed")
    lists = include / "registry.h"
    number = len(registry.FORMATS)
    last = registry.FORMATS[-1]
    line = f"  X({number - 1}, {last.name}, {last.type})"
    text = lists.read_text()
    assert line in text
    lists.write_text(text.replace(line, f"{line} \\\n  X({number}, int3, Int3)"))
    struct = "struct Int3 : Affine<3, HeaderFp16> {};"
    (include / "format" / "int3.h").write_text(struct)
    monkeypatch.setattr(registry, "INCLUDE", include)
    made = registry.read_formats()
    assert made[:-1] == registry.FORMATS
    assert made[-1] == registry.Format("int3", "Int3", 3, 4)
    monkeypatch.setattr(gates, "FORMATS", made)
    assert gates.failures([GOOD, *OTHERS]) == [
        f"{title}: no such kernel" for title in gates.required() if "Int3" in title
    ]
    (include / "format" / "int3.h").write_text("struct Int3 {};")
    with pytest.raises(ValueError, match=r"format/int3\.h is not as"):
        registry.read_formats()


def test_an_allowance_that_is_not_needed_fails() -> None:
    kernels = [GOOD, *(replace(kernel, stack=0) for kernel in OTHERS)]
    found = [line for line in gates.failures(kernels) if "no stack any more" in line]
    assert len(found) == len(gates.STACK)


def test_only_our_kernels_count() -> None:
    name = (
        "void mpembed::cuda::(anonymous namespace)::update_kernel<mpembed::generic::Sgd, (int)32,"
    )
    assert report.short_name(f"{name} (int)2>(int)") == "update_kernel<Sgd, 32, 2>"
    head = "mpembed::cuda::(anonymous namespace)::IsHead<unsigned int>"
    assert report.short_name(f"void cub::detail::select::Kernel<{head}>({head})") == ""


def test_occupancy() -> None:
    assert resident_warps("90", 32, 0) == 64
    assert resident_warps("90", 40, 0) == 48
    assert resident_warps("90", 124, 0) == 16
    assert resident_warps("80", 32, 100_000) == 8
    assert resident_warps("90", 32, 100_000) == 16


HEADER_TEST = """
#include <cuda_runtime_api.h>
#include <cuda_occupancy.h>
#include <cstdio>
#include <initializer_list>
int main() {
  for (int arch : {80, 90, 100}) {
    for (int regs = 16; regs <= 255; regs += 3) {
      for (int shared : {0, 1096, 20000, 100000}) {
        cudaOccDeviceProp p;
        p.computeMajor = arch / 10; p.computeMinor = arch % 10;
        p.maxThreadsPerBlock = 1024; p.maxThreadsPerMultiprocessor = 2048;
        p.regsPerBlock = 65536; p.regsPerMultiprocessor = 65536; p.warpSize = 32;
        p.sharedMemPerMultiprocessor = arch == 80 ? 167936 : 233472;
        p.sharedMemPerBlock = 49152;
        p.sharedMemPerBlockOptin = arch == 80 ? 166912 : 232448;
        p.reservedSharedMemPerBlock = 1024; p.numSms = 108;
        cudaOccFuncAttributes a;
        a.maxThreadsPerBlock = 1024; a.numRegs = regs; a.sharedSizeBytes = 0;
        a.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        a.maxDynamicSharedSizeBytes = p.sharedMemPerBlockOptin;
        cudaOccDeviceState s;
        cudaOccResult r;
        if (cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &a, &s, 256, shared)) return 1;
        std::printf("%d %d %d %d\\n", arch, regs, shared, r.activeBlocksPerMultiprocessor * 8);
      }
    }
  }
}
"""


def test_occupancy_is_that_of_cudas_header(tmp_path: Path) -> None:
    places = [p for x in toolkit.wheels() for p in x.parents[1].glob("include")]
    places += [toolkit.SYSTEM / "include", Path("/usr/include")]
    include = next((p for p in places if (p / "cuda_occupancy.h").is_file()), None)
    if include is None:
        pytest.skip("cuda_occupancy.h is not here")
    (tmp_path / "t.cpp").write_text(HEADER_TEST)
    cxx = host.find_compiler(os.environ)
    command = [*cxx, "-w", f"-I{include}", "t.cpp", "-o", "t"]
    subprocess.run(command, cwd=tmp_path, check=True)
    out = subprocess.run([tmp_path / "t"], capture_output=True, text=True, check=True).stdout
    lines = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert len(lines) == 3 * 80 * 4
    for arch, registers, shared, warps in lines:
        assert resident_warps(str(arch), registers, shared) == warps, (arch, registers, shared)
    assert {str(arch) for arch, *_ in lines} == set(LIMITS)


def test_a_probe_has_one_format() -> None:
    header = (ROOT / "include/mpembed/registry_types.h").read_text()
    text = cubins.single_format(header, "Int4")
    assert "(Int4{});" in text
    assert "MPE_FORMATS(" not in text
    assert "MPE_OPTIMIZERS(MPE_CASE)" in text
    with pytest.raises(ValueError, match="no with_format"):
        cubins.single_format("", "Int4")


def test_the_page_has_a_block_for_each_table() -> None:
    text = (ROOT / page.PAGE).read_text()
    names = ["kernels", "batch", "bus", "summary", *step_page.NAMES]
    names += [scenario.title for scenario in SCENARIOS]
    filled = page.fill(text, {name: f"table of {name}" for name in names}, "99.9")
    assert page.release(filled) == "99.9"
    assert filled.count("\ntable of ") == filled.count("<!-- generated: ") == len(names)
    assert page.difference(text, text) == ""
    assert "+table of kernels" in page.difference(text, filled)
    with pytest.raises(ValueError, match="0 blocks <!-- generated: none -->"):
        page.fill(text, {"none": ""}, "99.9")


def test_what_the_page_says_of_devices_is_what_is_modelled() -> None:
    text = (ROOT / page.PAGE).read_text()
    for device in DEVICES:
        row = next(line for line in text.splitlines() if line.startswith(f"| {device.name} | "))
        cells = [cell.strip() for cell in row.strip("| ").split("|")]
        assert float(cells[1].split()[0]) == device.memory / 1e12
        assert float(cells[2].split()[0]) == device.l2 / 1e12
        assert float(cells[3].split()[0]) == device.bus / 1e9
        assert int(cells[4]) == device.processors
        assert float(cells[5].split()[0]) == device.clock / 1e9
        waits = [float(x) * 1e-9 for x in cells[6].removesuffix(" ns").split(",")]
        assert waits == pytest.approx([device.far, device.cached, device.near])


def test_without_a_compiler_it_says_so(tmp_path: Path) -> None:
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT / "tools"), "MPEMBED_CUDA": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "mpembed_gpu", "check"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "gates of the CUDA kernels: skipped, MPEMBED_CUDA is 0\n"
