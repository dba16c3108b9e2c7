"""The keywords of the modules: which there are, which of PyTorch's are refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, TypedDict

import torch

from mpembed import registry
from mpembed._arguments.scalars import finite
from mpembed._checkpoint.changes import Changes
from mpembed.collection import EmbeddingBagCollection
from mpembed.config import CacheConfig, TableConfig
from mpembed.devices import CudaDevice, TorchDevice
from mpembed.optim import Optimizer

OUTPUT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: The modes of an EmbeddingBag: what pools a bag.
MODES = tuple(pooling for pooling in registry.POOLINGS if pooling != "none")
#: Options of PyTorch's modules that a fused update cannot keep: the default, and the way out.
UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "max_norm": (None, "leave it None; the optimizer's weight_decay keeps rows small too"),
    "scale_grad_by_freq": (False, "leave it False; the gradients of a row are summed"),
}
#: Options of PyTorch's modules without a meaning here: an update touches only the rows of a batch,
#: and no norm is limited.
IGNORED = ("sparse", "norm_type")
#: What a loaded collection can be given another value of.
CHANGES = (*(field.name for field in fields(Changes)), "device")


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
    if "seed" not in rest:
        rest["seed"] = drawn_seed()
    return EmbeddingBagCollection(tables, optimizer=optimizer, **rest), own


def drawn_seed() -> int:
    """Return a seed from PyTorch's generator, so that modules start with different rows."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


def check_module_options(options: Any) -> None:
    """Raise TypeError or ValueError for a wrong value."""
    dtype = options.get("output_dtype", torch.float32)
    if dtype not in OUTPUT_DTYPES:
        allowed = ", ".join(map(str, OUTPUT_DTYPES))
        raise ValueError(f"output_dtype must be one of {allowed}, got {dtype}")
    for name in ("clip_grad_value", "clip_grad_norm"):
        if options.get(name) is not None and finite(name, options[name], 0.0) == 0.0:
            raise ValueError(f"{name} must be positive, got 0; None sets no limit")


def refuse_other_options(kind: str, options: Any) -> None:
    """Raise TypeError for an option that a module of a given collection does not take."""
    known = ModuleOptions.__annotations__
    for name in options:
        if name in CHANGES:
            raise TypeError(
                f"{name!r} is a setting of the collection, which {kind} takes as it is: load it "
                f"with mpembed.EmbeddingBagCollection.load(path, {name}=...), then make the module"
            )
        if name not in known:
            raise TypeError(
                f"{name!r} is not an option of {kind}.from_collection; beside its own arguments "
                f"those are {', '.join(known)}"
            )


def check_mode(what: str, mode: Any) -> None:
    """Raise ValueError for a mode that no table has, such as PyTorch's ``"max"``."""
    if mode not in MODES:
        raise ValueError(f"{what} must be {' or '.join(map(repr, MODES))}, got {mode!r}")


def unsupported(options: dict[str, Any]) -> Iterator[str]:
    """Say of each of PyTorch's unsupported options that is set why, and the way out."""
    for name, (default, way_out) in UNSUPPORTED.items():
        value = options.get(name, default)
        if value != default:
            yield f"{name}={value!r} is not supported: {way_out}"


def refuse_unsupported(what: str, options: dict[str, Any]) -> None:
    """Take PyTorch's options out; raise ValueError for an unsupported one that is set."""
    for reason in unsupported(options):
        raise ValueError(f"{what}: {reason}")
    for name in (*UNSUPPORTED, *IGNORED):
        options.pop(name, None)
