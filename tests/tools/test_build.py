"""How the extensions are built: variables, fallback, flags, objects, wheels, facts."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from toolkits import hide_toolkits, make_toolkit

import mpembed
from mpembed_build import architectures, cuda, host, objects, requirements
from mpembed_build.settings import BuildError, CudaSettings, sanitizer_flags
from mpembed_build.toolkit import UnusableError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide_toolkits(monkeypatch, tmp_path / "system")


# ---- variables ----------------------------------------------------------------------------------


def test_settings_by_default_and_in_full() -> None:
    assert CudaSettings.read({"MPEMBED_CUDA": ""}) == CudaSettings("auto", "", (), "static")
    given = {
        "MPEMBED_CUDA": "1",
        "MPEMBED_NVCC": "nvcc-13",
        "MPEMBED_CUDA_ARCHS": "90",
        "MPEMBED_CUDART": "shared",
    }
    expected = CudaSettings("1", "nvcc-13", (architectures.Architecture("90"),), "shared")
    assert CudaSettings.read(given) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MPEMBED_CUDA", "yes", "MPEMBED_CUDA must be auto, 0 or 1, got 'yes'"),
        ("MPEMBED_CUDART", "none", "MPEMBED_CUDART must be static or shared, got 'none'"),
        ("MPEMBED_CUDA_ARCHS", "80;8.6", "MPEMBED_CUDA_ARCHS: '8.6' is none of 90, sm_90"),
    ],
)
def test_wrong_values_are_named(name: str, value: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        CudaSettings.read({name: value})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("80", ["sm_80"]),
        ("80;90", ["sm_80", "sm_90"]),
        (" 80, sm_90a ", ["sm_80", "sm_90a"]),
        ("90+PTX", ["sm_90", "compute_90"]),
        ("compute_80", ["compute_80"]),
        ("80;compute_80;80", ["sm_80", "compute_80"]),
        ("", []),
    ],
)
def test_architectures(text: str, names: list[str]) -> None:
    assert [name for a in architectures.parse(text) for name in a.names()] == names


@pytest.mark.parametrize("text", ["+PTX", "80-virtual", "80+ptx", "8", "compute_80+PTX", "native"])
def test_other_architectures_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        architectures.parse(text)


def test_architecture_flags() -> None:
    both, ptx = architectures.parse("80+PTX;compute_90")
    assert both.flags() == ["-gencode", "arch=compute_80,code=[sm_80,compute_80]"]
    assert ptx.flags() == ["-gencode", "arch=compute_90,code=[compute_90]"]


def test_default_architectures_are_those_the_compiler_knows() -> None:
    def default(*known: str) -> list[str]:
        return [name for a in architectures.choose((), known) for name in a.names()]

    full = default(*architectures.DEFAULT, "87", "121")
    assert full == [f"sm_{number}" for number in architectures.DEFAULT] + ["compute_120"]
    assert default("70", "75", "80") == ["sm_75", "sm_80", "compute_80"]
    with pytest.raises(ValueError, match="knows none of 75"):
        default("70")
    with pytest.raises(ValueError, match="does not know 91"):
        architectures.choose(architectures.parse("90a;91"), ["90"])


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("address,undefined", "-fsanitize=address,undefined"),
        ("undefined, address", "-fsanitize=address,undefined"),
        ("thread", "-fsanitize=thread"),
        ("undefined,thread", "-fsanitize=undefined,thread"),
    ],
)
def test_sanitizers(text: str, flag: str) -> None:
    flags = sanitizer_flags({"MPEMBED_SANITIZE": text})
    assert {"-O1", "-g", "-fno-omit-frame-pointer", flag} <= set(flags)


def test_other_sanitizers_are_refused() -> None:
    assert sanitizer_flags({}) == sanitizer_flags({"MPEMBED_SANITIZE": ""}) == []
    for text in ("memory", "address,", "asan", "address undefined"):
        with pytest.raises(BuildError, match="takes address, undefined, thread, separated by"):
            sanitizer_flags({"MPEMBED_SANITIZE": text})
    with pytest.raises(BuildError, match="address and thread need a build each"):
        sanitizer_flags({"MPEMBED_SANITIZE": "thread,undefined,address"})


# ---- what is built, and with what ---------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a source tree with one kernel, and go there."""
    root = tmp_path / "source"
    for path in (cuda.BINDING, cuda.KERNELS / "a.cu"):
        (root / path).parent.mkdir(parents=True)
        (root / path).touch()
    monkeypatch.chdir(root)
    return root


def prepare(**environment: str) -> cuda.Cuda:
    return cuda.prepare(CudaSettings.read(environment), environment, host.Compiler())


def test_left_out_with_a_reason_or_refused(source: Path) -> None:
    with pytest.raises(UnusableError, match=r"^no nvcc was found$"):
        prepare(PATH="/none")
    with pytest.raises(BuildError, match=r"^MPEMBED_CUDA=1, but no nvcc was found$"):
        prepare(PATH="/none", MPEMBED_CUDA="1")
    with pytest.raises(UnusableError, match="MPEMBED_CUDA was 0"):
        prepare(MPEMBED_CUDA="0")
    (source / cuda.BINDING).unlink()
    with pytest.raises(UnusableError, match="the source has no mpembed/_bindings/cuda.pyx"):
        prepare()
    with pytest.raises(BuildError, match="MPEMBED_CUDA=1, but the source has no"):
        prepare(MPEMBED_CUDA="1")


def test_facts(source: Path, tmp_path: Path) -> None:
    make_toolkit(tmp_path / "system")
    assert prepare(PATH="/none").facts() == {
        "built": True,
        "toolkit": "13.0.88",
        "architectures": ["sm_80", "sm_90", "sm_120", "compute_120"],
        "runtime": "static",
    }
    with pytest.raises(BuildError, match="MPEMBED_CUDA_ARCHS: this nvcc does not know 75"):
        prepare(PATH="/none", MPEMBED_CUDA_ARCHS="75")


def test_flags_and_libraries(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_toolkit(tmp_path / "system")
    monkeypatch.setenv("CXXFLAGS", "-fsanitize=address,undefined")
    flags = prepare(PATH="/none").flags()
    assert {"-fmad=false", "-lineinfo", "--compress-mode=size"} <= set(flags)
    assert "-fsanitize=address\\,undefined" in flags
    assert "all-warnings" not in flags
    monkeypatch.setenv("MPEMBED_WERROR", "1")
    assert {"all-warnings", "-Werror"} <= set(prepare(PATH="/none").flags())
    assert prepare(PATH="/none").libraries()[0].endswith("libcudart_static.a")
    (shared,) = prepare(PATH="/none", MPEMBED_CUDART="shared").libraries()
    assert shared.endswith("libcudart.so.13")


def test_a_sanitized_build_has_its_own_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled after all other flags, and linked, with the sanitizer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXXFLAGS", "-O2")
    plain = host.Compiler().job(Path("a.cpp"), [])
    monkeypatch.setenv("MPEMBED_SANITIZE", "thread")
    compiler = host.Compiler()
    job = compiler.job(Path("a.cpp"), [])
    assert job.target.parent != plain.target.parent
    assert job.command.index("-O1") > job.command.index("-O2")
    for command in (job.command, compiler.link([], []), compiler.link_library("a.so", [], [])):
        assert "-fsanitize=thread" in command


def test_the_table_of_functions_knows_its_architectures(source: Path, tmp_path: Path) -> None:
    nvcc = str(make_toolkit(tmp_path / "system"))
    (source / cuda.KERNELS / cuda.TABLE).touch()
    flag = '-DMPE_CUDA_ARCHS="sm_80 compute_80"'
    other, table = prepare(MPEMBED_NVCC=nvcc, MPEMBED_CUDA_ARCHS="80+PTX").jobs()
    assert flag in table.command
    assert flag not in other.command
    (_, again) = prepare(MPEMBED_NVCC=nvcc, MPEMBED_CUDA_ARCHS="80").jobs()
    assert again.target != table.target


def test_older_compilers_get_no_newer_flags(source: Path, tmp_path: Path) -> None:
    make_toolkit(tmp_path / "system", version="12.4")
    assert "--compress-mode=size" not in prepare(PATH="/none").flags()


def test_objects_do_not_depend_on_where_the_compiler_lies(source: Path, tmp_path: Path) -> None:
    """Nor on the headers beside it, which are gone at the next build."""
    first, second = (make_toolkit(tmp_path / name) for name in "12")
    (job,) = prepare(MPEMBED_NVCC=str(first)).jobs()
    (other,) = prepare(MPEMBED_NVCC=str(second)).jobs()
    assert job.target == other.target
    (newer,) = prepare(MPEMBED_NVCC=str(make_toolkit(tmp_path / "3", "13.1"))).jobs()
    assert newer.target != job.target
    job.target.parent.mkdir(parents=True)
    rule = f"{job.target} : {job.source} \\\n /gone/cuda.h\n"
    job.target.with_suffix(".d").write_text(rule)
    job.target.touch()
    later = time.time_ns() + 10**9
    os.utime(job.target, ns=(later, later))
    assert job.fresh()
    os.utime(job.source, ns=(later + 1, later + 1))
    assert not job.fresh()


def test_threads_follow_the_number_of_files(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = str(make_toolkit(tmp_path / "system"))
    monkeypatch.setenv("MAX_JOBS", "8")
    (job,) = prepare(MPEMBED_NVCC=nvcc).jobs()
    assert "--threads=8" in job.command
    (source / cuda.KERNELS / "b.cu").touch()
    assert all("--threads=4" in job.command for job in prepare(MPEMBED_NVCC=nvcc).jobs())


def test_a_failure_to_compile_stops_the_build(tmp_path: Path) -> None:
    job = objects.Job(Path("a.cu"), tmp_path / "a.o", ["sh", "-c", "echo 'a.cu: oops' >&2; exit 1"])
    with pytest.raises(BuildError, match=r"compiling a\.cu failed:\na\.cu: oops"):
        objects.compile_all([job])


def test_host_compiler() -> None:
    assert cuda.host_compiler(["ccache", "g++-13", "-m64"], {}) == "g++-13"
    assert cuda.host_compiler(["clang++"], {"NVCC_CCBIN": "g++"}) == "g++"


def test_on_macos_one_architecture_is_chosen() -> None:
    assert host.apple_architecture({}) == []
    assert host.apple_architecture({"ARCHFLAGS": "-arch arm64"}) == ["-arch", "arm64"]
    with pytest.raises(BuildError, match="ARCHFLAGS=-arch arm64 -arch x86_64: build for one"):
        host.apple_architecture({"ARCHFLAGS": "-arch arm64 -arch x86_64"})


def test_what_is_compiled_names_no_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where a macro of a header asks for its path."""
    monkeypatch.chdir(tmp_path)
    headers = tmp_path / "headers"
    headers.mkdir()
    (headers / "where.h").write_text("inline const char* where() { return __FILE__; }\n")
    text = "#include <where.h>\nextern const char* here; const char* here = where();\n"
    Path("a.cpp").write_text(text)
    job = host.Compiler().job(Path("a.cpp"), ["-g"], paths=(str(headers),))
    (made,) = objects.compile_all([job])
    data = Path(made).read_bytes()
    assert b"headers/where.h" in data
    assert str(tmp_path).encode() not in data
    elsewhere = host.Compiler().job(Path("a.cpp"), ["-g"], paths=("/elsewhere/headers",))
    assert elsewhere.target == job.target


# ---- the wheels of the compiler -----------------------------------------------------------------


def test_wheels_are_required_only_where_they_are_needed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wheels(**environment: str) -> list[str]:
        return requirements.compiler_wheels({"PATH": "/none", **environment}, source)

    monkeypatch.setattr(requirements, "wheels_exist", lambda: True)
    assert wheels() == wheels(MPEMBED_CUDA="1") == requirements.WHEELS
    assert wheels(MPEMBED_CUDA="0") == []
    assert wheels(MPEMBED_NVCC="/no/nvcc") == []
    with pytest.raises(BuildError):
        wheels(MPEMBED_CUDA="2")
    make_toolkit(tmp_path / "system")
    assert wheels() == []
    assert wheels(MPEMBED_NVCC="pypi") == requirements.WHEELS
    monkeypatch.setattr(requirements, "wheels_exist", lambda: False)
    assert wheels(MPEMBED_NVCC="pypi") == []
    monkeypatch.setattr(requirements, "wheels_exist", lambda: True)
    (source / cuda.BINDING).unlink()
    assert wheels(MPEMBED_NVCC="pypi") == []


def test_wheels_are_of_one_release() -> None:
    assert {wheel.partition("==")[2] for wheel in requirements.WHEELS} == {"13.0.*"}


@pytest.mark.parametrize(
    ("system", "libc", "exist"),
    [
        ("linux-x86_64", "glibc", True),
        ("linux-aarch64", "glibc", True),
        ("linux-x86_64", "", False),
        ("linux-ppc64le", "glibc", False),
        ("macosx-14.0-arm64", "", False),
    ],
)
def test_platforms(system: str, libc: str, exist: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_platform", lambda: system)
    monkeypatch.setattr("platform.libc_ver", lambda: (libc, ""))
    assert requirements.wheels_exist() is exist


# ---- what the package says of it ----------------------------------------------------------------


def test_info_tells_what_the_build_wrote_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = mpembed.info()["cuda"]
    assert set(built) == (
        {"built", "toolkit", "architectures", "runtime"} if built["built"] else {"built", "reason"}
    )
    monkeypatch.setattr(sys.modules["mpembed.devices"], "__file__", str(tmp_path / "devices.py"))
    assert mpembed.info()["cuda"]["reason"] == "not known: the build left no _build_facts.json"
    facts = {"built": False, "reason": "no nvcc was found"}
    (tmp_path / "_build_facts.json").write_text(json.dumps({"cuda": facts}))
    assert mpembed.info()["cuda"] == facts
