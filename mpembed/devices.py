"""Finds devices by name, or says why there is none."""

from __future__ import annotations

import importlib
import json
import threading
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mpembed._bindings import kernels
from mpembed._bindings.device import Device, count_devices, describe
from mpembed._bindings.dlpack import device_pair, view
from mpembed._bindings.tensor import from_view
from mpembed._bindings.view import DTYPES, require

CPU = Device(kernels.BACKEND, 0)
_lock = threading.Lock()
_known: dict[str, Device] = {"cpu": CPU}


class CudaDevice(Protocol):
    """An object that stands for a CUDA device, such as ``cuda.core.Device``."""

    @property
    def device_id(self) -> int:
        """The device's number."""


class TorchDevice(Protocol):
    """A ``torch.device``."""

    @property
    def type(self) -> str:
        """The kind of device."""

    @property
    def index(self) -> int | None:
        """The device's number, if it has one."""


def get(name: str | CudaDevice | TorchDevice) -> Device:
    """Return a device by its name.

    Parameters
    ----------
    name : str or object with ``device_id``
        ``"cpu"``, ``"cuda"`` (the same as ``"cuda:0"``) or ``"cuda:N"``; a ``cuda.core.Device`` or
        a ``torch.device``.

    Raises
    ------
    TypeError, ValueError
        If the name is not a device's, or there is no such device.
    RuntimeError
        If the build has no CUDA, or the machine has no driver or device for it.
    """
    if not isinstance(name, str):
        name = _name_of(name)
    known = _known.get("cuda:0" if name == "cuda" else name)
    if known is not None:
        return known
    kind, colon, number = name.partition(":")
    if kind != "cuda" or (colon and not (number.isascii() and number.isdecimal())):
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {name!r}")
    return _cuda_device(int(number) if colon else 0)


def _name_of(device: CudaDevice | TorchDevice) -> str:
    kind = type(device)
    if (kind.__module__, kind.__name__) == ("torch", "device"):
        return str(device)
    index = getattr(device, "device_id", None)
    if not isinstance(index, int):
        raise TypeError(
            "device must be a string like 'cpu' or 'cuda:0', a torch.device, or an object with "
            f"device_id such as cuda.core.Device, got {device!r}"
        )
    return f"cuda:{int(index)}"


def _cuda_device(index: int) -> Device:
    backend, count = cuda_backend(), cuda_count()
    if index >= count:
        raise ValueError(f"there is no device 'cuda:{index}': this machine has {count}")
    with _lock:
        name = f"cuda:{index}"
        if name not in _known:
            _known[name] = Device(backend, index)
        return _known[name]


def to_device(array: Any, device: str | CudaDevice | TorchDevice) -> Any:
    """Copy an array to a device or to the CPU.

    Parameters
    ----------
    array : array
        Any C-contiguous DLPack tensor; a NumPy array may have any strides.
    device : str or object with ``device_id``
        As `EmbeddingBagCollection` takes it.

    Returns
    -------
    Tensor or numpy.ndarray
        A NumPy array for the CPU, where BF16 becomes its bit patterns, uint16. The copy is
        complete when the call returns.
    """
    target = get(device)
    if isinstance(array, np.ndarray):
        array = np.asarray(array, order="C")
    source = of_dlpack(*device_pair(array, "array"))
    values = view(array, "array", source.stream(None))
    require(values, sum(DTYPES.values()))
    if source is not target:  # whose streams know nothing of each other
        source.synchronize()
    if not target.synchronous:
        return from_view(values, target.stream(None))
    return kernels.host_copy(values, source.stream(None), True)


def of_dlpack(device_type: int, device_id: int) -> Device:
    """Return the device whose kernels work on an array's memory: the CPU for host memory."""
    return get(f"cuda:{device_id}") if device_type in (2, 13) else CPU


def cuda_backend() -> Any:
    """Return the CUDA kernels' function table; RuntimeError says why there is none."""
    try:
        return importlib.import_module("mpembed._bindings.cuda").BACKEND
    except ModuleNotFoundError as error:
        if error.name != "mpembed._bindings.cuda":
            raise
        reason = build_facts().get("reason", "the extension is missing")
        raise RuntimeError(f"this build of mpembed has no CUDA: {reason}") from None
    except ImportError as error:
        raise RuntimeError(f"mpembed's CUDA kernels cannot be loaded: {error}") from error


def cuda_count() -> int:
    """Return the number of CUDA devices; RuntimeError if the driver is missing or fails."""
    try:
        count = count_devices(cuda_backend())
    except RuntimeError as error:
        raise RuntimeError(f"no CUDA device can be used: {error}") from None
    if count == 0:
        raise RuntimeError("no CUDA device can be used: the driver reports none")
    return count


def cuda_devices() -> list[dict[str, Any]]:
    """Return name, memory and compute capability of each CUDA device; RuntimeError says why not."""
    found = []
    for index in range(cuda_count()):
        name, memory, (major, minor) = describe(cuda_backend(), index)
        found.append({"name": name, "memory": memory, "capability": f"{major}.{minor}"})
    return found


def build_facts(part: str = "cuda") -> dict[str, Any]:
    """Return what the build wrote down about the CUDA extension, or about the CPU's kernels."""
    try:
        facts = json.loads(Path(__file__).with_name("_build_facts.json").read_text("utf-8"))
    except FileNotFoundError:
        return {"built": False, "reason": "not known: the build left no _build_facts.json"}
    return dict(facts[part])
