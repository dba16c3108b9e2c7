"""The keywords of the modules: which there are, which of PyTorch's are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import torch

from mpembed import registry
from mpembed._arguments.scalars import finite
from mpembed.collection import EmbeddingBagCollection
from mpembed.config import CacheConfig, TableConfig
from mpembed.devices import CudaDevice, TorchDevice
from mpembed.optim import Optimizer

OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: The modes of an EmbeddingBag: what pools a bag.
MODES = tuple(pooling for pooling in registry.POOLINGS if pooling != "none")
#: Options of PyTorch's modules that a fused update cannot keep: the default, and the way out.
UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "padding_idx": (None, "leave padding out of the batch, or multiply its output by 0"),
    "max_norm": (None, "use the optimizer's weight_decay"),
    "scale_grad_by_freq": (False, "leave it False; the gradients of a row are summed"),
    "sparse": (False, "leave it False; a backward updates the rows of its batch alone anyway"),
}


class CollectionOptions(TypedDict, total=False):
    """Keywords that become those of ``mpembed.EmbeddingBagCollection``."""

    device: str | CudaDevice | TorchDevice
    seed: int
    rounding: str
    bounds: str
    on_nonfinite: str


class ModuleOptions(TypedDict, total=False):
    """Keywords of every module, beside those of its collection."""

    output_dtype: torch.dtype
    clip_grad_value: float | None
    clip_grad_norm: float | None


class ConvertOptions(CollectionOptions, ModuleOptions, total=False):
    """Keywords of `convert`, which names the cache itself."""


class Options(ConvertOptions, total=False):
    """Keywords of a module that makes its own collection."""

    cache: CacheConfig | None


def make_collection(
    tables: Sequence[TableConfig], optimizer: Optimizer | None, options: Options
) -> tuple[EmbeddingBagCollection, ModuleOptions]:
    """Return a collection, and the options that are the module's own."""
    own: Any = {k: v for k, v in options.items() if k in ModuleOptions.__annotations__}
    rest: Any = {k: v for k, v in options.items() if k not in own}
    for name in rest:
        if name not in Options.__annotations__:
            raise TypeError(
                f"{name!r} is not an option of mpembed.torch's modules, which are "
                f"{', '.join(Options.__annotations__)}"
            )
    check_module_options(own)
    return EmbeddingBagCollection(tables, optimizer=optimizer, **rest), own


def check_module_options(options: Any) -> None:
    """Raise TypeError or ValueError for a wrong value."""
    dtype = options.get("output_dtype", torch.float32)
    if dtype not in OUTPUT_DTYPES:
        allowed = ", ".join(map(str, OUTPUT_DTYPES))
        raise ValueError(f"output_dtype must be one of {allowed}, got {dtype}")
    for name in ("clip_grad_value", "clip_grad_norm"):
        if options.get(name) is not None and finite(name, options[name], 0.0) == 0.0:
            raise ValueError(f"{name} must be positive, got 0; None sets no limit")


def check_mode(what: str, mode: Any) -> None:
    """Raise ValueError for a mode that no table has, such as PyTorch's ``"max"``."""
    if mode not in MODES:
        raise ValueError(f"{what} must be {' or '.join(map(repr, MODES))}, got {mode!r}")


def refuse_unsupported(what: str, options: dict[str, Any]) -> None:
    """Take PyTorch's unsupported options out; raise ValueError for one that is set."""
    for name, (default, way_out) in UNSUPPORTED.items():
        value = options.pop(name, default)
        if value != default:
            raise ValueError(f"{what}: {name}={value!r} is not supported: {way_out}")
