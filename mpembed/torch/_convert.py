"""Replace the embeddings of a model with tables of mpembed's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias, Unpack

import torch
from torch import Tensor, nn

from mpembed.config import CacheConfig
from mpembed.optim import Optimizer, RowwiseAdagrad
from mpembed.torch._bag import Embedding, EmbeddingBag
from mpembed.torch._options import (
    OUTPUT_DTYPES,
    UNSUPPORTED,
    ConvertOptions,
    check_mode,
    refuse_unsupported,
)

_CHUNK = 1 << 22  # values of a weight that are copied at a time
_NAMES_SHOWN = 8
# Where PyTorch keeps hooks: it has no public way to ask for them.
_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
_WEIGHT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
Original: TypeAlias = nn.EmbeddingBag | nn.Embedding
Replacement: TypeAlias = EmbeddingBag | Embedding


def default_optimizer() -> Optimizer:
    """Return the optimizer of `convert` where none is given."""
    return RowwiseAdagrad(lr=0.02)


def convert(
    model: nn.Module,
    precision: str = "int4",
    cache: CacheConfig | None = None,
    optimizer: Optimizer | None = None,
    *,
    verbose: bool = True,
    **options: Unpack[ConvertOptions],
) -> nn.Module:
    """Replace every ``nn.EmbeddingBag`` and ``nn.Embedding`` of a model, in place.

    Parameters
    ----------
    model : torch.nn.Module
        The model. Weights are kept, rounded to `precision`. A module that is used in several
        places stays one module; one whose weight does not require grad is frozen.
    precision : str
        Storage format of the rows. Measured with a cache of 5 % of the rows, ``"int8"`` keeps
        FP32's accuracy on click, retrieval and sequence models. ``"int4"`` keeps it on click
        models; it loses about a quarter of NDCG or hit rate on sequence and retrieval models with
        dense use of every row.
    cache : mpembed.CacheConfig, optional
        One for each table.
    optimizer : mpembed.optim.Optimizer, optional
        Shared by all tables; by default ``RowwiseAdagrad(lr=0.02)``.
    verbose : bool
        Print the memory before and after.
    **options
        As in `EmbeddingBag`. By default `output_dtype` is the weight's type and `device` the
        weight's device.

    Returns
    -------
    torch.nn.Module
        The model, or the new module if the model is an embedding itself.

    Raises
    ------
    ValueError
        Before anything changes, naming the module: for options that a fused update cannot keep
        (`padding_idx`, `max_norm`, `scale_grad_by_freq`, `sparse`, mode ``"max"``), a weight that
        another module uses too, a subclass, hooks, and values that `precision` cannot store. Also
        if the model has no embedding.

    Notes
    -----
    Make the optimizer of the other parameters afterwards: tables are not parameters. Peak memory
    holds the old and the new tables.
    """
    wrong = set(options) - set(ConvertOptions.__annotations__) - set(UNSUPPORTED)
    if wrong:
        raise TypeError(
            f"convert has no option {min(wrong)!r}; there are "
            f"{', '.join(ConvertOptions.__annotations__)}"
        )
    found = _find_embeddings(model)
    if not found:
        raise ValueError("the model has no nn.EmbeddingBag and no nn.Embedding")
    for name, module in found.items():
        _check_replaceable(name, module, model)
    shared = default_optimizer() if optimizer is None else optimizer
    made = {
        name: _replacement(name, module, precision, cache, shared, options)
        for name, module in found.items()
    }
    if verbose:
        print(_report(found, made, precision))
    by_id: dict[int, nn.Module] = {id(found[name]): made[name] for name in found}
    if id(model) in by_id:
        return by_id[id(model)]
    # Each module once: a module may be shared by many paths, or hold itself.
    for parent in model.modules():
        for name, child in list(parent._modules.items()):
            if id(child) in by_id:
                parent._modules[name] = by_id[id(child)]
    return model


def _find_embeddings(model: nn.Module) -> dict[str, Original]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    named: Iterator[tuple[str, nn.Module]] = model.named_modules()
    return {
        name or "embedding": module
        for name, module in named
        if isinstance(module, nn.EmbeddingBag | nn.Embedding)
    }


def _check_replaceable(name: str, module: Original, model: nn.Module) -> None:
    """Raise ValueError for a module that a table cannot replace."""
    kind = type(module)
    if kind not in (nn.EmbeddingBag, nn.Embedding):
        raise ValueError(
            f"{name}: {kind.__name__} is a subclass, which may do something else: replace "
            "it by hand"
        )
    refuse_unsupported(name, {option: getattr(module, option) for option in UNSUPPORTED})
    if isinstance(module, nn.EmbeddingBag):
        check_mode(f"{name}: mode", module.mode)
    if module.weight.dtype not in OUTPUT_DTYPES:
        allowed = ", ".join(map(str, OUTPUT_DTYPES))
        raise ValueError(f"{name}: its weight must be of {allowed}, got {module.weight.dtype}")
    hooks = [getattr(module, kind) for kind in _HOOKS]
    if any(hooks) or any(getattr(module.weight, kind, None) for kind in _WEIGHT_HOOKS):
        raise ValueError(
            f"{name}: its hooks would be lost: remove them, and register them afterwards"
        )
    for other_name, other in model.named_modules():
        tied = any(_same_memory(p, module.weight) for p in other._parameters.values())
        if tied and other is not module:
            raise ValueError(
                f"{name}: its weight is also used by {other_name}: give one of them a copy"
            )


def _same_memory(one: Tensor | None, weight: Tensor) -> bool:
    """Whether a parameter is this weight, or another one on its memory."""
    if one is None:
        return False
    if one is weight:
        return True
    return one.device.type != "meta" and one.numel() > 0 and one.data_ptr() == weight.data_ptr()


def _replacement(
    name: str,
    module: Original,
    precision: str,
    cache: CacheConfig | None,
    optimizer: Optimizer,
    options: Any,
) -> Replacement:
    weight = module.weight.detach()
    common: dict[str, Any] = {"optimizer": optimizer, "precision": precision, "cache": cache}
    common |= {"device": str(weight.device), "output_dtype": weight.dtype, **options}
    common |= {"init": "zeros", "name": name}
    made: Replacement
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


def _fill(made: Replacement, name: str, weight: Tensor) -> None:
    rows = max(1, _CHUNK // weight.shape[1])
    stream = None
    if weight.is_cuda:
        stream = torch.cuda.current_stream(weight.device).cuda_stream
    for start in range(0, weight.shape[0], rows):
        values = weight[start : start + rows].to(torch.float32).contiguous()
        ids = torch.arange(start, start + len(values), device=weight.device)
        made.tables.set_rows(name, ids, values, stream=stream)


def _report(found: dict[str, Original], made: dict[str, Replacement], precision: str) -> str:
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
