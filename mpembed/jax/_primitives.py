"""JAX's primitives of a collection's calls: how they are traced, compiled and refused.

They have side effects, but no effect of JAX's: a program with one is run by Python code, which
takes 60 us longer. So each rule that could drop, repeat or reorder a call says here what it does
instead, and the order of calls is that of the state, which each takes and gives.
"""

import atexit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NoReturn

import jax
import numpy as np
from jax.extend.core import Primitive, Var
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe

from mpembed._bindings import xla

Results = tuple[tuple[tuple[int, ...], str], ...]  # (shape, dtype) of each result

_CPU_OR_CUDA = (
    "mpembed.jax works on the CPU and on CUDA devices: compile the program for one of them, as "
    "under jax.default_device(jax.devices('cpu')[0]), or call the collection itself, between "
    "programs"
)
_ANOTHER_PLATFORM = (
    "mpembed.jax: the program is compiled for {platform}, and its collection is on {device}. "
    "Compile the program for {there}, as under jax.default_device, or make the collection with "
    "device={wanted!r}"
)
_ONE_DEVICE = (
    "mpembed.jax: {name} cannot be part of a program for several devices (pmap, shard_map, sharded "
    "arguments): the tables lie in one place. Look up outside of it and pass the output in, or use "
    "mpembed.torch's sharded tables"
)
_NO_VMAP = (
    "mpembed.jax: {name} cannot be mapped by vmap: the tables are not arrays of the program, and "
    "there is one of each. Put all examples into one batch: join their indices, table by table, "
    "and their offsets"
)
_NOT_DIFFERENTIATED = (
    "mpembed.jax: lookup trains, so the loss must be differentiated with regard to its state: "
    "jax.value_and_grad(loss, argnums=(0, 1))(params, state), where the state's gradient is the "
    "next state. To look up without training, call evaluate"
)
_NO_DERIVATIVE = (
    "mpembed.jax: {name} has no derivative: differentiate a loss of lookup, or use jax.vjp of what "
    "comes after forward and pass the gradient of its output to backward"
)


@dataclass(frozen=True)
class Home:
    """Where a program's collection is, as it is known while the program is traced.

    Attributes
    ----------
    device : str
        "cpu" or "cuda:N".
    ordinal : int
        What a program for a CUDA device names the collection by; 0 on the CPU, where a state does.
    """

    device: str
    ordinal: int


def _refuse(message: str, *_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError(message)


def _results(*_: Any, results: Results, home: Home) -> list[Any]:
    del home
    return [jax.core.ShapedArray(shape, jax.numpy.dtype(dtype)) for shape, dtype in results]


@lru_cache(maxsize=256)
def _compiled(primitive: Primitive, results: Results, home: Home) -> Callable[..., Any]:
    return jax.jit(partial(primitive.bind, results=results, home=home))


def _run(primitive: Primitive, *args: Any, results: Results, home: Home) -> Any:
    """Make a call outside of every program, as a program of its own."""
    with jax.disable_jit(False):  # which would come here again
        return _compiled(primitive, results, home)(*args)


def _devices(context: Any) -> int:
    """Return how many devices a program is for."""
    mesh = getattr(context, "mesh", None)
    return int(context.num_devices if mesh is None else mesh.size)


def _lower(
    name: str,
    platform: str,
    context: mlir.LoweringRuleContext,
    *args: Any,
    results: Results,
    home: Home,
) -> Any:
    """Return a handler's call in a program for "cpu" or "cuda"."""
    del results
    if _devices(context.module_context.axis_context) > 1:
        raise NotImplementedError(_ONE_DEVICE.format(name=name))
    if home.device.partition(":")[0] != platform:
        raise ValueError(_another_platform(platform, home.device))
    rule = jax.ffi.ffi_lowering(f"mpembed_{name}", has_side_effect=True)
    # The CPU's handlers find the collection by its state: one program serves any of them.
    named = {} if platform == "cpu" else {"collection": np.int64(home.ordinal)}
    return rule(context, *args, **named)


def _another_platform(platform: str, device: str) -> str:
    there = "the CPU" if device == "cpu" else device
    known = {"cpu": "the CPU", "cuda": "CUDA"}[platform]
    return _ANOTHER_PLATFORM.format(platform=known, device=there, there=there, wanted=platform)


def _keep(used: Sequence[bool], equation: Any) -> tuple[list[bool], Any]:
    """Dead code: a call is made whether its results are used or not."""
    del used
    return [True] * len(equation.invars), equation


def _save(
    _: Any, unknown: Sequence[bool], available: Sequence[bool], equation: Any
) -> tuple[Any, Any, list[bool], list[bool], list[Any]]:
    """Rematerialisation (`jax.checkpoint`): results are kept, for the call is not made again."""
    count = len(equation.outvars)
    if not any(unknown):
        return equation, None, [False] * count, [False] * count, []
    pairs = zip(available, equation.invars, strict=True)
    needed = [var for there, var in pairs if not there and isinstance(var, Var)]
    return None, equation, [True] * count, [True] * count, needed


def _primitive(name: str) -> Primitive:
    made = Primitive(f"mpembed_{name}")
    made.multiple_results = True
    made.def_abstract_eval(_results)
    made.def_impl(partial(_run, made))
    batching.primitive_batchers[made] = partial(_refuse, _NO_VMAP.format(name=name))
    ad.primitive_jvps[made] = partial(_refuse, _NO_DERIVATIVE.format(name=name))
    pe.partial_eval_jaxpr_custom_rules[made] = _save
    return made


def _target(name: str) -> Primitive:
    """Return the primitive of a handler, which each platform has."""
    target = f"mpembed_{name}"
    made = _primitive(name)
    mlir.register_lowering(made, partial(_refuse, _CPU_OR_CUDA))
    for platform, handlers in xla.TARGETS.items():
        jax.ffi.register_ffi_target(target, handlers[target], platform=platform)
        lowered = platform.lower()
        mlir.register_lowering(made, partial(_lower, name, lowered), platform=lowered)
    pe.dce_rules[made] = _keep
    return made


forward = _target("forward")
backward = _target("backward")
evaluate = _target("evaluate")

# What a lookup is until it is differentiated, which makes a forward and a backward of it.
lookup = _primitive("lookup")
mlir.register_lowering(lookup, partial(_refuse, _NOT_DIFFERENTIATED))

atexit.register(xla.stop)  # before JAX's own, which was imported first
