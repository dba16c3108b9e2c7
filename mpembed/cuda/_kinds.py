"""The optimizers of this process's own, each compiled and registered once."""

import importlib
import os
import threading
from dataclasses import dataclass, field

from mpembed import devices, registry
from mpembed._bindings import kernels
from mpembed._bindings.contract import SHORT_ROW
from mpembed._bindings.device import Device, describe
from mpembed.cuda import _description, _host, _nvrtc
from mpembed.cuda._description import Description
from mpembed.cuda._host import CpuPart
from mpembed.cuda._sources import Source

# Kernels need no device to be described; any architecture that NVRTC knows will do.
_ANY_ARCH = "sm_80"
_known: dict[str, "OwnKind"] = {}
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


# A thread that a forked child does not have may have held it.
os.register_at_fork(after_in_child=_renew_lock)


@dataclass
class OwnKind:
    """A registered optimizer.

    Attributes
    ----------
    source : Source
        Its struct.
    description : Description
        What that declares.
    cpu : CpuPart or None
        What the CPU runs; None: this machine has no compiler.
    registered : kernels.OwnOptimizer
        What the kernels know of it, its number among it.
    """

    source: Source
    description: Description
    cpu: CpuPart | None
    registered: kernels.OwnOptimizer
    _loaded: set[tuple[str, frozenset[str], bool]] = field(default_factory=set)

    def prepare(self, device: Device, dim: int, precisions: frozenset[str]) -> None:
        """Have what a device needs to train tables of one dimension, with these formats."""
        name = self.source.name
        if device.synchronous:
            if self.cpu is None:
                raise RuntimeError(
                    f"optimizer {name!r} cannot train on the CPU: there was no C++ compiler when "
                    "it was made; install g++ or clang++, or set CXX, and make it in a new process"
                )
            return
        key = device.name, precisions, dim > SHORT_ROW
        with _lock:
            if key not in self._loaded:
                self._load(device, *key[1:])
                self._loaded.add(key)

    def _load(self, device: Device, precisions: frozenset[str], long_rows: bool) -> None:
        _, _, (major, minor) = describe(devices.cuda_backend(), device.index)
        unit = self.source.for_cuda(precisions, long_rows)
        code = _nvrtc.build(self.source, unit, f"sm_{major}{minor}")
        loader = importlib.import_module("mpembed._bindings.cuda").LOAD_OPTIMIZER
        formats = sum(1 << registry.FORMATS[name] for name in precisions)
        self.registered.load(device, loader, formats, long_rows, code)


def of(source: Source) -> OwnKind:
    """Return what an optimizer is registered as, compiled and registered at the first time.

    Raises
    ------
    CompileError
        If the source is not right.
    ValueError
        If its name is taken.
    RuntimeError
        If there is no compiler.
    """
    with _lock:
        found = _known.get(source.name)
        if found is None:
            found = _known[source.name] = _registered(source)
        elif found.source != source:
            raise ValueError(
                f"name {source.name!r} is that of another source in this process: give the struct "
                "another name"
            )
    return found


def _registered(source: Source) -> OwnKind:
    command = _host.compiler()
    if command is None:
        cpu, code = None, _described_by_nvrtc(source)
    else:
        cpu = _host.build(source, command)
        code = cpu.code
    found = _description.read(source.name, code)
    addresses = (0, 0) if cpu is None else (cpu.coefficients, cpu.step)
    made = kernels.OwnOptimizer(source.name, list(found.states), list(found.parameters), *addresses)
    return OwnKind(source, found, cpu, made)


def _described_by_nvrtc(source: Source) -> bytes:
    try:
        return _nvrtc.build(source, source.to_describe(), _ANY_ARCH)
    except RuntimeError as error:
        raise RuntimeError(
            f"optimizer {source.name!r} needs a compiler: for the CPU g++ or clang++ (or what CXX "
            f"names), for a device NVRTC. {error}"
        ) from error
