"""What keeps `convert` from replacing a module: the reasons, and the way out of each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mpembed.optim import SGD
from mpembed.torch._bag import Embedding, EmbeddingBag
from mpembed.torch._convert_select import Original, paste
from mpembed.torch._options import OUTPUT_DTYPES, UNSUPPORTED, check_mode, unsupported

# Where PyTorch keeps hooks: it has no public way to ask for them.
_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
_WEIGHT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
# What a subclass may define: what makes the module, which is made, and what prints it.
_MAKING = ("__init__", "__new__", "__init_subclass__", "reset_parameters", "from_pretrained")
_PRINTING = ("extra_repr", "__repr__", "__str__", "_get_name")
_HARMLESS = {*_MAKING, *_PRINTING, "_fill_padding_idx_with_zero"}
# What Python itself puts into a class, and the classes of Python's own.
_MACHINERY = {"__weakref__", "__dict__", "__annotate__", "__annotate_func__", "_abc_impl"}
_PYTHON = ("abc", "builtins", "typing", "typing_extensions")


class _User(NamedTuple):
    """A parameter of the model."""

    name: str  # of the module that has it
    module: nn.Module
    parameter: Tensor


def refuse_unconvertible(
    model: nn.Module, chosen: dict[str, Original], kept: dict[str, dict[str, Any]]
) -> None:
    """Raise one ValueError that says of every module why a table cannot replace it.

    Parameters
    ----------
    model : nn.Module
        The model around them.
    chosen : dict of str -> module
        The modules to replace.
    kept : dict of str -> dict
        The attributes of its own that each replacement would get.
    """
    users = _users_by_memory(model)
    each = {name: _reasons(name, module, kept[name], users) for name, module in chosen.items()}
    refuse({name: found for name, found in each.items() if found}, chosen)


def _reasons(
    name: str, module: Original, own: dict[str, Any], users: dict[Any, list[_User]]
) -> list[str]:
    if parametrize.is_parametrized(module):
        return ["it is parametrized: call torch.nn.utils.parametrize.remove_parametrizations first"]
    found = [*_own_code(module), *_attributes(module, own), *_settings(module)]
    return [*found, *_weight(name, module, users)]


def refuse(reasons: dict[str, list[str]], chosen: dict[str, Original]) -> None:
    """Raise ValueError if there are reasons; say how the others can be converted."""
    if not reasons:
        return
    lines = [f"{len(reasons)} of {len(chosen)} embeddings cannot be converted:"]
    lines += [f"  {name}: {'; '.join(each)}" for name, each in reasons.items()]
    if len(reasons) < len(chosen):
        lines.append(f"To convert the others: {paste(reasons)}")
    raise ValueError("\n".join(lines))


# ---- subclasses and attributes -------------------------------------------------------------


def _base(module: nn.Module) -> type[nn.Module]:
    return nn.EmbeddingBag if isinstance(module, nn.EmbeddingBag) else nn.Embedding


def _own_members(module: Original) -> Iterator[tuple[str, str, Any]]:
    """Yield class, name and value of all that subclasses of PyTorch's class define."""
    base = _base(module)
    for kind in type(module).__mro__:
        if kind not in base.__mro__ and kind.__module__ not in _PYTHON:
            for name, value in vars(kind).items():
                if name not in _MACHINERY:
                    yield kind.__name__, name, value


def _is_code(value: Any) -> bool:
    """Whether a class attribute is a method, a property or the like."""
    return not isinstance(value, type) and (callable(value) or hasattr(type(value), "__get__"))


def _own_code(module: Original) -> Iterator[str]:
    """Say which methods a replacement would not have."""
    known = dir(_base(module))
    lost: dict[str, str] = {}
    for kind, name, value in _own_members(module):
        private = name.startswith("_") and name not in known and not name.endswith("__")
        if _is_code(value) and not private and name not in _HARMLESS:
            lost.setdefault(name, kind)
    if "forward" in lost:
        kind = lost.pop("forward")
        yield f"{kind} has a forward of its own, which a table would not run: replace it by hand"
    if lost:
        names = ", ".join(f"{kind}.{name}" for name, kind in lost.items())
        yield f"the replacement would not have {names}: replace it by hand"


def own_attributes(module: Original) -> dict[str, Any]:
    """Return the attributes of an embedding that PyTorch's class does not have."""
    known = dir(_base(module))
    own = {
        name: value
        for _, name, value in reversed(list(_own_members(module)))
        if not _is_code(value) and not name.startswith("__") and name not in known
    }
    standard = _standard_attributes()
    return own | {name: value for name, value in vars(module).items() if name not in standard}


@cache
def _standard_attributes() -> frozenset[str]:
    """Return what PyTorch's modules have in their ``__dict__``."""
    kinds = nn.EmbeddingBag, nn.Embedding
    # With a weight, so that none is drawn from the generator that models use.
    made = [vars(kind(1, 1, _weight=torch.zeros(1, 1))) for kind in kinds]
    of_modules = frozenset(made[0]) | frozenset(made[1])
    return of_modules | {"_compiled_call_impl"}  # of Module.compile


@cache
def _taken_names(bag: bool) -> frozenset[str]:
    """Return the names of a replacement's own attributes."""
    kind: Any = EmbeddingBag if bag else Embedding
    return frozenset(dir(kind(1, 1, optimizer=SGD(), seed=0)))


def _attributes(module: Original, own: dict[str, Any]) -> Iterator[str]:
    """Say what of a module's own attributes cannot be carried over."""
    extra = {name for name, _ in _own_parameters(module) if name != "weight"}
    extra |= {name for name, _ in module.named_buffers(recurse=False)}
    extra |= {name for name, _ in module.named_children()}
    if extra:
        yield (
            f"it has {', '.join(sorted(extra))} beside its weight, which would be lost: remove "
            "that, or replace it by hand"
        )
    for name, value in own.items():
        if name in dir(_base(module)):
            yield f"its {name} was replaced, which would be lost: restore it (del module.{name})"
        elif getattr(value, "__self__", None) is module:
            yield f"its attribute {name} is bound to it: delete it, and set it again afterwards"
        elif name in _taken_names(isinstance(module, nn.EmbeddingBag)):
            yield f"its attribute {name} has the name of one of mpembed's: rename it"


def _settings(module: Original) -> Iterator[str]:
    """Say which options and hooks cannot be kept."""
    yield from unsupported({option: getattr(module, option) for option in UNSUPPORTED})
    if isinstance(module, nn.EmbeddingBag):
        try:
            check_mode("mode", module.mode)
        except ValueError as error:
            yield str(error)
    weight = dict(_own_parameters(module)).get("weight")
    hooked = any(getattr(module, kind) for kind in _HOOKS)
    if hooked or any(getattr(weight, kind, None) for kind in _WEIGHT_HOOKS):
        yield "its hooks would be lost: remove them, and register them afterwards"


# ---- the weight ----------------------------------------------------------------------------


def _weight(name: str, module: Original, users: dict[Any, list[_User]]) -> Iterator[str]:
    """Say why a weight cannot become a table's rows."""
    weight = dict(_own_parameters(module)).get("weight")
    if weight is None:
        yield "its weight is not a parameter: set one, or replace the module by hand"
    elif weight.is_meta:
        yield "its weight is on the meta device and has no values: load them first"
    elif type(weight) not in (nn.Parameter, Tensor):
        yield f"its weight is a {type(weight).__name__}: convert the model before that is made"
    elif weight.dim() != 2 or weight.shape[1] < 1:
        yield f"its weight must have rows and columns, got shape {tuple(weight.shape)}"
    elif weight.dtype not in OUTPUT_DTYPES:
        allowed = ", ".join(map(str, OUTPUT_DTYPES))
        yield f"its weight must be of {allowed}, got {weight.dtype}"
    if weight is not None:
        yield from _ties(name, module, weight, users)


def _ties(
    name: str, module: Original, weight: Tensor, users: dict[Any, list[_User]]
) -> Iterator[str]:
    for user in users[memory(weight)]:
        if user.module is module or not overlap(user.parameter, weight):
            continue
        kind = type(user.module).__name__
        if isinstance(user.module, nn.EmbeddingBag | nn.Embedding):
            way_out = "use one module in both places, or exclude both"
        elif isinstance(user.module, nn.Linear):
            way_out = (
                f"exclude it, or take {user.name} out and call torch.nn.functional.linear(x, "
                f"{name}.weight) in its place"
            )
        else:
            way_out = "exclude it, or give one of them a copy"
        yield f"its weight is also used by {user.name or 'the model'} ({kind}): {way_out}"


def _users_by_memory(model: nn.Module) -> dict[Any, list[_User]]:
    """Return all parameters of a model, by the memory in which they lie."""
    users: dict[Any, list[_User]] = {}
    for name, module in model.named_modules():
        for _, parameter in _own_parameters(module):
            user = _User(name, module, parameter)
            users.setdefault(memory(parameter), []).append(user)
    return users


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield a module's parameters with their names, those of modules in it left out."""
    return module.named_parameters(recurse=False, remove_duplicate=False)


def memory(tensor: Tensor) -> Any:
    """Return what tensors on the same memory have in common, and no others."""
    plain = type(tensor) in (nn.Parameter, Tensor) and tensor.layout is torch.strided
    address = tensor.untyped_storage().data_ptr() if plain else 0
    return (str(tensor.device), address) if address else id(tensor)


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one memory have bytes in common."""
    if one is other:
        return True
    (start, end), (other_start, other_end) = _extent(one), _extent(other)
    return start < other_end and other_start < end


def _extent(tensor: Tensor) -> tuple[int, int]:
    if tensor.numel() == 0:
        return 0, 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    start = int(tensor.storage_offset())
    return start * tensor.element_size(), (start + int(last) + 1) * tensor.element_size()
