"""Which embeddings of a model `convert` replaces, and in which precision and cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from mpembed import registry
from mpembed._arguments.scalars import finite, integer
from mpembed._bindings.contract import MAX_ROWS
from mpembed.config import CacheConfig
from mpembed.torch._module import TableModule

# The precision of `convert` where none is given.
DEFAULT_PRECISION = "int8"

Original: TypeAlias = nn.EmbeddingBag | nn.Embedding
#: A name, a glob pattern of names, or a module.
Excluded: TypeAlias = str | nn.Module


@dataclass
class Selection:
    """The embeddings that are replaced, and those that stay.

    Attributes
    ----------
    chosen : dict of str -> module
        The embeddings to replace by name, each once.
    precisions : dict of str -> str
        The format of each.
    left_out : dict of str -> str
        Name and reason of the embeddings that stay.
    mixed : bool
        Whether formats were given table by table.
    """

    chosen: dict[str, Original] = field(default_factory=dict)
    precisions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    mixed: bool = False

    def cache_of(self, name: str, cache: CacheConfig | None) -> CacheConfig | None:
        """Return the cache of a table; FP32 rows among others need none."""
        return None if self.mixed and self.precisions[name] == "fp32" else cache


def select(
    model: nn.Module,
    precision: str | Mapping[str, str],
    exclude: Excluded | Iterable[Excluded],
    min_rows: int,
) -> Selection:
    """Return what to replace; the arguments are those of `convert`.

    Raises
    ------
    TypeError, ValueError
        For wrong arguments, patterns without use, and where nothing is left to replace.
    """
    found = _find_embeddings(model)
    names = _all_names(model, found)
    least = integer("min_rows", min_rows, 0, MAX_ROWS)
    excluded = _excluded(model, found, names, exclude)
    formats = _formats(found, names, precision)
    selection = Selection(mixed=isinstance(precision, Mapping))
    for name, module in found.items():
        if name in excluded:
            selection.left_out[name] = "exclude"
        elif module.num_embeddings < least:
            selection.left_out[name] = f"{module.num_embeddings} rows"
        else:
            selection.chosen[name] = module
            selection.precisions[name] = formats[name]
    if not selection.chosen:
        listed = ", ".join(f"{name} ({why})" for name, why in selection.left_out.items())
        raise ValueError(f"exclude and min_rows={least} leave nothing to convert: {listed}")
    return selection


def _find_embeddings(model: Any) -> dict[str, Original]:
    """Return PyTorch's embeddings by name, each once."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    modules: list[tuple[str, nn.Module]] = list(model.named_modules())
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for _, module in modules):
        raise ValueError(
            "DistributedDataParallel holds the model's parameters: convert the model first, then "
            "wrap it"
        )
    found = {
        name or "embedding": module
        for name, module in modules
        if isinstance(module, nn.EmbeddingBag | nn.Embedding)
        and not isinstance(module, TableModule)
    }
    if not found:
        if any(isinstance(module, TableModule) for _, module in modules):
            raise ValueError("all embeddings of the model are converted already")
        raise ValueError("the model has no nn.EmbeddingBag and no nn.Embedding")
    return found


def _all_names(model: nn.Module, found: dict[str, Original]) -> dict[str, list[str]]:
    """Return each embedding's name, followed by those of other places that hold it."""
    names = {id(module): [name] for name, module in found.items()}
    for place, parent in model.named_modules():
        for key, child in parent._modules.items():
            name = f"{place}.{key}" if place else key
            if id(child) in names and name not in names[id(child)]:
                names[id(child)].append(name)
    return {name: names[id(module)] for name, module in found.items()}


def _matches(pattern: str, names: Sequence[str]) -> bool:
    """Whether a pattern is one of the names, the start of its path, or a glob pattern of it."""
    return any(
        name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)
        for name in names
    )


def _excluded(
    model: nn.Module,
    found: dict[str, Original],
    names: dict[str, list[str]],
    exclude: Excluded | Iterable[Excluded],
) -> set[str]:
    each = [exclude] if isinstance(exclude, str | nn.Module) else exclude
    if not isinstance(each, Iterable):
        raise TypeError(
            "exclude must be names, patterns and modules, or one of these, got "
            f"{type(exclude).__name__}"
        )
    excluded: set[str] = set()
    for one in each:
        if isinstance(one, nn.Module):
            inside = {id(module) for module in one.modules()}
            hits = {name for name, module in found.items() if id(module) in inside}
            what = f"the module {type(one).__name__}"
            if hits and one is model:
                raise ValueError("exclude holds the model itself: nothing is left to convert")
        elif isinstance(one, str):
            hits = {name for name, every in names.items() if _matches(one, every)}
            what = repr(one)
        else:
            raise TypeError(
                f"exclude must hold names, patterns and modules, got {type(one).__name__}"
            )
        if not hits:
            raise ValueError(
                f"exclude: {what} matches no embedding of the model, which has {_listed(found)}"
            )
        excluded |= hits
    return excluded


def _formats(
    found: dict[str, Original], names: dict[str, list[str]], precision: Any
) -> dict[str, str]:
    """Return the format of each embedding, by the first pattern that matches it."""
    if not isinstance(precision, Mapping):
        registry.choose("precision", precision, registry.FORMATS)
        return dict.fromkeys(found, precision)
    for pattern, one in precision.items():
        if not isinstance(pattern, str):
            raise TypeError(
                f"precision must map names or patterns to formats, got the key {pattern!r}"
            )
        registry.choose(f"precision[{pattern!r}]", one, registry.FORMATS)
    formats: dict[str, str] = {}
    used: set[str] = set()
    for name, every in names.items():
        first = next((pattern for pattern in precision if _matches(pattern, every)), None)
        formats[name] = DEFAULT_PRECISION if first is None else precision[first]
        used |= set() if first is None else {first}
    for pattern in precision:
        if pattern not in used:
            raise ValueError(f"precision[{pattern!r}] {_why_unused(pattern, found, names)}")
    return formats


def _why_unused(pattern: str, found: dict[str, Original], names: dict[str, list[str]]) -> str:
    if any(_matches(pattern, every) for every in names.values()):
        return "is never used: patterns before it match first; put it in front of them"
    return f"matches no embedding of the model, which has {_listed(found)}"


def _listed(found: dict[str, Original], most: int = 20) -> str:
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(list(found)[:most]) + more


def make_cache(cache: Any) -> CacheConfig | None:
    """Return the cache of each table: a number is a share of the rows, with LFU."""
    if cache is None or isinstance(cache, CacheConfig):
        return cache
    share = finite("cache", cache)
    if not 0.0 < share <= 1.0:
        raise ValueError(
            f"cache must be a share of the rows, 0 < cache <= 1, got {cache!r}: 0.05 is 5 %, None "
            "is no cache"
        )
    return CacheConfig(load_factor=share, policy="lfu")


def paste(names: Iterable[str]) -> str:
    """Return the argument that leaves modules out, ready to be copied."""
    return f"exclude={list(names)!r}"
