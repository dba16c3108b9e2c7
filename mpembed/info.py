"""What this build and this machine offer."""

from typing import Any

from mpembed import devices, registry
from mpembed._arguments.scalars import integer
from mpembed._bindings import contract, kernels
from mpembed.version import __version__


def set_num_threads(n: int) -> None:
    """Use `n` CPU threads (1 .. 1024) from the next call on; results do not depend on it."""
    kernels.set_num_threads(integer("the number of threads", n, 1, contract.MAX_THREADS))


def get_num_threads() -> int:
    """Return the number of CPU threads in use."""
    return int(kernels.get_num_threads())


def info() -> dict[str, Any]:
    """Return the version, the backends, the SIMD level, the threads and the registered names.

    ``"cuda"`` says whether the build has the CUDA extension, for which architectures and with which
    toolkit, or why it does not. ``"devices"`` has the name, memory and compute capability of each
    device, or the reason why there is none.
    """
    found = _devices()
    return {
        "version": __version__,
        "backends": ["cpu", "cuda"] if isinstance(found, dict) else ["cpu"],
        "simd": kernels.LEVEL,
        "threads": get_num_threads(),
        "cuda": devices.build_facts(),
        "devices": found,
        "formats": list(registry.FORMATS),
        "optimizers": list(registry.OPTIMIZERS),
        "policies": list(registry.POLICIES),
    }


def _devices() -> dict[str, Any] | str:
    try:
        return {f"cuda:{i}": device for i, device in enumerate(devices.cuda_devices())}
    except RuntimeError as error:
        return str(error)


def print_info() -> None:
    """Print what `info` returns, a line a value: the command ``mpembed info``."""
    lines = _flat(info())
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:{width}}  {value}")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    lines: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            lines |= _flat(value, f"{name}.")
        elif isinstance(value, list | tuple | set | frozenset):
            lines[name] = ", ".join(map(str, value)) or "none"
        else:
            lines[name] = str(value)
    return lines
