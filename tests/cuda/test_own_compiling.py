"""Compilers that are there or not, and the folder that keeps what they have made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import collection, digest, train
from own_optimizers import LION, LION_PARAMETERS, cache_folder, lion, needs_nvrtc

import mpembed as mpe
import mpembed.cuda
from mpembed._bindings import kernels
from mpembed.cuda import _code_cache, _description, _host, _kinds, _nvrtc
from mpembed.cuda._sources import Source

__all__ = ["cache_folder"]

SOURCE = Source("Lion", LION)
MAKE = """
import sys
import numpy as np
import mpembed as mpe
import mpembed.cuda
one = mpe.cuda.Optimizer(open(sys.argv[1]).read(), "Lion", 1, parameters={"beta1": 0, "beta2": 0})
emb = mpe.EmbeddingBagCollection([mpe.TableConfig("t", 9, 5)], optimizer=one)
emb.backward(emb.forward(np.array([1, 2]), np.array([0, 2])))
print(emb.rows("t", np.array([1])).tolist())
"""


def in_a_process(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Make Lion in another process and train a row."""
    (folder / "lion.h").write_text(LION)
    return subprocess.Popen(
        [sys.executable, "-c", MAKE, folder / "lion.h"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
    )


def output(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return out


def compiler_that_counts(folder: Path) -> Path:
    """Return a compiler that leaves a line in a file whenever it compiles."""
    real = shutil.which((_host.compiler() or ["none"])[0])
    script = folder / "counting-g++"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *--version*) ;; *) echo x >> "{folder}/count";; esac\n'
        f'exec "{real}" "$@"\n'
    )
    script.chmod(0o755)
    return script


def count(folder: Path) -> int:
    return len((folder / "count").read_text().splitlines())


def test_what_was_compiled_is_kept_until_something_changes(
    tmp_path: Path, cache_folder: Path
) -> None:
    compiler = str(compiler_that_counts(tmp_path))
    first = output(in_a_process(tmp_path, CXX=compiler))
    assert output(in_a_process(tmp_path, CXX=compiler)) == first
    assert count(tmp_path) == 1
    assert output(in_a_process(tmp_path, CXX=f"{compiler} -DANOTHER")) == first
    assert count(tmp_path) == 2
    assert output(in_a_process(tmp_path, CXX=compiler, MPEMBED_ISA="base")) == first
    assert count(tmp_path) == (3 if mpe.info()["simd"] != "base" else 2)
    assert {path.suffix for path in cache_folder.iterdir()} == {".so"}
    assert cache_folder.stat().st_mode & 0o777 == 0o700


def test_another_version_of_mpembed_compiles_anew(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = _code_cache.kept(".so", {"what": 1}, lambda: b"one")
    assert _code_cache.kept(".so", {"what": 1}, lambda: b"two") == one
    assert one.read_bytes() == b"one"
    monkeypatch.setattr(_code_cache, "__version__", "0.0")
    other = _code_cache.kept(".so", {"what": 1}, lambda: b"two")
    assert other.read_bytes() == b"two"


def test_processes_compile_at_the_same_time(tmp_path: Path, cache_folder: Path) -> None:
    """Each finds a whole file or none, and leaves one."""
    together = [in_a_process(tmp_path) for _ in range(3)]
    assert len({output(process) for process in together}) == 1
    assert [path.suffix for path in cache_folder.iterdir()] == [".so"]


def test_what_fails_leaves_nothing(cache_folder: Path) -> None:
    def interrupted() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _code_cache.kept(".so", {}, interrupted)
    assert list(cache_folder.iterdir()) == []


def test_a_folder_that_others_may_write_to(cache_folder: Path) -> None:
    cache_folder.mkdir()
    cache_folder.chmod(0o777)
    with pytest.raises(OSError, match="may be written by them, so its code is not run: set MPEMB"):
        _code_cache.folder()


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("MPEMBED_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="no folder for compiled code: .*: set MPEMBED_CACHE_DIR"):
        _code_cache.folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _code_cache.folder() == tmp_path / "mpembed"


def test_importing_it_needs_nothing(tmp_path: Path) -> None:
    """No compiler runs, and nothing of CUDA is imported."""
    code = "import sys; sys.modules['cuda'] = None; import mpembed.cuda"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PATH": "", "CXX": "/nowhere"},
        cwd=tmp_path,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process know no optimizer of its own, for as long as a test runs."""
    monkeypatch.setattr(_kinds, "_known", {})


@pytest.fixture
def no_compiler(unknown: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert _host.compiler() is None


def test_without_any_compiler(no_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    words = r"optimizer 'Lion' needs a compiler: for the CPU g\+\+ .* pip install 'mpembed\[cuda\]'"
    with pytest.raises(RuntimeError, match=words):
        lion()


def test_without_a_compiler_for_the_cpu(no_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVRTC says what the struct declares; the CPU is refused before anything is made."""
    registered: list[Any] = []
    monkeypatch.setattr(kernels, "OwnOptimizer", lambda *given: registered.append(given))
    monkeypatch.setattr(_nvrtc, "build", lambda *_: b"\0mpembed-own-optimizer \nend \n\0")
    kind = _kinds.of(Source("Nothing", "struct Nothing {};"))
    assert registered == [("Nothing", [], [], 0, 0)]
    words = r"optimizer 'Nothing' cannot train on the CPU: there was no C\+\+ compiler"
    with pytest.raises(RuntimeError, match=words):
        kind.prepare(mpe.devices.CPU, 8, frozenset(["int8"]))


def test_without_cuda_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(RuntimeError, match="needs cuda-core .* pip install 'mpembed\\[cuda\\]'"):
        _nvrtc.build(SOURCE, "", "sm_90")


@pytest.mark.gpu
def test_a_device_without_cuda_core(cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is made; the CPU trains with it all the same."""
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(RuntimeError, match="pip install 'mpembed\\[cuda\\]'"):
        collection(optimizer=lion(), device=cuda)
    train(collection(optimizer=lion()))


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("long_rows", [False, True])
def test_nvrtc_compiles_it(arch: str, long_rows: bool, cache_folder: Path) -> None:
    unit = SOURCE.for_cuda(frozenset(["int8", "int8_fp16"]), long_rows)
    code = _nvrtc.build(SOURCE, unit, arch)
    assert code.startswith(b"\x7fELF")
    assert b"mpe_own_update\0" in code
    assert b"mpe_own_coefficients\0" in code
    assert _nvrtc.build(SOURCE, unit, arch) == code
    assert [path.suffix for path in cache_folder.iterdir()] == [".cubin"]


@needs_nvrtc
def test_nvrtc_compiles_every_format_at_once() -> None:
    every = SOURCE.for_cuda(frozenset(mpe.registry.FORMATS), False)
    one = SOURCE.for_cuda(frozenset(["int8"]), False)
    assert len(_nvrtc.build(SOURCE, every, "sm_90")) > len(_nvrtc.build(SOURCE, one, "sm_90"))


@needs_nvrtc
def test_nvrtc_reads_the_same_declarations() -> None:
    command = _host.compiler()
    assert command is not None
    described = _description.read("Lion", _nvrtc.build(SOURCE, SOURCE.to_describe(), "sm_80"))
    assert described == _description.read("Lion", _host.build(SOURCE, command).code)
    assert described.parameters == tuple(LION_PARAMETERS)


@needs_nvrtc
def test_nvrtc_names_the_users_lines() -> None:
    lines = LION.splitlines()
    place = next(i for i, line in enumerate(lines, 1) if "const X mixed" in line)
    wrong = Source("Lion", LION.replace("const X mixed", "const Y mixed"))
    unit = wrong.for_cuda(frozenset(["int8"]), False)
    words = f"optimizer 'Lion' does not compile with NVRTC:\n.*Lion\\({place}\\): error"
    with pytest.raises(mpe.cuda.CompileError, match=words):
        _nvrtc.build(wrong, unit, "sm_90")


def test_the_wheel_has_what_is_compiled(package_alone: Path, tmp_path: Path) -> None:
    """The headers of the kernels, and the flags that the package was compiled with."""
    assert output(in_a_process(tmp_path, PYTHONPATH=str(package_alone))) == output(
        in_a_process(tmp_path)
    )


def test_copies_of_a_collection_are_the_same_at_every_level(tmp_path: Path) -> None:
    """What another instruction set's code trains."""
    emb = collection(optimizer=lion(state_precision="bf16"), seed=4)
    train(emb)
    code = (
        "import sys, numpy, mpembed, mpembed.cuda, helpers, own_optimizers as own\n"
        "emb = helpers.collection(optimizer=own.lion(state_precision='bf16'), seed=4)\n"
        "helpers.train(emb); print(mpembed.info()['simd'], helpers.digest(emb))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    for level in ("base", "avx2"):
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, "MPEMBED_ISA": level, "PYTHONPATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[1] == digest(emb)
