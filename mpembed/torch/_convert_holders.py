"""What still holds weights and modules that `convert` replaces."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mpembed.torch._convert_checks import memory, overlap
from mpembed.torch._convert_report import listed, size
from mpembed.torch._convert_select import Original

# Longer containers hold data, which a walk would take long to look through.
_LONGEST = 100_000
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_OF_MODULES = ("_parameters", "_modules", "_buffers")  # where PyTorch's modules keep these


class HeldModule(NamedTuple):
    """A replaced module in a list or dict of the model's."""

    container: Any
    key: Any
    module: nn.Module


class Holders(NamedTuple):
    """What a model and the optimizers hold of what is replaced.

    Attributes
    ----------
    modules : list of HeldModule
        Places where the replacement can be put.
    warnings : list of str
        What holds the rest, by name.
    """

    modules: list[HeldModule]
    warnings: list[str]


def find_holders(model: nn.Module, chosen: dict[str, Original]) -> Holders:
    """Look through the attributes of a model's modules and through PyTorch's optimizers.

    Parameters
    ----------
    model : nn.Module
        Its attributes that are not parameters or modules, and containers in them.
    chosen : dict of str -> module
        The modules that are replaced, by name.
    """
    old = _Replaced(chosen)
    places: list[HeldModule] = []
    warnings: list[str] = []
    for name, module in model.named_modules():
        for key, value in _attributes_of(module):
            found = _in_containers(value, old)
            places += found.places
            if issubclass(type(value), nn.Module) and id(value) in old.modules:
                places.append(HeldModule(vars(module), key, value))
            warnings += found.texts(f"{name}.{key}" if name else key)
    return Holders(places, warnings + _optimizers(chosen))


def _attributes_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield a module's attributes and buffers; its parameters and modules are looked at before."""
    own = vars(module)
    yield from ((key, own[key]) for key in own if key not in _OF_MODULES)
    yield from module.named_buffers(recurse=False)


class _Replaced:
    """The modules and weights that are replaced, as an attribute may hold them."""

    def __init__(self, chosen: dict[str, Original]) -> None:
        self.modules = {id(module): name for name, module in chosen.items()}
        self.nbytes = {name: weight_bytes(module) for name, module in chosen.items()}
        self._by_memory: dict[Any, list[tuple[str, Tensor]]] = {}
        for name, module in chosen.items():
            same = self._by_memory.setdefault(memory(module.weight), [])
            same.append((name, module.weight))

    def tables_of(self, value: Tensor) -> list[str]:
        """Return whose weight a tensor is, or has bytes of."""
        near = self._by_memory.get(memory(value), ())
        return [name for name, weight in near if overlap(value, weight)]


class _Found:
    """What the containers of one attribute hold."""

    def __init__(self) -> None:
        self.places: list[HeldModule] = []
        self.fixed: list[str] = []  # names of modules in containers that cannot be changed
        self.weights: dict[str, int] = {}

    def texts(self, holder: str) -> Iterator[str]:
        """Yield a warning for what stays held."""
        if self.weights:
            yield (
                f"{holder} still holds the old weight of {listed(list(self.weights))}: "
                f"{size(sum(self.weights.values()))} stay in memory, and what is computed from "
                "them does not reach the tables. Compute it from the modules' `weight` at every "
                "step, or use the optimizer's weight_decay"
            )
        if self.fixed:
            yield (
                f"{holder} still holds the old module {listed(self.fixed)}, which is not trained "
                "any more. Fill it again from the model"
            )


def _in_containers(value: Any, old: _Replaced) -> _Found:
    """Look through an attribute and the containers in it."""
    found = _Found()
    seen: set[int] = set()
    waiting: deque[tuple[Any, Any, Any]] = deque([(None, None, value)])
    while waiting:
        container, key, one = waiting.popleft()
        kind = type(one)  # an isinstance() would wake lazy objects and dead proxies
        if issubclass(kind, Tensor):
            found.weights |= {name: old.nbytes[name] for name in old.tables_of(one)}
        elif issubclass(kind, nn.Module) and id(one) in old.modules:
            if key is not None:
                found.places.append(HeldModule(container, key, one))
            elif container is not None:
                found.fixed.append(old.modules[id(one)])
        elif issubclass(kind, _CONTAINERS) and id(one) not in seen and len(one) <= _LONGEST:
            seen.add(id(one))
            waiting.extend((one, *entry) for entry in _entries(one))
    return found


def _entries(container: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what a container holds, after the key at which that can be replaced, or None."""
    if isinstance(container, dict):
        yield from container.items()
        yield from ((None, key) for key in container)
    elif isinstance(container, list | deque):
        yield from enumerate(container)
    else:
        yield from ((None, one) for one in container)


def _optimizers(chosen: dict[str, Original]) -> list[str]:
    """Say which of PyTorch's optimizers hold old weights."""
    weights = {id(module.weight): name for name, module in chosen.items()}
    if not any(_held(one, weights) for one in _living_optimizers()):
        return []
    gc.collect()  # of those found some may be garbage
    texts = []
    for optimizer in _living_optimizers():
        held = _held(optimizer, weights)
        if held:
            nbytes = sum(weight_bytes(chosen[name]) for name in held)
            nbytes += sum(_kept_bytes(optimizer, chosen[name].weight) for name in held)
            texts.append(
                f"an optimizer ({type(optimizer).__name__}) made before convert still holds the "
                f"old weight of {listed(held)}: {size(nbytes)} stay in memory with its state, and "
                "it does not train the tables. Make it again after convert"
            )
    return texts


def _living_optimizers() -> list[torch.optim.Optimizer]:
    kinds: set[type] = set()
    waiting: list[type] = [torch.optim.Optimizer]
    while waiting:
        kinds.add(kind := waiting.pop())
        waiting += kind.__subclasses__()
    return [one for one in gc.get_objects() if type(one) in kinds and "param_groups" in vars(one)]


def _held(optimizer: torch.optim.Optimizer, weights: dict[int, str]) -> list[str]:
    each = (one for group in optimizer.param_groups for one in group["params"])
    return [weights[id(one)] for one in each if id(one) in weights]


def _kept_bytes(optimizer: torch.optim.Optimizer, weight: Tensor) -> int:
    """Return the bytes of an optimizer's state of a weight."""
    state = optimizer.state.get(weight, {})
    each = [one for one in state.values() if isinstance(one, Tensor)]
    return sum(one.numel() * one.element_size() for one in each)


def weight_bytes(module: Original) -> int:
    """Return the bytes of a module's weight and of its gradient."""
    weight = module.weight
    each = [weight] if weight.grad is None else [weight, weight.grad]
    return sum(one.numel() * one.element_size() for one in each)
