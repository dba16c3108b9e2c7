"""Between the collection and PyTorch: its results as tensors, PyTorch's streams as its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack


def tensor_of(result: Any) -> Tensor:
    """Return a collection's result without a copy: an array of the host, or any tensor."""
    if isinstance(result, Tensor):
        return result
    return torch.from_numpy(result) if isinstance(result, np.ndarray) else from_dlpack(result)


def current_stream(device: torch.device) -> int | None:
    """Return the handle of PyTorch's current stream; the CPU has none."""
    return None if device.type == "cpu" else int(torch.cuda.current_stream(device).cuda_stream)
