"""Optimizer states: a backend accepts the registered formats and refuses all others."""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from folders import ROOT

import mpembed as mpe
from mpembed import registry
from mpembed._bindings import kernels
from mpembed._bindings.contract import MAX_STATES

HERE = Path(__file__).resolve().parent
INCLUDE = ROOT / "include"
ERR_VALUE = 3
COUNTS = {name: len(kernels.optimizer_states(n)) for name, n in registry.OPTIMIZERS.items()}
STATES = [(name, state) for name, count in COUNTS.items() for state in range(count)]
OTHERS = sorted({-1, 2**31 - 1, *range(len(registry.FORMATS) + 1)})


def registered() -> dict[str, int]:
    """Return MPE_STATE_FORMATS of registry.h."""
    text = (INCLUDE / "mpembed" / "registry.h").read_text()
    body = re.search(r"#define MPE_STATE_FORMATS\(X\)((?:.*\\\n)*.*\n)", text)
    assert body is not None
    return {name: int(number) for number, name in re.findall(r"X\((\d+), (\w+)", body[1])}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return `update_status` of state_format.cpp."""
    out = tmp_path_factory.mktemp("state") / "driver.so"
    command = [*shlex.split(os.environ.get("CXX", "g++")), "-std=c++17", "-fPIC", "-shared"]
    source = HERE / "state_format.cpp"
    subprocess.run([*command, f"-I{INCLUDE}", str(source), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out)).update_status


@pytest.fixture
def status(driver: Any, each_device: str) -> Any:
    """Return what an update says on this device, by optimizer, state and number of its format."""
    name = "kernels" if each_device == "cpu" else "cuda"
    capsule = importlib.import_module(f"mpembed._bindings.{name}").BACKEND
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    backend = ctypes.c_void_p(pointer(capsule, b"mpembed.backend"))
    return lambda optimizer, state, number: driver(
        backend, registry.OPTIMIZERS[optimizer], state, number
    )


def test_the_registered_ones_are_formats() -> None:
    assert registered()
    assert registered().items() <= registry.FORMATS.items()


@pytest.mark.parametrize("number", OTHERS)
@pytest.mark.parametrize(("optimizer", "state"), STATES)
def test_an_update_refuses_any_other_format(
    status: Any, optimizer: str, state: int, number: int
) -> None:
    known = number in registered().values()
    assert status(optimizer, state, number) == (0 if known else ERR_VALUE)


@pytest.mark.parametrize("optimizer", [name for name in COUNTS if COUNTS[name] < MAX_STATES])
def test_the_format_of_a_state_that_is_not_there_does_not_matter(
    status: Any, optimizer: str
) -> None:
    absent = COUNTS[optimizer]
    assert [status(optimizer, absent, number) for number in OTHERS] == [0] * len(OTHERS)


@pytest.mark.parametrize("name", registry.FORMATS)
def test_python_accepts_the_registered_ones(name: str) -> None:
    if name in registered():
        assert [state.precision for state in mpe.Adam(state_precision=name).states] == [name] * 2
    else:
        with pytest.raises(ValueError, match="state_precision"):
            mpe.Adam(state_precision=name)


def test_python_knows_the_same_formats() -> None:
    assert registered() == registry.STATE_FORMATS
