"""What the modules share: the lookup, training and evaluation, state, copies, devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function

from mpembed._collection.fixed import SETTINGS, refusal
from mpembed.collection import EmbeddingBagCollection
from mpembed.torch._copies import PortableCollection
from mpembed.torch._dense import dense
from mpembed.torch._forward_calls import AttachedOptimizer
from mpembed.torch._lookup import COMPILES, Lookup, WeightedLookup
from mpembed.torch._module_calls import ModuleCalls
from mpembed.torch._module_warnings import warn_of_late_scaling, warn_of_rounding
from mpembed.torch._options import ModuleOptions, check_module_options, refuse_other_options
from mpembed.torch._parameter import TableParameter, table_parameter
from mpembed.torch._state_dict import TableState

_apply: Callable[..., Any] = Lookup.apply
_apply_weighted: Callable[..., Any] = WeightedLookup.apply
_profiling = torch._C._autograd._profiler_enabled
_tracing = torch._C._is_tracing
_NEVER_SET = SETTINGS | {"lr", "precision"}


class TableModule(TableState):
    """A module around a collection.

    Its only parameter, ``anchor``, stands for the tables: freezing it freezes them.

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

    anchor: TableParameter
    _calls: ModuleCalls
    _warns_of_rounding = False  # when training ends for the first time with too much noise

    def __init__(
        self, collection: EmbeddingBagCollection, **options: Unpack[ModuleOptions]
    ) -> None:
        nn.Module.__init__(self)  # of PyTorch's embeddings nothing else is wanted
        if not isinstance(collection, EmbeddingBagCollection):
            raise TypeError(
                f"collection must be an mpembed.EmbeddingBagCollection, got "
                f"{type(collection).__name__}"
            )
        refuse_other_options(type(self).__name__, options)
        check_module_options(options)
        self.output_dtype = options.get("output_dtype", torch.float32)
        clip = options.get("clip_grad_value"), options.get("clip_grad_norm")
        self._attach(collection, clip, trained=True)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _NEVER_SET:
            raise refusal(self, name, "tables.")
        if name == "output_dtype":
            check_module_options({name: value})
        super().__setattr__(name, value)

    def _attach(
        self,
        collection: EmbeddingBagCollection,
        clip: tuple[float | None, float | None],
        *,
        trained: bool,
    ) -> None:
        self._calls = ModuleCalls(collection, *clip, self._padding())
        self._handle = self._calls.handle
        self.anchor = table_parameter(self.device, trained=trained)
        self.anchor.deferred = self._calls.pending

    def _padding(self) -> int | None:
        """Return the row that is neither pooled nor updated."""
        return None

    @property
    def optimizer(self) -> Any:
        """The collection's `Optimizer`, or None; `FusedOptimizer` is the one for schedulers."""
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
        check_module_options({"clip_grad_value": value})
        self._calls.set_clipping(value, self.clip_grad_norm)

    @property
    def clip_grad_norm(self) -> float | None:
        """Limit of the L2 norm of the output's whole gradient; may be set."""
        return self._calls.clip_norm

    @clip_grad_norm.setter
    def clip_grad_norm(self, norm: float | None) -> None:
        check_module_options({"clip_grad_norm": norm})
        self._calls.set_clipping(self.clip_grad_value, norm)

    # ---- for FusedOptimizer ------------------------------------------------------------------

    def attach_optimizer(self, optimizer: AttachedOptimizer, groups: Sequence[int]) -> None:
        """Let backwards take the learning rates and gradient scale of an optimizer's groups.

        Parameters
        ----------
        optimizer : AttachedOptimizer
            Such as a `FusedOptimizer`; asked as long as it lives, or until another is attached.
        groups : sequence of int
            Each is passed to its `apply_lr`.
        """
        self._calls.attach_optimizer(optimizer, groups)

    @property
    def attached_optimizer(self) -> AttachedOptimizer | None:
        """The optimizer that `attach_optimizer` has attached, if it still exists."""
        return self._calls.optimizer

    @property
    def calls(self) -> ModuleCalls:
        """The calls of the collection, for optimizers."""
        return self._calls

    # ---- calls -----------------------------------------------------------------------------

    def _lookup(
        self,
        indices: Tensor,
        offsets: Tensor,
        weights: Tensor | None = None,
        order: Sequence[int] = (),
    ) -> Any:
        """Look up, for training where the module trains; `order` as in `_feature_order`.

        Returns a tuple of the tables' outputs where one of several is unpooled.
        """
        training = self.training and torch.is_grad_enabled() and self.anchor.requires_grad
        if weights is not None:
            weights = dense("per_sample_weights", weights).to(torch.float32)
        if torch.compiler.is_compiling():
            out: Any = self._compiled(indices, offsets, weights, order, training=training)
        elif _profiling():
            with record_function("mpembed::forward"):
                out = self._eager(indices, offsets, weights, order, training=training)
        else:
            out = self._eager(indices, offsets, weights, order, training=training)
        if isinstance(out, tuple):
            return tuple(one.to(self.output_dtype) for one in out)
        return out if out.dtype is self.output_dtype else out.to(self.output_dtype)

    def _lookup_dtype(self) -> torch.dtype:
        """Return the type that the tables themselves are to give."""
        return self.output_dtype if self._calls.gives(self.output_dtype) else torch.float32

    def _eager(
        self,
        indices: Tensor,
        offsets: Tensor,
        weights: Tensor | None,
        order: Sequence[int],
        *,
        training: bool,
    ) -> Any:
        if _tracing():
            raise RuntimeError(
                "torch.jit.trace would store the rows of this batch as constants: use torch.export "
                "of mpembed.torch.freeze(model)"
            )
        dtype = self._lookup_dtype()
        if training:
            anchor = self.anchor  # nn.Module finds parameters slowly
            if not isinstance(anchor, TableParameter):
                raise RuntimeError(
                    "module.anchor was replaced, and tables train by their own alone: leave it out "
                    "of the parameters of torch.func.functional_call"
                )
            anchor.reset()
            if anchor.take_scaled():
                warn_of_late_scaling(anchor, self._calls)
            return _apply(anchor, weights, self._calls, indices, offsets, order, dtype)
        if weights is not None and weights.requires_grad and torch.is_grad_enabled():
            return _apply_weighted(weights, self._calls, indices, offsets, order, dtype)
        return self._calls.evaluate(indices, offsets, weights, order, dtype)

    def _compiled(
        self,
        indices: Tensor,
        offsets: Tensor,
        weights: Tensor | None,
        order: Sequence[int],
        *,
        training: bool,
    ) -> Tensor:
        if torch.compiler.is_exporting():
            raise RuntimeError(
                "torch.export would store a number that stands for these tables in this process "
                "alone: export mpembed.torch.freeze(model), which holds their rows"
            )
        if not COMPILES:
            raise RuntimeError("torch.compile of mpembed's modules needs PyTorch 2.13 or newer")
        if weights is not None and not training and weights.requires_grad:
            raise RuntimeError(
                "per_sample_weights require grad, and compiled code gives it to a training forward "
                "alone: call train() and requires_grad_() of the module, or detach the weights"
            )
        anchor: Tensor = self.anchor if training else self.anchor.detach()
        shape = self._output_shape(indices, offsets, order)
        out: Tensor
        dtype = self._lookup_dtype()
        out, _ = torch.ops.mpembed.lookup(
            anchor, indices, offsets, weights, self._handle, list(order), training, *shape, dtype
        )
        return out

    def _output_shape(
        self, indices: Tensor, offsets: Tensor, order: Sequence[int]
    ) -> tuple[int, int]:
        """Return the shape of a lookup's result."""
        raise NotImplementedError

    # ---- what torch.nn.Module has ------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Train, or evaluate. A module of `convert` warns once if rounding noise is too large."""
        ends = self.training and not mode
        super().train(mode)
        if ends and self._warns_of_rounding:
            self._warns_of_rounding = False  # also where the warning is an error
            self._warns_of_rounding = not warn_of_rounding(self.tables)
        return self

    def warn_of_rounding(self) -> None:
        """Warn of noise that is too large when training ends, once."""
        self._warns_of_rounding = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Refuse to move or share the tables; outputs follow a new element type."""
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
                raise RuntimeError(
                    f"the tables lie on {here} and cannot be moved to the CPU: make the module "
                    "with device='cpu', or move the other modules one by one"
                )
        if probe.device.type == "cpu" and probe.is_shared():  # a GPU's memory always says so
            raise RuntimeError(
                "the tables cannot be shared between processes: send the module, which is copied"
            )
        dtype = fn(torch.zeros((), dtype=self.output_dtype, device="cpu")).dtype
        check_module_options({"output_dtype": dtype})
        anchor = self._parameters.pop("anchor")  # stays FP32, and the same object
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            self._parameters["anchor"] = anchor
        self.output_dtype = dtype
        return self

    def __copy__(self) -> Self:
        """Return another module with the same tables, rates and limits."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(super().__getstate__())  # type: ignore[no-untyped-call]
        return twin

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        for name in ("_calls", "_handle"):
            del state[name]
        others = {k: v for k, v in self._parameters.items() if k != "anchor"}
        state["_parameters"] = others
        clip = self.clip_grad_value, self.clip_grad_norm
        state["_portable"] = PortableCollection.of(self.tables), clip, self.anchor.requires_grad
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        portable, clip, trained = state.pop("_portable")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._attach(portable.collection, clip, trained=trained)

    def _optimizer_repr(self) -> str:
        return "no shared optimizer" if self.optimizer is None else repr(self.optimizer)

    def extra_repr(self) -> str:
        """Return what ``repr`` says of the tables."""
        tables = self.tables
        parts = [f"device={tables.device!r}", self._optimizer_repr()]
        if self.output_dtype is not torch.float32:
            parts.append(f"output_dtype={self.output_dtype}")
        if not self.anchor.requires_grad:
            parts.append("frozen")
        return ", ".join(parts)
