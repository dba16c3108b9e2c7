"""What the modules share: the lookup, training and evaluation, state, copies, devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function

from mpembed.collection import EmbeddingBagCollection
from mpembed.torch import _state
from mpembed.torch._copies import PortableCollection
from mpembed.torch._lookup import COMPILES, Lookup
from mpembed.torch._module_calls import AttachedOptimizer, ModuleCalls
from mpembed.torch._options import ModuleOptions, check_module_options

_apply: Callable[..., Tensor] = Lookup.apply
_profiling = torch._C._autograd._profiler_enabled
_tracing = torch._C._is_tracing


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
                f"collection must be an mpembed.EmbeddingBagCollection, got "
                f"{type(collection).__name__}"
            )
        check_module_options(options)
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
        self._calls = ModuleCalls(collection, *clip)
        self._handle = self._calls.handle
        # Autograd calls the backward because this requires grad. It is not a parameter: nothing
        # else may train, clip or synchronise it.
        self._anchor = torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=trained)

    @property
    def tables(self) -> EmbeddingBagCollection:
        """The collection: its rows, statistics, memory, checkpoints."""
        return self._calls.collection

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

    @property
    def autograd_anchor(self) -> Tensor:
        """The scalar that requires grad in the place of the tables; it is not a parameter."""
        return self._anchor

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

    # ---- calls -----------------------------------------------------------------------------

    def _lookup(
        self,
        indices: Tensor,
        offsets: Tensor,
        weights: Tensor | None = None,
        order: Sequence[int] = (),
    ) -> Tensor:
        """Look up, for training where the module trains; `order` as in `_feature_order`."""
        training = self.training and torch.is_grad_enabled() and self._anchor.requires_grad
        if weights is not None:
            weights = self._checked_weights(weights, training=training)
        if torch.compiler.is_compiling():
            out = self._compiled(indices, offsets, weights, order, training=training)
        elif _profiling():
            with record_function("mpembed::forward"):
                out = self._eager(indices, offsets, weights, order, training=training)
        else:
            out = self._eager(indices, offsets, weights, order, training=training)
        return out if self.output_dtype is torch.float32 else out.to(self.output_dtype)

    @staticmethod
    def _checked_weights(weights: Tensor, *, training: bool) -> Tensor:
        if not training and weights.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "per_sample_weights require grad, which only a training forward gives: call "
                "train() and requires_grad_() of the module, or detach the weights"
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
                "torch.jit.trace would store the rows of this batch as constants: use torch.export"
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
        """Refuse to move or share the tables; they keep their own element types."""
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
            From `get_extra_state` of a module with the same tables, cache and kinds of optimizer.
            The seed is taken over, the learning rates are not.

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
        state["_portable"] = PortableCollection.of(self.tables), clip, self._anchor.requires_grad
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
        if not self._anchor.requires_grad:
            parts.append("frozen")
        return ", ".join(parts)
