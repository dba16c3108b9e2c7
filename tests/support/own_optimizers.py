"""Optimizers of the user's own for tests: Lion of the examples, and structs that others are.

On the emulation g++ stands in for NVRTC, and what is loaded is a path.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

import cuda_backend
import pytest
import scripts
from folders import ROOT, TESTS

import mpembed as mpe
import mpembed.cuda
from mpembed.cuda import _code_cache, _nvrtc
from mpembed.cuda._sources import failed, headers_digest

LION = (ROOT / "examples" / "lion.h").read_text()
LION_PARAMETERS = {"beta1": 0.9, "beta2": 0.99}
DECAYS = {"none": 0.0, "l2": 0.01, "decoupled": 0.05}


def lion(lr: float = 0.1, mode: str = "none", **others: Any) -> mpe.cuda.Optimizer:
    """Return Lion with a weight decay of this mode."""
    others |= {"weight_decay": DECAYS[mode], "weight_decay_mode": mode}
    return mpe.cuda.Optimizer(LION, "Lion", lr, parameters=LION_PARAMETERS, **others)


def derived(base: str, header: str, lr: float, **others: Any) -> mpe.cuda.Optimizer:
    """Return an optimizer whose struct is one of the package's under a name of its own."""
    source = f'#include "mpembed/optim/{header}.h"\nstruct My{base} : mpembed::{base} {{}};\n'
    return mpe.cuda.Optimizer(source, f"My{base}", lr, **others)


def struct(name: str, states: str = "", parameters: str = "nullptr", more: str = "") -> str:
    """Return the source of an optimizer that trains nothing."""
    count = states.count("{")
    kept = f"static constexpr State kStates[] = {{{states}}};" if states else ""
    return f"""
#include "mpembed/optim/common.h"
namespace mpembed {{
struct {name} : OptimizerBase {{
  static constexpr int kNumStates = {count};
  {kept}
  static constexpr const char* kParameters[] = {{{parameters}}};
  static MPE_HD void coefficients(const double* p, int32_t mode, uint64_t, float* c) {{
    decay_coefficient(p, mode, c);
  }}
  template <class X>
  static MPE_HD void apply(const float*, X, X&, X&, X*) {{}}
  {more}
}};
}}
"""


def emulated(source: Any, unit: str, arch: str) -> bytes:
    """Compile kernels for the emulation; return the path of the library, as its runtime takes it.

    It finds the engine in the extension of the emulated kernels, against which it is linked.
    """
    from mpembed._bindings import cuda as extension

    simt = scripts.load(TESTS / "simt" / "build.py")
    assert arch.startswith("sm_")
    engine = Path(extension.__file__)
    built = [str(engine), engine.stat().st_mtime_ns]
    what = {"unit": unit, "headers": headers_digest(), "engine": built}
    flags = [*simt.FLAGS, "-Wno-unused-function", "-shared", "-Wl,-Bsymbolic"]

    def compiled() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            file, library = Path(folder, "own.cpp"), Path(folder, "own.so")
            names = ("mpe_own_update", "mpe_own_coefficients")
            file.write_text(unit + "".join(f"SIMT_LOADED_KERNEL({name})\n" for name in names))
            command = [*shlex.split(os.environ.get("CXX", "g++")), *flags, str(file), str(engine)]
            try:
                simt.run([*command, "-o", str(library)])
            except RuntimeError as error:
                raise failed(source, "g++", str(error)) from None
            return library.read_bytes()

    return bytes(_code_cache.kept(".emulated.so", what, compiled))


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep compiled code in a folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MPEMBED_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def cuda_compiler(cuda: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the device's name; on the emulation g++ compiles for it."""
    if cuda_backend.choice() == "emulation":
        monkeypatch.setattr(_nvrtc, "build", emulated)
    elif not nvrtc_is_here():
        pytest.skip("cuda-core with NVRTC is not installed, see the extra cuda")
    elif not _driver_is_here():
        pytest.skip("the stand-in for the CUDA runtime has no driver")
    return cuda


def _driver_is_here() -> bool:
    try:
        return int(ctypes.CDLL("libcuda.so.1").cuInit(0)) == 0
    except OSError:
        return False


def nvrtc_is_here() -> bool:
    """Whether cuda-core can compile."""
    try:
        _nvrtc.toolchain()
    except RuntimeError:
        return False
    return True


needs_nvrtc = pytest.mark.skipif(
    not nvrtc_is_here(), reason="cuda-core with NVRTC is not installed, see the extra cuda"
)
