"""Replace the embeddings of a model with tables of mpembed's."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, Unpack

from torch import nn

from mpembed._bindings.contract import MAX_SEED
from mpembed.config import CacheConfig
from mpembed.optim import Optimizer, RowwiseAdagrad
from mpembed.torch._bag import Embedding, EmbeddingBag
from mpembed.torch._convert_checks import own_attributes, refuse, refuse_unconvertible
from mpembed.torch._convert_holders import HeldModule, find_holders
from mpembed.torch._convert_report import ConvertWarning, measure, report
from mpembed.torch._convert_select import (
    DEFAULT_PRECISION,
    Excluded,
    Original,
    Selection,
    make_cache,
    select,
)
from mpembed.torch._module_tree import put_modules
from mpembed.torch._options import ConvertOptions
from mpembed.torch._whole_tables import write_table

Replacement: TypeAlias = EmbeddingBag | Embedding


def default_optimizer() -> Optimizer:
    """Return the optimizer of `convert` where none is given."""
    return RowwiseAdagrad(lr=0.02)


def convert(
    model: nn.Module,
    precision: str | Mapping[str, str] = DEFAULT_PRECISION,
    cache: CacheConfig | float | None = None,
    optimizer: Optimizer | None = None,
    *,
    exclude: Excluded | Iterable[Excluded] = (),
    min_rows: int = 0,
    verbose: bool = True,
    **options: Unpack[ConvertOptions],
) -> nn.Module:
    """Replace every ``nn.EmbeddingBag`` and ``nn.Embedding`` of a model, in place.

    Parameters
    ----------
    model : torch.nn.Module
        The model. Weights are kept, rounded to `precision`. A module that is used in several
        places stays one module; one whose weight does not require grad is frozen. Modules of
        `mpembed.torch` are left alone.
    precision : str or mapping of pattern -> str
        Storage format of the rows. Measured with a cache of 5 % of the rows, ``"int8"`` keeps
        FP32's accuracy on click, retrieval and sequence models. ``"int4"`` keeps it on click
        models; it loses about a quarter of NDCG or hit rate on sequence and retrieval models with
        dense use of every row. Of a mapping, the first pattern that matches a name decides;
        ``"int8"`` where none does.
    cache : float or mpembed.CacheConfig, optional
        One for each table. A number is the share of the rows that it holds, with LFU: ``0.05`` is
        ``CacheConfig(load_factor=0.05, policy="lfu")``. Tables that a mapping stores in ``"fp32"``
        get none, which would only take memory.
    optimizer : mpembed.optim.Optimizer, optional
        Shared by all tables; by default ``RowwiseAdagrad(lr=0.02)``.
    exclude : str or module, or an iterable of them
        Embeddings that stay as they are. A pattern is a name as in ``model.named_modules()``, the
        name of a module around embeddings, or a glob pattern (``"*.bias"``). A module excludes all
        embeddings in it.
    min_rows : int
        Tables with fewer rows stay as they are. By default all are converted; the report names
        those that gain no memory.
    verbose : bool
        Print the memory of weights and optimizer state before and after. Warn
        (`mpembed.rounding.RoundingWarning`) when a table's module first goes from training to
        evaluation and its rounding noise is too large.
    **options
        As in `EmbeddingBag`. By default `output_dtype` is the weight's type and `device` the
        weight's device. `seed`, 0 by default, is that of the first table; the next tables have the
        next numbers.

    Returns
    -------
    torch.nn.Module
        The model, or the new module if the model is an embedding itself.

    Raises
    ------
    ValueError
        Before anything changes. One error names every module that cannot be converted, with the
        reasons and the way out: `max_norm`, `scale_grad_by_freq` and mode ``"max"``; a weight that
        another module uses too; hooks; a subclass with a forward or other methods of its own;
        parameters, buffers or modules beside the weight; values that `precision` cannot store.
        Also if the model has no embedding, all are converted already or left out, a pattern
        matches nothing, or the model holds a DistributedDataParallel.
    TypeError
        For arguments of a wrong type, and for options that there are not.

    Warns
    -----
    ConvertWarning
        If an attribute of a module, such as a list of weights for a penalty, or an optimizer of
        PyTorch's still holds weights that were replaced. Nothing has changed if the warning is
        raised as an error.

    Notes
    -----
    Make the optimizer of the other parameters afterwards. Peak memory holds the old and the new
    tables.

    `padding_idx` is kept. `sparse` has no meaning: an update touches only the rows of a batch.

    A subclass is replaced if it defines only how it is made and printed (``__init__``,
    ``reset_parameters``, ``extra_repr`` ...), methods with a leading underscore, and plain
    attributes. The replacement gets the attributes, of the class and of the object; it is not an
    instance of the subclass.

    Lists and dicts of the model that hold a replaced module get its replacement.
    """
    wrong = set(options) - set(ConvertOptions.__annotations__)
    if wrong:
        raise TypeError(
            f"convert has no option {min(wrong)!r}; there are "
            f"{', '.join(ConvertOptions.__annotations__)}"
        )
    shared: Any = default_optimizer() if optimizer is None else optimizer
    if not isinstance(shared, Optimizer):
        kind = type(shared)
        raise TypeError(
            "optimizer must be one of mpembed's, such as mpembed.Adam(lr=0.001), got "
            f"{kind.__module__}.{kind.__qualname__}"
        )
    selection = select(model, precision, exclude, min_rows)
    chosen, shared_cache = selection.chosen, make_cache(cache)
    attributes = {name: own_attributes(module) for name, module in chosen.items()}
    refuse_unconvertible(model, chosen, attributes)
    made = _replacements(selection, shared_cache, shared, options)
    holders = find_holders(model, chosen)
    for text in holders.warnings:
        warnings.warn(text, ConvertWarning, stacklevel=2)
    if verbose:
        print(report(measure(selection, made, shared), shared, selection.left_out))
    for name, replacement in made.items():
        replacement.__dict__.update(attributes[name])
        if verbose:
            replacement.warn_of_rounding()
    return _put(model, {id(chosen[name]): made[name] for name in chosen}, holders.modules)


def _put(
    model: nn.Module, by_id: Mapping[int, nn.Module], places: Iterable[HeldModule]
) -> nn.Module:
    """Put the replacements where the modules with these ids are; return the model."""
    for place in places:
        place.container[place.key] = by_id[id(place.module)]
    return put_modules(model, by_id)


def _replacements(
    selection: Selection, cache: CacheConfig | None, optimizer: Optimizer, options: Any
) -> dict[str, Replacement]:
    """Return a filled module for each that is replaced; raise for all that cannot be stored."""
    made: dict[str, Replacement] = {}
    reasons: dict[str, list[str]] = {}
    first = options.get("seed", 0)
    for number, (name, module) in enumerate(selection.chosen.items()):
        given = {"precision": selection.precisions[name], "optimizer": optimizer}
        given["cache"] = selection.cache_of(name, cache)
        seed = (first + number) % (MAX_SEED + 1) if isinstance(first, int) else first
        made[name] = _empty(name, module, {**given, **options, "seed": seed})
        try:
            tables = made[name].tables
            write_table(tables, tables.tables[0], module.weight)
        except ValueError as error:
            reasons[name] = [f"its weight cannot be stored: {error}"]
    refuse(reasons, selection.chosen)
    return made


def _empty(name: str, module: Original, options: dict[str, Any]) -> Replacement:
    """Return a module with a table of zeros for another one."""
    weight = module.weight
    rest: dict[str, Any] = {"device": str(weight.device), "output_dtype": weight.dtype, **options}
    rest |= {"init": "zeros", "name": name, "padding_idx": module.padding_idx}
    made: Replacement
    if isinstance(module, nn.EmbeddingBag):
        last = bool(module.include_last_offset)
        made = EmbeddingBag(*weight.shape, mode=module.mode, include_last_offset=last, **rest)
    else:
        made = Embedding(*weight.shape, **rest)
    made.requires_grad_(weight.requires_grad)
    return made.train(module.training)
