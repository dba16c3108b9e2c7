"""Drop-in modules for ``torch.nn.EmbeddingBag`` and ``torch.nn.Embedding``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, Unpack

import torch
from torch import Tensor

from mpembed.collection import EmbeddingBagCollection
from mpembed.config import Init, TableConfig
from mpembed.optim import Optimizer
from mpembed.torch._module import TableModule
from mpembed.torch._options import (
    MODES,
    ModuleOptions,
    Options,
    check_mode,
    make_collection,
    refuse_unsupported,
)


def _check_input(input: Any) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a tensor, got {type(input).__name__}")


class _OneTable(TableModule):
    """A module with a single table."""

    def __init__(
        self, collection: EmbeddingBagCollection, **options: Unpack[ModuleOptions]
    ) -> None:
        super().__init__(collection, **options)
        (self._table,) = collection.tables
        self.num_embeddings = self._table.num_embeddings
        self.embedding_dim = self._table.embedding_dim
        # The last offsets of equal bags, after the shape and device that they are for.
        self._equal_bags: tuple[Any, Tensor | None] = (None, None)

    def _offsets_of_equal_bags(self, like: Tensor, bags: int, size: int) -> Tensor:
        """Return the offsets of bags of one size, on the device of `like`."""
        if torch.compiler.is_compiling():
            return equal_bag_offsets(like, bags, size)
        key = bags, size, like.device
        known, found = self._equal_bags  # read once: other threads may call at the same time
        if found is None or known != key:
            found = equal_bag_offsets(like, bags, size)
            if type(found) is Tensor:  # not a fake tensor, which has no memory
                self._equal_bags = key, found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_equal_bags": (None, None)}

    def _optimizer_repr(self) -> str:
        trains = self.tables.optimizers[self._table.name]
        return "table frozen" if trains is None else repr(trains)

    def extra_repr(self) -> str:
        """Return what ``repr`` says of the table."""
        t = self._table
        return f"{t.num_embeddings}, {t.embedding_dim}, {t.precision}, {super().extra_repr()}"


def equal_bag_offsets(like: Tensor, bags: int, size: int) -> Tensor:
    """Return the offsets of `bags` bags of `size` indices each, on the device of `like`."""
    return torch.arange(bags + 1, dtype=torch.int64, device=like.device) * size


class EmbeddingBag(_OneTable):
    """``torch.nn.EmbeddingBag`` with a table of mpembed's, which the backward updates.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows and columns.
    mode : str
        ``"mean"`` or ``"sum"``.
    include_last_offset : bool
        Whether `offsets` ends with the number of indices.
    optimizer : mpembed.optim.Optimizer
        Applied by the backward.
    precision : str
        Storage format of the rows.
    init : None, "zeros", ("uniform", lo, hi) or ("normal", std)
        Initial values; None is uniform within ``+-1/sqrt(num_embeddings)``.
    name : str
        The table's name in errors and statistics.
    **options
        `cache`, `device`, `seed`, `rounding`, `bounds`, `on_nonfinite` as in
        ``mpembed.EmbeddingBagCollection``; `output_dtype` (float32, bfloat16 or float16: what the
        FP32 result is rounded to), `clip_grad_value` (limit of each element of the output's
        gradient), `clip_grad_norm` (limit of the L2 norm of the whole of it).

    Raises
    ------
    TypeError, ValueError
        For wrong values, and for `padding_idx`, `max_norm`, `scale_grad_by_freq` and `sparse`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        optimizer: Optimizer,
        mode: str = "mean",
        include_last_offset: bool = False,
        precision: str = "fp32",
        init: Init | None = None,
        name: str = "table",
        **options: Unpack[Options],
    ) -> None:
        refuse_unsupported("EmbeddingBag", options)  # type: ignore[arg-type]
        check_mode("mode", mode)
        table = TableConfig(name, num_embeddings, embedding_dim, precision, mode, init)
        collection, own = make_collection([table], optimizer, options)
        super().__init__(collection, **own)
        self.include_last_offset = include_last_offset

    @property
    def mode(self) -> str:
        """``"sum"`` or ``"mean"``; fixed when the module is made."""
        return self._table.pooling

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Look up and pool bags.

        Parameters
        ----------
        input : int32 or int64 Tensor (B, n) or (N,)
            Row numbers, n a bag, or those of all bags.
        offsets : int32 or int64 Tensor (B,) or (B + 1,), optional
            Where each bag of a one-dimensional `input` begins; B + 1 with `include_last_offset`.
        per_sample_weights : Tensor, optional
            One factor an index, of the shape of `input`, with a gradient if they require one. With
            ``mode="mean"`` the weighted sum is divided by the number of indices.

        Returns
        -------
        Tensor (B, embedding_dim)
            Of `output_dtype`.
        """
        _check_input(input)
        if per_sample_weights is not None and per_sample_weights.shape != input.shape:
            raise ValueError(
                f"per_sample_weights must have the shape of input, {tuple(input.shape)}, got "
                f"{tuple(per_sample_weights.shape)}"
            )
        if input.dim() == 2:
            if offsets is not None:
                raise ValueError(
                    "offsets must be None where input has two dimensions: a row is a bag"
                )
            if input.is_nested:
                raise ValueError("a nested input is not supported: pass its values and offsets")
            offsets = self._offsets_of_equal_bags(input, *input.shape)
            input = input.reshape(-1)
            if per_sample_weights is not None:
                per_sample_weights = per_sample_weights.reshape(-1)
        else:
            if input.dim() != 1:
                raise ValueError(f"input must have one or two dimensions, got {input.dim()}")
            if offsets is None or offsets.dim() != 1:
                raise ValueError("offsets must be a tensor of one dimension where input has one")
            if not self.include_last_offset:
                end = torch.full((1,), input.shape[0], dtype=offsets.dtype, device=offsets.device)
                offsets = torch.cat((offsets, end))
        return self._lookup(input, offsets, per_sample_weights)

    def _output_shape(
        self, indices: Tensor, offsets: Tensor, order: Sequence[int]
    ) -> tuple[int, int]:
        return offsets.shape[0] - 1, self.embedding_dim

    def extra_repr(self) -> str:
        """Return what ``repr`` says of the table."""
        return f"{super().extra_repr()}, mode={self.mode!r}"

    @classmethod
    def from_collection(
        cls,
        collection: EmbeddingBagCollection,
        *,
        include_last_offset: bool = False,
        **options: Unpack[ModuleOptions],
    ) -> Self:
        """Return a module of a collection with one pooled table, such as a loaded one.

        Parameters
        ----------
        collection : mpembed.EmbeddingBagCollection
            Used, not copied.
        include_last_offset : bool
            As in the class.
        **options
            `output_dtype`, `clip_grad_value`, `clip_grad_norm`.
        """
        poolings = [table.pooling for table in collection.tables]
        if len(poolings) != 1 or poolings[0] not in MODES:
            raise ValueError(
                "collection must have one table, with pooling "
                f"{' or '.join(map(repr, MODES))}, got tables with {poolings}"
            )
        module = cls.__new__(cls)
        _OneTable.__init__(module, collection, **options)
        module.include_last_offset = include_last_offset
        return module


class Embedding(_OneTable):
    """``torch.nn.Embedding`` with a table of mpembed's, which the backward updates.

    Parameters
    ----------
    num_embeddings, embedding_dim, optimizer, precision, init, name, **options
        As in `EmbeddingBag`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        optimizer: Optimizer,
        precision: str = "fp32",
        init: Init | None = None,
        name: str = "table",
        **options: Unpack[Options],
    ) -> None:
        refuse_unsupported("Embedding", options)  # type: ignore[arg-type]
        table = TableConfig(name, num_embeddings, embedding_dim, precision, "none", init)
        collection, own = make_collection([table], optimizer, options)
        super().__init__(collection, **own)

    def forward(self, input: Tensor) -> Tensor:
        """Look up rows.

        Parameters
        ----------
        input : int32 or int64 Tensor (...)
            Row numbers, of any shape.

        Returns
        -------
        Tensor (..., embedding_dim)
            Of `output_dtype`.
        """
        _check_input(input)
        flat = input.reshape(-1)
        out = self._lookup(flat, self._offsets_of_equal_bags(flat, 1, flat.shape[0]))
        return out.view(*input.shape, self.embedding_dim)

    def _output_shape(
        self, indices: Tensor, offsets: Tensor, order: Sequence[int]
    ) -> tuple[int, int]:
        return indices.shape[0], self.embedding_dim
