"""Swap the embeddings of a model for tables of mpembed's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias, Unpack

import torch
from torch import Tensor, nn

from mpembed.config import CacheConfig
from mpembed.optim import Optimizer, RowwiseAdagrad
from mpembed.torch._bag import MODES, UNSUPPORTED, Embedding, EmbeddingBag, refuse_unsupported
from mpembed.torch._module import OUTPUT_DTYPES, ConvertOptions

_CHUNK = 1 << 22  # values of a weight that are copied at a time
_NAMES_SHOWN = 8
_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
_WEIGHT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
Source: TypeAlias = nn.EmbeddingBag | nn.Embedding
Made = EmbeddingBag | Embedding


def convert(
    model: nn.Module,
    precision: str = "int4",
    cache: CacheConfig | None = None,
    optimizer: Optimizer | None = None,
    *,
    verbose: bool = True,
    **options: Unpack[ConvertOptions],
) -> nn.Module:
    """Swap every ``nn.EmbeddingBag`` and ``nn.Embedding`` of a model, in place.

    Parameters
    ----------
    model : torch.nn.Module
        The model. Weights are kept (rounded to `precision`), as are a module that is used in
        several places and weights that do not require grad, whose module is frozen.
    precision : str
        Storage format of the rows.
    cache : mpembed.CacheConfig, optional
        One for each table.
    optimizer : mpembed.SGD, mpembed.Adagrad or mpembed.RowwiseAdagrad, optional
        Of all tables, ``RowwiseAdagrad(lr=0.02)`` by default.
    verbose : bool
        Print the memory before and after.
    **options
        As in `EmbeddingBag`. `output_dtype` is the weight's type by default, `device` where the
        weight lies.

    Returns
    -------
    torch.nn.Module
        The model, or the new module if the model is an embedding itself.

    Raises
    ------
    ValueError
        Before anything changes, naming the module: for options that a fused update cannot keep
        (`padding_idx`, `max_norm`, `scale_grad_by_freq`, `sparse`, mode ``"max"``), a weight that
        another module uses too, a subclass, hooks, values that `precision` cannot store; if there
        is nothing to swap.

    Notes
    -----
    Make the optimizer of the other parameters afterwards: the weights are no longer parameters.
    Peak memory holds the old and the new tables. Measured with a 5 % cache, INT8 keeps FP32's
    accuracy on click, retrieval and sequence models; INT4 keeps it on click models and loses about
    a quarter of NDCG or hit rate on sequence and retrieval models with dense use of every row.
    """
    wrong = set(options) - set(ConvertOptions.__annotations__) - set(UNSUPPORTED)
    if wrong:
        raise TypeError(f"convert has no option {min(wrong)!r}")
    found = _found(model)
    if not found:
        raise ValueError("the model has no nn.EmbeddingBag and no nn.Embedding")
    for name, module in found.items():
        _refuse(name, module, model)
    chosen = RowwiseAdagrad(lr=0.02) if optimizer is None else optimizer
    made = {
        name: _made(name, module, precision, cache, chosen, options)
        for name, module in found.items()
    }
    if verbose:
        print(_report(found, made, precision))
    by_id: dict[int, nn.Module] = {id(found[name]): made[name] for name in found}
    if id(model) in by_id:
        return by_id[id(model)]
    for parent in model.modules():
        for name, child in list(parent._modules.items()):
            if id(child) in by_id:
                parent._modules[name] = by_id[id(child)]
    return model


def _found(model: nn.Module) -> dict[str, Source]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    named: Iterator[tuple[str, nn.Module]] = model.named_modules()
    return {
        name or "embedding": module
        for name, module in named
        if isinstance(module, nn.EmbeddingBag | nn.Embedding)
    }


def _refuse(name: str, module: Source, model: nn.Module) -> None:
    """Raise ValueError for a module that cannot be swapped as it is."""
    kind = type(module)
    if kind not in (nn.EmbeddingBag, nn.Embedding):
        raise ValueError(f"{name}: {kind.__name__} is a subclass, which may do something else")
    options = ("padding_idx", "max_norm", "scale_grad_by_freq", "sparse")
    refuse_unsupported(name, {key: getattr(module, key) for key in options})
    if isinstance(module, nn.EmbeddingBag) and module.mode not in MODES:
        raise ValueError(f"{name}: mode={module.mode!r} is not supported")
    if module.weight.dtype not in OUTPUT_DTYPES:
        raise ValueError(f"{name}: weights of {module.weight.dtype} are not supported")
    hooks = [getattr(module, kind) for kind in _HOOKS]
    if any(hooks) or any(getattr(module.weight, kind, None) for kind in _WEIGHT_HOOKS):
        raise ValueError(f"{name}: its hooks would be lost")
    for other_name, other in model.named_modules():
        if other is not module and any(_tied(p, module.weight) for p in other._parameters.values()):
            raise ValueError(f"{name}: its weight is also used by {other_name}")


def _tied(one: Tensor | None, weight: Tensor) -> bool:
    """Whether a parameter is this weight, or another one on its memory."""
    if one is None or one is weight:
        return one is weight
    return one.device.type != "meta" and one.numel() > 0 and one.data_ptr() == weight.data_ptr()


def _made(
    name: str,
    module: Source,
    precision: str,
    cache: CacheConfig | None,
    optimizer: Optimizer,
    options: Any,
) -> Made:
    weight = module.weight.detach()
    where = {"device": str(weight.device), "output_dtype": weight.dtype, **options}
    common: dict[str, Any] = {"optimizer": optimizer, "precision": precision, "cache": cache}
    common |= {"init": "zeros", "name": name, **where}
    made: Made
    if isinstance(module, nn.EmbeddingBag):
        last = bool(module.include_last_offset)
        made = EmbeddingBag(*weight.shape, mode=module.mode, include_last_offset=last, **common)
    else:
        made = Embedding(*weight.shape, **common)
    try:
        _fill(made, name, weight)
    except ValueError as error:
        raise ValueError(f"{name}: its weight cannot be stored: {error}") from None
    made.requires_grad_(module.weight.requires_grad)
    return made.train(module.training)


def _fill(made: Made, name: str, weight: Tensor) -> None:
    rows = max(1, _CHUNK // weight.shape[1])
    stream = None
    if weight.is_cuda:
        stream = torch.cuda.current_stream(weight.device).cuda_stream
    for start in range(0, weight.shape[0], rows):
        values = weight[start : start + rows].to(torch.float32).contiguous()
        ids = torch.arange(start, start + len(values), device=weight.device)
        made.tables.set_rows(name, ids, values, stream=stream)


def _report(found: dict[str, Source], made: dict[str, Made], precision: str) -> str:
    lines: list[str] = []
    before = after = 0
    for name, module in found.items():
        old = module.weight.numel() * module.weight.element_size()
        new = int(made[name].tables.memory_report()["total"])
        before, after = before + old, after + new
        if len(lines) < _NAMES_SHOWN:
            size = "{:,} x {}".format(*module.weight.shape)
            lines.append(f"  {name}: {size}, {_size(old)} -> {_size(new)}")
    if len(found) > _NAMES_SHOWN:
        lines.append(f"  ... {len(found) - _NAMES_SHOWN} more")
    head = f"{len(found)} table(s) to {precision}: {_size(before)} of weights -> {_size(after)} "
    return "\n".join([f"{head}with cache and optimizer state, {before / after:.2f}x", *lines])


def _size(nbytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes} B"
