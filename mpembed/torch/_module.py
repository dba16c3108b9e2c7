"""What the modules share: the lookup, training and evaluation, state, copies, devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function

from mpembed._arguments.scalars import finite
from mpembed.collection import EmbeddingBagCollection
from mpembed.config import CacheConfig, TableConfig
from mpembed.devices import CudaDevice, TorchDevice
from mpembed.optim import Optimizer
from mpembed.torch import _state
from mpembed.torch._calls import Calls
from mpembed.torch._lookup import COMPILES, Lookup

OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_apply: Callable[..., Tensor] = Lookup.apply
_profiling = torch._C._autograd._profiler_enabled
_tracing = torch._C._is_tracing


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
    tables: Sequence[TableConfig], optimizer: Optimizer, options: Options
) -> tuple[EmbeddingBagCollection, ModuleOptions]:
    """Return a collection, and the options that are the module's own."""
    own: Any = {k: v for k, v in options.items() if k in ModuleOptions.__annotations__}
    rest: Any = {k: v for k, v in options.items() if k not in own}
    for name in rest:
        if name not in Options.__annotations__:
            raise TypeError(f"{name!r} is no option of mpembed.torch's modules")
    _check(own)
    return EmbeddingBagCollection(tables, optimizer=optimizer, **rest), own


def _check(options: Any) -> None:
    dtype = options.get("output_dtype", torch.float32)
    if dtype not in OUTPUT_DTYPES:
        raise ValueError(f"output_dtype must be float32, bfloat16 or float16, got {dtype}")
    for name in ("clip_grad_value", "clip_grad_norm"):
        if options.get(name) is not None and finite(name, options[name], 0.0) == 0.0:
            raise ValueError(f"{name} must be positive")


class TableModule(nn.Module):
    """A module around a collection; it has neither parameters nor buffers.

    Parameters
    ----------
    collection : mpembed.EmbeddingBagCollection
        The tables.
    output_dtype : torch.dtype
        float32, bfloat16 or float16: what the FP32 result is rounded to.
    clip_grad_value : float, optional
        Limit of the magnitude of each element of the output's gradient.
    clip_grad_norm : float, optional
        Limit of the L2 norm of the output's whole gradient, which is scaled down to it.
    """

    def __init__(
        self, collection: EmbeddingBagCollection, **options: Unpack[ModuleOptions]
    ) -> None:
        super().__init__()
        if not isinstance(collection, EmbeddingBagCollection):
            raise TypeError(
                f"expected an mpembed.EmbeddingBagCollection, got {type(collection).__name__}"
            )
        _check(options)
        self.output_dtype = options.get("output_dtype", torch.float32)
        clip = options.get("clip_grad_value"), options.get("clip_grad_norm")
        self._attach(collection, clip, trained=True)

    def _attach(
        self,
        collection: EmbeddingBagCollection,
        clip: tuple[float | None, float | None],
        *,
        trained: bool,
    ) -> None:
        self._calls = Calls(collection, *clip)
        self._handle = self._calls.handle
        # Requires grad in the place of the tables, so that autograd comes to the backward. It is
        # no parameter: nothing else may train, clip or synchronise it.
        self._anchor = torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=trained)

    @property
    def tables(self) -> EmbeddingBagCollection:
        """The collection: its rows, statistics, memory, checkpoints."""
        return self._calls.collection

    @property
    def optimizer(self) -> Optimizer:
        """The collection's optimizer; `FusedOptimizer` is the one for schedulers."""
        return self._calls.collection.optimizer

    @property
    def device(self) -> torch.device:
        """Where the tables lie."""
        return torch.device(self._calls.collection.device)

    @property
    def clip_grad_value(self) -> float | None:
        """Limit of the magnitude of each element of the output's gradient; may be set."""
        return self._calls.clip_value

    @clip_grad_value.setter
    def clip_grad_value(self, value: float | None) -> None:
        _check({"clip_grad_value": value})
        self._calls.clip(value, self.clip_grad_norm)

    @property
    def clip_grad_norm(self) -> float | None:
        """Limit of the L2 norm of the output's whole gradient; may be set."""
        return self._calls.clip_norm

    @clip_grad_norm.setter
    def clip_grad_norm(self, norm: float | None) -> None:
        _check({"clip_grad_norm": norm})
        self._calls.clip(self.clip_grad_value, norm)

    # ---- calls -----------------------------------------------------------------------------

    def _lookup(
        self,
        indices: Tensor,
        offsets: Tensor,
        weights: Tensor | None = None,
        order: Sequence[int] = (),
    ) -> Tensor:
        """Look up, with the update to follow where one will; `order` as in `_calls.arranged`."""
        training = self.training and torch.is_grad_enabled() and self._anchor.requires_grad
        if weights is not None:
            weights = self._checked(weights, training=training)
        if torch.compiler.is_compiling():
            out = self._compiled(indices, offsets, weights, order, training=training)
        elif _profiling():
            with record_function("mpembed::forward"):
                out = self._eager(indices, offsets, weights, order, training=training)
        else:
            out = self._eager(indices, offsets, weights, order, training=training)
        return out if self.output_dtype is torch.float32 else out.to(self.output_dtype)

    @staticmethod
    def _checked(weights: Tensor, *, training: bool) -> Tensor:
        if not training and weights.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "per_sample_weights require grad, which only a training forward gives: call "
                "train() or requires_grad_() of the module, or detach the weights"
            )
        return weights.to(torch.float32)

    def _eager(
        self,
        indices: Tensor,
        offsets: Tensor,
        weights: Tensor | None,
        order: Sequence[int],
        *,
        training: bool,
    ) -> Tensor:
        if _tracing():
            raise RuntimeError(
                "torch.jit.trace would keep the rows of this batch as constants: use torch.export"
            )
        if training:
            return _apply(self._anchor, weights, self._calls, indices, offsets, order)
        if weights is not None:
            weights = weights.detach()
        return self._calls.evaluate(indices, offsets, weights, order)

    def _compiled(
        self,
        indices: Tensor,
        offsets: Tensor,
        weights: Tensor | None,
        order: Sequence[int],
        *,
        training: bool,
    ) -> Tensor:
        if not COMPILES:
            raise RuntimeError("torch.compile of mpembed's modules needs PyTorch 2.13 or newer")
        anchor = self._anchor if training else self._anchor.detach()
        shape = self._output_shape(indices, offsets, order)
        out: Tensor
        out, _ = torch.ops.mpembed.lookup(
            anchor, indices, offsets, weights, self._handle, list(order), training, *shape
        )
        return out

    def _output_shape(
        self, indices: Tensor, offsets: Tensor, order: Sequence[int]
    ) -> tuple[int, int]:
        """Return the shape of a lookup's result."""
        raise NotImplementedError

    # ---- what torch.nn.Module has ------------------------------------------------------------

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train the tables or freeze them: a frozen module looks up as in evaluation."""
        self._anchor.requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Refuse other devices and shared memory; tables keep their own element types."""
        probe = fn(torch.zeros((), device="cpu"))
        here = self.device
        if probe.device.type != here.type or (here.index or 0) != (probe.device.index or 0):
            # A probe on the CPU says nothing: half() and the like leave it where it is.
            if probe.device.type != "cpu":
                raise RuntimeError(
                    f"the tables lie on {here} and cannot be moved to {probe.device}: make the "
                    "module with device=, or move the other modules one by one"
                )
            if fn(torch.zeros((), device=here)).device.type == "cpu":
                raise RuntimeError(f"the tables lie on {here} and cannot be moved to the CPU")
        if probe.device.type == "cpu" and probe.is_shared():  # a GPU's memory always says so
            raise RuntimeError("the tables cannot be shared between processes")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Return everything that training changes, for ``state_dict``.

        Returns
        -------
        dict
            Settings and tensors, safe for ``torch.load(weights_only=True)``. On the CPU the
            tensors are the collection's memory, as those of parameters are: copy them to keep
            them as they are.
        """
        return _state.state_of(self.tables)

    def set_extra_state(self, state: Any) -> None:
        """Continue from a state bit for bit; open batches are dropped.

        Parameters
        ----------
        state : dict
            From `get_extra_state` of a module with the same tables, cache and kind of optimizer.
            The seed is taken over, the learning rate is not.

        Raises
        ------
        ValueError
            If it does not fit, before anything changes.
        """
        _state.load(self.tables, state)

    def __copy__(self) -> Self:
        """Return another module with the same tables, rates and limits."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(super().__getstate__())  # type: ignore[no-untyped-call]
        return twin

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        for name in ("_calls", "_handle", "_anchor"):
            del state[name]
        clip = self.clip_grad_value, self.clip_grad_norm
        state["_portable"] = _state.Portable.of(self.tables), clip, self._anchor.requires_grad
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        portable, clip, trained = state.pop("_portable")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._attach(portable.collection, clip, trained=trained)

    def extra_repr(self) -> str:
        """Return what ``repr`` says of the tables."""
        tables = self.tables
        parts = [f"device={tables.device!r}", repr(self.optimizer)]
        if self.output_dtype is not torch.float32:
            parts.append(f"output_dtype={self.output_dtype}")
        if not self._anchor.requires_grad:
            parts.append("frozen")
        return ", ".join(parts)
