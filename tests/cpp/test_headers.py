"""Headers compile alone and without a warning by every compiler; rows by headers alone."""

from __future__ import annotations

import ctypes
import inspect
import os
import re
from pathlib import Path
from typing import Any

import compilers
import numpy as np
import pytest
from compilers import NVCC, NVCC_FLAGS, WARNINGS
from folders import ROOT
from reference.rounding import DOMAIN_ROW, draws16

import mpembed as mpe
from mpembed._bindings import kernels
from mpembed._bindings.contract import MAX_STATES
from mpembed.registry import FORMATS, OPTIMIZERS, STATE_ELEMENT, WEIGHT_DECAYS

INCLUDE = ROOT / "include"
HEADERS = sorted(str(path.relative_to(INCLUDE)) for path in INCLUDE.rglob("*.h"))
PLAIN_C = ("api", "api_types", "checkpoint", "contract", "registry", "step")
WITH_ALL_OTHERS = {"mpembed/api.h", "mpembed/registry_types.h"}  # what these include
CXX = {name: [*command, "-std=c++17"] for name, command in compilers.CXX.items()}
CC = [*os.environ.get("CC", "gcc").split(), "-std=c11"]


def compile_text(command: list[str], source: Path, text: str, *flags: str) -> None:
    """Compile a source file that holds `text`; the compiler's words are the failure's."""
    compilers.compile_text(command, source, text, *WARNINGS, f"-I{INCLUDE}", *flags)


def test_there_are_headers() -> None:
    assert {"mpembed/api.h", "mpembed/registry.h", "mpembed/philox.h"} <= set(HEADERS)


@pytest.mark.parametrize("compiler", CXX)
@pytest.mark.parametrize("header", HEADERS)
def test_header_compiles_alone(header: str, compiler: str, tmp_path: Path) -> None:
    # Twice, since an include guard that does not match guards nothing.
    text = f'#include "{header}"\n#include "{header}"\n'
    compile_text(CXX[compiler], tmp_path / "alone.cpp", text, "-fsyntax-only")


@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
@pytest.mark.parametrize(
    "header",
    [
        header if header in WITH_ALL_OTHERS else pytest.param(header, marks=pytest.mark.exhaustive)
        for header in HEADERS
    ],
)
def test_header_compiles_alone_by_nvcc(header: str, tmp_path: Path) -> None:
    """For the device and for the host, in one pass."""
    (tmp_path / "alone.cu").write_text(f'#include "{header}"\n#include "{header}"\n')
    made = ["-c", tmp_path / "alone.cu", "-o", tmp_path / "alone.o"]
    compilers.run([str(NVCC), *NVCC_FLAGS, "-arch=sm_80", f"-I{INCLUDE}", *made])


@pytest.mark.parametrize("header", [f"mpembed/{name}.h" for name in PLAIN_C])
def test_the_c_headers_are_plain_c(header: str, tmp_path: Path) -> None:
    text = f'#include "{header}"\n#include "{header}"\ntypedef int not_empty;\n'
    compile_text(CC, tmp_path / "plain.c", text, "-fsyntax-only")


@pytest.mark.parametrize("compiler", CXX)
def test_all_headers_in_two_units_of_one_program(compiler: str, tmp_path: Path) -> None:
    """A function that is not inline would be defined twice."""
    everything = "".join(f'#include "{header}"\n' for header in HEADERS)
    one = str(tmp_path / "one.o")
    compile_text(CXX[compiler], tmp_path / "one.cpp", everything, "-c", "-o", one)
    text = f"{everything}int main() {{ return 0; }}\n"
    compile_text(CXX[compiler], tmp_path / "two.cpp", text, one, "-o", str(tmp_path / "p"))


@pytest.fixture(scope="module", params=list(CXX))
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Functions of the headers, compiled without the package."""
    out = tmp_path_factory.mktemp("headers") / "alone.so"
    source = Path(__file__).parent / "headers_driver.cpp"
    flags = ["-O1", "-ffp-contract=off", "-shared", "-fPIC", f"-I{INCLUDE}"]
    compilers.run([*CXX[request.param], *WARNINGS, *flags, source, "-o", out])
    return ctypes.CDLL(str(out))


def address(a: np.ndarray[Any, Any] | None) -> ctypes.c_void_p | None:
    return None if a is None else ctypes.c_void_p(a.ctypes.data)


@pytest.mark.parametrize("precision", list(FORMATS))
@pytest.mark.parametrize("dim", [1, 7, 16, 50])
def test_rows_by_the_headers_alone(alone: ctypes.CDLL, precision: str, dim: int) -> None:
    """One value at a time they give the bytes that kernels give in vectors."""
    number = ctypes.c_int32(FORMATS[precision])
    x = np.random.default_rng(dim).standard_normal((3, dim)).astype(np.float32)
    x[1] = x[1, 0]
    for rounding in ("stochastic", "nearest"):
        rows = mpe.ops.quantize(x, precision, rounding=rounding, seed=5, step=6)
        for i in range(3):
            drawn = draws16(5, DOMAIN_ROW, 0, [i], dim, 6)[0].astype(np.uint16)
            draws = drawn if rounding == "stochastic" else None
            row, values = np.zeros_like(rows[i]), np.empty(dim, np.float32)
            alone.encode_row(
                number, address(x[i]), ctypes.c_int64(dim), address(row), address(draws)
            )
            alone.decode_row(number, address(row), ctypes.c_int64(dim), address(values))
            assert row.tobytes() == rows[i].tobytes()
            decoded = mpe.ops.dequantize(rows[i : i + 1], precision, dim)
            assert values.tobytes() == decoded.tobytes()


def operator(optimizer: str, own: dict[str, float]) -> tuple[Any, dict[str, Any]]:
    """Return an optimizer's function in `mpembed.ops`, and its parameters as that takes them."""
    name = {"sgd_momentum": "sgd"}.get(optimizer, optimizer)
    options: dict[str, Any] = dict(own)
    if "beta1" in options:
        options["betas"] = options.pop("beta1"), options.pop("beta2")
    return getattr(mpe.ops, f"{name}_"), options


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("dim", [1, 7, 16, 50])
@pytest.mark.parametrize("mode", list(WEIGHT_DECAYS))
def test_steps_by_the_headers_alone(
    alone: ctypes.CDLL, optimizer: str, dim: int, mode: str
) -> None:
    """One row at a time they give the bytes that kernels give in vectors."""
    number, update = OPTIMIZERS[optimizer], 3
    known = {"lr": 0.1, "weight_decay": 0.0 if mode == "none" else 0.05, "lr_power": -0.6}
    values = {name: known.get(name, 0.03) for name in kernels.parameter_names(number)}
    parameters = (ctypes.c_double * len(values))(*values.values())
    rng = np.random.default_rng(dim)
    w, g = (rng.standard_normal((4, dim)).astype(np.float32) for _ in range(2))
    states = [
        rng.random((4, dim) if shape == STATE_ELEMENT else 4).astype(np.float32)
        for _, shape, _ in kernels.optimizer_states(number)
    ]
    expected_w, expected = w.copy(), [state.copy() for state in states]
    for i in range(4):
        pointers = (ctypes.c_void_p * MAX_STATES)(*(s[i : i + 1].ctypes.data for s in expected))
        numbers = ctypes.c_int32(number), ctypes.c_int32(WEIGHT_DECAYS[mode])
        gradient = g[i].copy()  # is overwritten
        row = address(expected_w[i]), address(gradient), pointers
        alone.update_row(*numbers, parameters, ctypes.c_uint64(update), *row, ctypes.c_int64(dim))
    function, options = operator(optimizer, values)
    if "updates" in inspect.signature(function).parameters:
        options["updates"] = update
    function(w, np.arange(4), g, *states, weight_decay_mode=mode, **options)
    assert w.tobytes() == expected_w.tobytes()
    assert [s.tobytes() for s in states] == [s.tobytes() for s in expected]


def test_headers_include_no_more_than_the_standard_library() -> None:
    """The arithmetic is for any host and device program: no Python, no DLPack, no framework."""
    foreign = []
    for header in HEADERS:
        for name in re.findall(r'#\s*include\s*["<]([^">]+)', (INCLUDE / header).read_text()):
            standard = re.fullmatch(r"[a-z_]+(\.h)?", name) and name != "Python.h"
            if not (standard or name.startswith(("mpembed/", "cuda"))):
                foreign.append((header, name))
    assert foreign == []
