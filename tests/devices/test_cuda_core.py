"""Objects of cuda.core as streams, arrays and devices; it is needed for none of them.

Its devices and buffers need a driver, so that objects with the same methods stand in for them.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import batch, collection

import mpembed as mpe
from mpembed import devices

needs_cuda_core = pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None,
    reason="cuda.core is not installed, see the extra cuda",
)


class Device:
    """What is used of cuda.core.Device."""

    def __init__(self, device_id: Any) -> None:
        self.device_id = device_id


class Buffer:
    """What is used of cuda.core.Buffer: bytes without a shape, and its methods' keywords."""

    def __init__(self, owner: mpe.Tensor) -> None:
        self.owner = owner

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        return self.owner.__dlpack__(stream=stream, max_version=max_version)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.owner.__dlpack_device__()


class Stream:
    """What is used of cuda.core.Stream."""

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 1


@pytest.mark.gpu
def test_a_device_object(cuda: str, tmp_path: Path) -> None:
    device: Any = Device(0)
    assert devices.get(device) is devices.get(cuda)
    emb = collection(device=device)
    assert emb.device == "cuda:0"
    assert mpe.to_device(np.ones(3), device).device == "cuda:0"
    emb.save(tmp_path / "there")
    assert mpe.EmbeddingBagCollection.load(tmp_path / "there", device=device).device == "cuda:0"
    number = devices.cuda_count()
    with pytest.raises(ValueError, match=f"there is no device 'cuda:{number}'"):
        devices.get(Device(number))


def test_what_is_no_device_object() -> None:
    for wrong in ("0", None, 1.0):
        with pytest.raises(TypeError, match="or an object with device_id such as cuda.core.Device"):
            devices.get(Device(wrong))
    with pytest.raises(ValueError, match="device must be"):
        devices.get(Device(-1))


@pytest.mark.gpu
def test_a_buffer_is_an_array_of_bytes(cuda: str) -> None:
    values = np.arange(-6, 6, dtype=np.int8)
    buffer = Buffer(mpe.to_device(values, cuda))
    np.testing.assert_array_equal(mpe.to_device(buffer, "cpu"), values)
    with pytest.raises(TypeError, match="int8"):
        mpe.ops.quantize(buffer, "int4")


@pytest.mark.gpu
def test_a_stream_object(cuda: str) -> None:
    values = mpe.to_device(np.ones((2, 4), np.float32), cuda)
    got = mpe.ops.quantize(values, "int8", stream=Stream())
    np.testing.assert_array_equal(got.numpy(), mpe.ops.quantize(values, "int8").numpy())


@needs_cuda_core
@pytest.mark.gpu
def test_its_own_streams_and_views(cuda: str) -> None:
    """Those of its objects that need no driver."""
    from cuda.core import LEGACY_DEFAULT_STREAM, PER_THREAD_DEFAULT_STREAM
    from cuda.core.utils import StridedMemoryView

    def view(array: Any) -> Any:
        return StridedMemoryView.from_dlpack(mpe.to_device(array, cuda), stream_ptr=-1)

    indices, offsets = batch()
    here, there = collection(), collection(device=cuda)
    stream = LEGACY_DEFAULT_STREAM
    expected = here.forward(indices, offsets)
    out = mpe.to_device(np.zeros_like(expected), cuda)
    target = StridedMemoryView.from_dlpack(out, stream_ptr=-1)
    there.forward(view(indices), view(offsets), out=target, stream=stream)
    np.testing.assert_array_equal(out.numpy(), expected)
    there.backward(view(np.ones_like(expected)), stream=stream)
    there.check()
    with pytest.raises(ValueError, match="per-thread default stream"):
        there.forward(view(indices), view(offsets), stream=PER_THREAD_DEFAULT_STREAM)


@needs_cuda_core
def test_importing_the_package_does_not_import_it(tmp_path: Path) -> None:
    code = "import sys, mpembed; print('cuda' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
