"""JAX's primitives of a collection's calls: how they are traced, compiled and refused.

They have side effects, but no effect of JAX's: a program with one is run by Python code, which
takes 60 us longer. So each rule that could drop, repeat or reorder a call says here what it does
instead, and the order of calls is that of the state, which each takes and gives.
"""

import atexit
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NoReturn

import jax
from jax.extend.core import Primitive, Var
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe

from mpembed._bindings import xla

Results = tuple[tuple[tuple[int, ...], str], ...]  # (shape, dtype) of each result

_CPU_ONLY = (
    "mpembed.jax works on the CPU: compile the program for it, as under "
    "jax.default_device(jax.devices('cpu')[0]), or call the collection itself, between programs, "
    "with arrays of its device"
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


def _refuse(message: str, *_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError(message)


def _results(*_: Any, results: Results) -> list[Any]:
    return [jax.core.ShapedArray(shape, jax.numpy.dtype(dtype)) for shape, dtype in results]


@lru_cache(maxsize=256)
def _compiled(primitive: Primitive, results: Results) -> Callable[..., Any]:
    return jax.jit(partial(primitive.bind, results=results))


def _run(primitive: Primitive, *args: Any, results: Results) -> Any:
    """Make a call outside of every program, as a program of its own."""
    with jax.disable_jit(False):  # which would come here again
        return _compiled(primitive, results)(*args)


def _devices(context: Any) -> int:
    """Return how many devices a program is for."""
    mesh = getattr(context, "mesh", None)
    return int(context.num_devices if mesh is None else mesh.size)


def _lower(name: str, context: mlir.LoweringRuleContext, *args: Any, results: Results) -> Any:
    if _devices(context.module_context.axis_context) > 1:
        raise NotImplementedError(_ONE_DEVICE.format(name=name))
    rule = jax.ffi.ffi_lowering(f"mpembed_{name}", has_side_effect=True)
    return rule(context, *args)


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
    """Return the primitive of a handler."""
    target = f"mpembed_{name}"
    jax.ffi.register_ffi_target(target, xla.TARGETS[target], platform="cpu")
    made = _primitive(name)
    mlir.register_lowering(made, partial(_refuse, _CPU_ONLY))
    mlir.register_lowering(made, partial(_lower, name), platform="cpu")
    pe.dce_rules[made] = _keep
    return made


forward = _target("forward")
backward = _target("backward")
evaluate = _target("evaluate")

# What a lookup is until it is differentiated, which makes a forward and a backward of it.
lookup = _primitive("lookup")
mlir.register_lowering(lookup, partial(_refuse, _NOT_DIFFERENTIATED))

atexit.register(xla.stop)  # before JAX's own, which was imported first
