"""The kernels of an optimizer, by NVRTC, which needs no GPU."""

from typing import Any

from mpembed.cuda import _code_cache
from mpembed.cuda._sources import Source, failed, headers_digest, include_paths

_MISSING = "pip install 'mpembed[cuda]' brings cuda-core and NVRTC"


def build(source: Source, unit: str, arch: str) -> bytes:
    """Return the CUDA binary of a translation unit, for an architecture such as ``"sm_90"``.

    Raises
    ------
    CompileError
        If the source is not right.
    RuntimeError
        If cuda-core or NVRTC is not installed.
    """
    core, version = toolchain()
    # As the package's own kernels: no contraction, so that the results are the same everywhere.
    options = {
        "arch": arch,
        "std": "c++17",
        "fma": False,
        "lineinfo": True,
        "device_as_default_execution_space": True,
    }
    what = {"nvrtc": version, "options": options, "unit": unit, "headers": headers_digest()}

    def compiled() -> bytes:
        given = core.ProgramOptions(name=source.name, include_path=include_paths(), **options)
        try:
            made = core.Program(unit, "c++", given).compile("cubin")
        except Exception as error:
            if type(error).__name__ != "NVRTCError":
                raise
            log = str(error).partition("compilation log:")
            raise failed(source, "NVRTC", (log[2] or log[0]).strip("\0")) from None
        return bytes(made.code)

    return _code_cache.kept(".cubin", what, compiled).read_bytes()


def toolchain() -> tuple[Any, str]:
    """Return cuda.core and NVRTC's version; RuntimeError if one of them is not installed."""
    try:
        from cuda import core
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise RuntimeError(
            f"an optimizer of your own needs cuda-core to be compiled for a device: {error}: "
            f"{_MISSING}"
        ) from error
    try:
        _, *numbers = nvrtc.nvrtcVersion()
    except RuntimeError as error:  # the library is not found
        raise RuntimeError(f"NVRTC cannot be loaded: {error}: {_MISSING}") from error
    return core, ".".join(map(str, numbers))
