"""The search for a CUDA toolkit: its order, what is refused and why, the probe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from toolkits import hide_toolkits, make_toolkit

from mpembed_build import toolkit
from mpembed_build.settings import BuildError, CudaSettings
from mpembed_build.toolkit import UnusableError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide_toolkits(monkeypatch, tmp_path / "system")


def find(tmp_path: Path, **environment: str) -> toolkit.Toolkit:
    settings = CudaSettings.read(environment)
    system = os.environ.get("PATH", os.defpath)
    tools = os.pathsep.join(p for p in system.split(os.pathsep) if not Path(p, "nvcc").exists())
    path = os.pathsep.join(filter(None, [environment.pop("PATH", ""), tools]))
    return toolkit.find(settings, {**environment, "PATH": path}, "g++", tmp_path / "cache.json")


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("own", "cudacxx", "home", "path", "system", "wheel")
    made = {name: make_toolkit(tmp_path / name) for name in names}
    monkeypatch.setattr(toolkit, "wheels", lambda: [made["wheel"]])
    environment = {
        "MPEMBED_NVCC": str(made["own"]),
        "CUDACXX": str(made["cudacxx"]),
        "CUDA_HOME": str(tmp_path / "home"),
        "PATH": str(tmp_path / "path" / "bin"),
    }
    for name, variable in zip(names, [*environment, "system", "wheel"], strict=True):
        found = find(tmp_path, **environment)
        assert found.nvcc == str(made[name])
        environment.pop(variable, None)
        made[name].unlink()
    with pytest.raises(UnusableError, match=r"^no usable nvcc was found: .*wheel.* does not exist"):
        find(tmp_path)


def test_the_wheels_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_toolkit(tmp_path / "system")
    wheel = make_toolkit(tmp_path / "wheel")
    with pytest.raises(UnusableError, match=r"^no nvcc was found$"):
        find(tmp_path, MPEMBED_NVCC="pypi")
    monkeypatch.setattr(toolkit, "wheels", lambda: [wheel])
    assert find(tmp_path, MPEMBED_NVCC="pypi").nvcc == str(wheel)


def test_wheels_lie_on_the_python_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    old = make_toolkit(tmp_path / "nvidia" / "cu9")
    new = make_toolkit(tmp_path / "nvidia" / "cu13")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert toolkit.wheels() == [new, old]


def test_what_a_toolkit_is(tmp_path: Path) -> None:
    nvcc = make_toolkit(tmp_path / "tk")
    found = find(tmp_path, CUDACXX=str(nvcc))
    assert (found.version, found.supported) == ("13.0.88", ("80", "90", "120"))
    assert found.include == (str(tmp_path / "tk" / "include"),)
    assert found.runtime("static") == tmp_path / "tk" / "lib" / "libcudart_static.a"
    assert found.runtime("shared") == tmp_path / "tk" / "lib" / "libcudart.so.13"
    assert found.at_least(12, 8)
    assert not found.at_least(13, 1)


def test_unusable_ones_are_passed_over_and_named(tmp_path: Path) -> None:
    broken = make_toolkit(tmp_path / "a", fault="echo 'ptxas fatal: odd' >&2; exit 1")
    make_toolkit(tmp_path / "b", version="11.8")
    bare = make_toolkit(tmp_path / "c")
    (tmp_path / "c" / "lib" / "libcudart_static.a").unlink()
    environment = {"CUDACXX": str(broken), "CUDA_HOME": str(tmp_path / "b"), "PATH": "none"}
    with pytest.raises(UnusableError) as caught:
        find(tmp_path, **environment, CUDA_PATH=str(tmp_path / "c"))
    reasons = [
        f"{broken} does not work: ptxas fatal: odd (CUDACXX)",
        f"{tmp_path}/b/bin/nvcc is 11.8.88, older than 12.0 (CUDA_HOME)",
        f"{bare} has no libcudart_static.a beside it (CUDA_PATH)",
    ]
    assert str(caught.value) == f"no usable nvcc was found: {'; '.join(reasons)}"
    system = make_toolkit(tmp_path / "system")
    assert find(tmp_path, **environment).nvcc == str(system)


def test_the_one_that_was_named_must_work(tmp_path: Path) -> None:
    make_toolkit(tmp_path / "system")
    with pytest.raises(BuildError, match=r"MPEMBED_NVCC=/no/nvcc: /no/nvcc does not exist"):
        find(tmp_path, MPEMBED_NVCC="/no/nvcc")


def test_the_probe_runs_once_for_a_compiler(tmp_path: Path) -> None:
    nvcc = make_toolkit(tmp_path / "system")
    compiled = nvcc.with_name("compiled")
    for _ in range(2):
        find(tmp_path)
        assert len(compiled.read_text().splitlines()) == 1
    os.utime(nvcc, ns=(1, 1))  # another compiler in its place
    find(tmp_path)
    assert len(compiled.read_text().splitlines()) == 2
    (tmp_path / "cache.json").write_text("no JSON")
    find(tmp_path)
    assert len(compiled.read_text().splitlines()) == 3
