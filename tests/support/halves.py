"""Outputs and gradients in FP16 and BF16: NumPy's bits of them, and arrays that a call takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import on_device

import mpembed as mpe
from mpembed._bindings import array_ops

Bits = npt.NDArray[Any]  # of FP32 float32, of the others uint16


def narrowed(precision: str, values: npt.NDArray[np.float32]) -> Bits:
    """Return the nearest values of an output format, as IEEE 754 rounds; any NaN is 0x7FFF."""
    if precision == "fp32":
        return values
    with np.errstate(over="ignore"):
        codes = values.astype(np.float16).view(np.uint16)
    if precision == "bf16":
        bits = values.view(np.uint32).astype(np.uint64)
        codes = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), codes)


def widened(precision: str, codes: Bits) -> npt.NDArray[np.float32]:
    """Return the values of such bits."""
    if precision == "fp32":
        return codes
    if precision == "fp16":
        return codes.view(np.float16).astype(np.float32)
    return (codes.astype(np.uint32) << 16).view(np.float32)


def bits_of(precision: str, array: Any) -> Bits:
    """Return the bits of an array of any library; any NaN is 0x7FFF."""
    if isinstance(array, mpe.Tensor):
        array = array.numpy()
    elif not isinstance(array, np.ndarray):  # PyTorch's, of BF16
        array = array.view(dtype=_torch().int16).numpy()
    if precision == "fp32":
        return np.asarray(array)
    codes = np.asarray(array).view(np.uint16)
    return np.where(np.isnan(widened(precision, codes)), np.uint16(0x7FFF), codes)


def array_of(precision: str, codes: Bits) -> Any:
    """Return an array on the device in use that holds these bits."""
    array: Any = codes
    if precision == "fp16":
        array = codes.view(np.float16)
    elif precision == "bf16":
        array = _torch().from_numpy(codes.view(np.int16)).view(_torch().bfloat16)
    return array if on_device.used() == "cpu" else mpe.to_device(array, on_device.used())


def empty(precision: str, shape: tuple[int, ...], skipped: int = 0) -> Any:
    """Return memory for an output, `skipped` elements behind the start of its allocation."""
    count = int(np.prod(shape))
    codes = np.zeros(count + skipped, np.float32 if precision == "fp32" else np.uint16)
    whole = array_of(precision, codes)
    if on_device.used() == "cpu":
        return whole[skipped:].reshape(shape)
    assert precision != "bf16", "mpembed's tensors of BF16 are made by calls alone"
    part = array_ops.piece(whole, skipped, count + skipped)
    return array_ops.reshaped(part, shape, part.dtype)


def _torch() -> Any:
    import torch

    return torch
