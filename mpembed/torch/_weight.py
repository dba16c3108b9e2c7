"""All rows of a table as one tensor: what ``weight`` of a module is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpembed.torch._backward_pass import adds_gradient
from mpembed.torch._module_calls import ModuleCalls
from mpembed.torch._parameter import mark
from mpembed.torch._weight_source import WAY_OUT, AllRows, WeightSource

_PLAIN = torch._C.DisableTorchFunctionSubclass
_tensor: Any = torch.Tensor
_SET_DATA = _tensor.data.__set__
_REQUIRES_GRAD = _tensor.requires_grad.__set__, _tensor.requires_grad_
_GRAD = _tensor.grad.__get__, _tensor.grad.__set__
_is_alias_of: Callable[[Tensor, Tensor], bool] = torch._C._is_alias_of  # type: ignore[attr-defined]
# Methods whose names end as those of methods that write, and which do not.
_WRITE_NOTHING = {"requires_grad_", "retain_grad", "detach_"}


class ReadWeight(torch.autograd.Function):
    """All rows; the backward updates those that a gradient reached."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, calls: ModuleCalls, rows: Tensor) -> Tensor:
        """Return the rows; `anchor` requires grad, so that the backward is reached."""
        ctx.calls, ctx.device = calls, anchor.device
        calls.reads.add(ctx)
        return rows.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Update the rows whose gradient is not zero."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the gradient of a table's weight updates rows and cannot be differentiated: call "
                "backward() without create_graph=True"
            )
        if ctx.calls.defers and not adds_gradient(ctx):
            return None, None, None
        rows = None
        if grad.layout is torch.sparse_coo:
            grad = grad.coalesce()
            rows, grad = grad.indices()[0], grad.values()
        reached = (grad != 0).any(1).nonzero().squeeze(1)
        ids = reached if rows is None else rows[reached]
        ctx.calls.update_rows(ids, grad.index_select(0, reached))
        return mark(ctx.device), None, None


def read_weight(
    source: WeightSource, dtype: torch.dtype, *, trains: bool, writable: bool = True
) -> Tensor:
    """Return all rows of a module's table as a tensor whose gradient and writes reach them."""
    trains = trains and source.parameter.requires_grad and torch.is_grad_enabled()
    if trains:
        source.calls.meet_replicas()
    rows = source.read(dtype)
    found = rows.values.detach()
    if trains:
        found = ReadWeight.apply(source.parameter, source.calls, rows.values)  # type: ignore[no-untyped-call]
    return TableWeight.of(found, source, rows) if writable else found


class TableWeight(torch.Tensor):
    """All rows of a table, or a view of some; writing to it in place sets the table's rows."""

    _source: WeightSource
    _whole: AllRows

    @classmethod
    def of(cls, values: Tensor, source: WeightSource, whole: AllRows) -> TableWeight:
        """Return `values`, which lie in the memory of `whole`."""
        made = values.as_subclass(cls)
        made._source, made._whole = source, whole
        return made

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation of PyTorch's; see whether it writes or returns a view."""
        kwargs = kwargs or {}
        given = list(_weights([*args, *kwargs.values()]))
        if not given:
            with _PLAIN():
                return func(*args, **kwargs)
        first, written = given[0], list(_written(func, args, kwargs))
        if written:
            _check_same_table(written)
            return _write(written[0], func, args, kwargs)
        if func in _REQUIRES_GRAD:
            flag = args[1] if len(args) > 1 else kwargs.get("requires_grad", True)
            first._source.parameter.requires_grad_(flag)
            return first
        if getattr(func, "__name__", "") == "detach":
            return plain(first)
        if func in _GRAD:
            return None  # it is an update
        with _PLAIN():
            before = [tensor._version for tensor in given]
            result = _view(func(*args, **kwargs), first)
            for tensor, version in zip(given, before, strict=True):
                if tensor._version != version:
                    tensor._source.forget()
                    raise RuntimeError(f"a table's weight was written to by {func}, {WAY_OUT}")
        return result

    def __deepcopy__(self, memo: Any) -> Tensor:
        """Return a tensor that has nothing to do with the table any more."""
        return plain(self).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return plain(self).clone().__reduce_ex__(protocol)


def plain(values: Tensor) -> Tensor:
    """Return the values as an ordinary tensor without a gradient."""
    with _PLAIN():
        return values.detach().as_subclass(torch.Tensor)


def _weights(given: Iterable[Any]) -> Iterator[TableWeight]:
    for one in given:
        if isinstance(one, TableWeight):
            yield one
        elif isinstance(one, list | tuple):
            yield from _weights(one)


def _written(func: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[TableWeight]:
    """Return what a function writes to."""
    name = getattr(func, "__name__", "")
    augmented = name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
    in_place = name.endswith("_") and not name.endswith("__") and name not in _WRITE_NOTHING
    if func == _SET_DATA or in_place or augmented or name == "__setitem__":
        yield from _weights(itertools.islice(args, 1))
        yield from _weights([kwargs.get("tensor")])  # of torch.nn.init
    yield from _weights([kwargs.get("out")])


def _check_same_table(written: Sequence[TableWeight]) -> None:
    if any(one._source is not written[0]._source for one in written):
        raise RuntimeError(
            "one call writes to the weights of several tables: write to one weight at a time"
        )


def _view(result: Any, of: TableWeight) -> Any:
    """Let views of the rows know where they come from."""
    if isinstance(result, list | tuple) and type(result) in (list, tuple):
        return type(result)(_view(one, of) for one in result)
    if isinstance(result, np.ndarray):
        whole = of._whole.values  # an array's writes cannot be seen
        if whole.data_ptr() <= result.ctypes.data < whole.data_ptr() + whole.nbytes:
            result.setflags(write=False)
        return result
    if isinstance(result, Tensor) and _is_alias_of(result, of._whole.values):
        return TableWeight.of(result, of._source, of._whole)
    if isinstance(result, TableWeight):
        return result.as_subclass(torch.Tensor)
    return result


def _write(target: TableWeight, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run a function that writes to rows; set those rows of the table that have changed."""
    source, whole = target._source, target._whole.values
    if func == _SET_DATA:
        source.set_all(args[1])
        return None
    initialises = getattr(func, "__module__", "") == "torch.nn.init"
    if target.requires_grad and torch.is_grad_enabled() and not initialises:
        raise RuntimeError(
            "a table's weight that requires grad is written to: do it under torch.no_grad(), or "
            "set rows with tables.set_rows"
        )
    first, last = _touched(target, whole)
    with _PLAIN(), torch.no_grad():
        part = whole[first:last]
        recent = _check_recent(target, first, last)
        before = part.clone()
        result = func(*args, **kwargs)
        changed = _differ(part, before)
        if changed.numel():
            try:
                source.set_rows(changed + first, part.index_select(0, changed))
                if recent:
                    target._whole.at = source.now
            except ValueError:
                part.copy_(before)
                source.forget()
                raise
        source.forget()
    return _view(result, target)


def _differ(one: Tensor, other: Tensor) -> Tensor:
    """Return the numbers of the rows that differ, as bits: a NaN is not equal to itself."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return (one.view(integers) != other.view(integers)).any(1).nonzero().squeeze(1)


def _check_recent(target: TableWeight, first: int, last: int) -> bool:
    """Return whether all rows are those of now.

    RuntimeError if a write would put rows back to what they were before an update.
    """
    source, whole = target._source, target._whole
    if whole.at == source.now:
        return True
    rows = source.read(whole.values.dtype).values
    if _differ(whole.values[first:last], rows[first:last]).numel():
        raise RuntimeError(
            "the weight that is written to was read before rows of its table changed: read "
            "module.weight anew"
        )
    return False


def _touched(target: TableWeight, whole: Tensor) -> tuple[int, int]:
    """Return the first row that a view may reach, and the one after the last."""
    with _PLAIN():
        if target.numel() == 0:
            return 0, 0
        start = target.storage_offset() - whole.storage_offset()
        span = sum(
            (size - 1) * step for size, step in zip(target.shape, target.stride(), strict=True)
        )
        width = whole.shape[1]
        return start // width, (start + span) // width + 1
