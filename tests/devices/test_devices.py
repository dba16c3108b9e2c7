"""Devices by name, and what is said where there is none."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import batch, collection

import mpembed as mpe
from mpembed import devices

SGD = mpe.SGD(0.1)


@pytest.mark.parametrize(
    "name", ["tpu", "", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "CUDA", "cuda:²"]
)
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ValueError, match=r"device must be 'cpu', 'cuda' or 'cuda:N'"):
        devices.get(name)


def test_a_device_is_named_by_a_string() -> None:
    for wrong in (0, None, b"cpu"):
        with pytest.raises(TypeError, match="device must be a string"):
            devices.get(wrong)  # type: ignore[arg-type]


def test_the_cpu() -> None:
    assert devices.get("cpu") is devices.get("cpu")
    assert devices.CPU.dlpack == (1, 0)
    emb = collection()
    assert emb.device == "cpu"
    for wrong in (0, 1, object()):
        with pytest.raises(ValueError, match="stream must be None on the CPU"):
            emb.forward(*batch(), stream=wrong)
    with pytest.raises(ValueError, match=r"placement='host' of table 'a' needs a device"):
        mpe.EmbeddingBagCollection([mpe.TableConfig("a", 9, 4, placement="host")], optimizer=SGD)
    with pytest.raises(ValueError, match="placement of table 'a' must be one of 'device', 'host'"):
        mpe.TableConfig("a", 9, 4, placement="disk")


def test_what_is_said_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not built, not loadable, no driver, no device: one line each, which says so."""

    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(devices, "_known", {"cpu": devices.CPU})
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(RuntimeError, match="this build of mpembed has no CUDA: .+"):
        mpe.EmbeddingBagCollection([mpe.TableConfig("a", 9, 4)], optimizer=SGD, device="cuda")

    def broken(name: str) -> Any:
        raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match=r"cannot be loaded: libcudart\.so"):
        devices.get("cuda")
    monkeypatch.setattr(devices, "cuda_backend", lambda: None)

    def fails(_: object) -> int:
        raise RuntimeError("counting devices: CUDA driver version is insufficient")

    monkeypatch.setattr(devices, "count_devices", fails)
    with pytest.raises(RuntimeError, match="no CUDA device can be used: .*driver"):
        devices.get("cuda:0")
    monkeypatch.setattr(devices, "count_devices", lambda _: 0)
    with pytest.raises(RuntimeError, match="the driver reports none"):
        devices.get("cuda:0")
    monkeypatch.setattr(devices, "count_devices", lambda _: 2)
    with pytest.raises(ValueError, match="there is no device 'cuda:2': this machine has 2"):
        devices.get("cuda:2")


def test_importing_the_package_loads_no_cuda(tmp_path: Path) -> None:
    code = "import sys, mpembed; print('mpembed._bindings.cuda' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.gpu
def test_cuda_devices(cuda: str) -> None:
    assert devices.get("cuda") is devices.get("cuda:0")
    assert devices.get(cuda).dlpack == (2, 0)
    found = devices.cuda_devices()
    assert len(found) == devices.cuda_count()
    assert found[0]["name"]
    assert found[0]["memory"] > 0
    assert mpe.info()["devices"] == {f"cuda:{i}": one for i, one in enumerate(found)}
    json.dumps(mpe.info())
    with pytest.raises(ValueError, match=f"there is no device 'cuda:{len(found)}'"):
        devices.get(f"cuda:{len(found)}")


@pytest.mark.gpu
def test_arrays_of_another_device_are_refused_by_name(cuda: str) -> None:
    here, there = collection(), collection(device=cuda)
    indices, offsets = batch()
    far = mpe.to_device(indices, cuda), mpe.to_device(offsets, cuda)
    out = np.zeros((3, 12), np.float32)
    with pytest.raises(BufferError, match=r"^indices: is on the CPU, but an array on cuda:0"):
        there.forward(indices, far[1])
    with pytest.raises(BufferError, match=r"^offsets: is on the CPU, but an array on cuda:0"):
        there.forward(far[0], offsets)
    with pytest.raises(BufferError, match=r"^out: is on the CPU, but an array on cuda:0"):
        there.forward(*far, out=out)
    with pytest.raises(BufferError, match=r"^indices: is on cuda:0, but an array in CPU memory"):
        here.forward(*far)
    there.forward(*far)
    with pytest.raises(BufferError, match=r"^grad: is on the CPU, but an array on cuda:0"):
        there.backward(out)
    with pytest.raises(BufferError, match=r"^ids: is on the CPU, but an array on cuda:0"):
        there.rows("a", indices)
    with pytest.raises(BufferError, match=r"^out: is on the CPU, but an array on cuda:0"):
        mpe.ops.quantize(mpe.to_device(out, cuda), "fp32", out=np.zeros((3, 48), np.uint8))
    with pytest.raises(BufferError, match=r"^out: is on cuda:0, but an array in CPU memory"):
        mpe.ops.quantize(out, "fp32", out=mpe.to_device(np.zeros((3, 48), np.uint8), cuda))
