"""Drop-in modules for ``torch.nn.EmbeddingBag`` and ``torch.nn.Embedding``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, Unpack

from torch import Tensor, nn

from mpembed.collection import EmbeddingBagCollection
from mpembed.config import Init, TableConfig
from mpembed.optim import Optimizer
from mpembed.torch._bag_arguments import bag_arguments
from mpembed.torch._bag_errors import explained
from mpembed.torch._indices import row_numbers
from mpembed.torch._one_table import OneTable
from mpembed.torch._options import (
    ModuleOptions,
    Options,
    check_mode,
    make_collection,
    refuse_unsupported,
)
from mpembed.torch._poolings import refuse_other_collections


class EmbeddingBag(OneTable, nn.EmbeddingBag):
    """``torch.nn.EmbeddingBag`` with a table of mpembed's, which the backward updates.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows and columns.
    mode : str
        ``"mean"`` or ``"sum"``.
    include_last_offset : bool
        Whether `offsets` ends with the number of indices.
    padding_idx : int, optional
        A row that starts as zeros and that lookups never update; an EmbeddingBag leaves it out of
        sums and means.
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
        For wrong values, and for `max_norm`, `scale_grad_by_freq` and `sparse`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        optimizer: Optimizer,
        mode: str = "mean",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        precision: str = "fp32",
        init: Init | None = None,
        name: str = "table",
        **options: Unpack[Options],
    ) -> None:
        refuse_unsupported("EmbeddingBag", options)  # type: ignore[arg-type]
        check_mode("mode", mode)
        table = TableConfig(name, num_embeddings, embedding_dim, precision, mode, init)
        collection, own = make_collection([table], optimizer, options)
        OneTable.__init__(self, collection, padding_idx, **own)
        self._clear_padding()
        self.include_last_offset = include_last_offset

    @property
    def mode(self) -> str:  # type: ignore[override]
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
        input : int32, int64, uint32 or uint64 Tensor (B, n) or (N,)
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
        input = row_numbers(input, "input", self.tables)
        last = self.include_last_offset
        batch = bag_arguments(
            input,
            offsets,
            per_sample_weights,
            self._offsets_of_equal_bags,
            include_last_offset=last,
        )
        try:
            out: Tensor = self._lookup(batch.input, batch.offsets, batch.weights)
        except (IndexError, ValueError) as error:
            raise explained(
                error, self._table, input, batch.given_offsets, include_last_offset=last
            ) from None
        return out

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
        padding_idx: int | None = None,
        **options: Unpack[ModuleOptions],
    ) -> Self:
        """Return a module of a collection with one pooled table, such as a loaded one.

        Parameters
        ----------
        collection : mpembed.EmbeddingBagCollection
            Used, not copied.
        include_last_offset, padding_idx
            As in the class.
        **options
            `output_dtype`, `clip_grad_value`, `clip_grad_norm`.

        Notes
        -----
        A collection, and so a checkpoint, has none of these options: give those of the module that
        was saved. Settings of the collection are changed when it is loaded.
        """
        refuse_other_collections(collection, "EmbeddingBag")
        module = cls.__new__(cls)
        OneTable.__init__(module, collection, padding_idx, **options)
        module.include_last_offset = include_last_offset
        return module


class Embedding(OneTable, nn.Embedding):
    """``torch.nn.Embedding`` with a table of mpembed's, which the backward updates.

    Parameters
    ----------
    num_embeddings, embedding_dim, optimizer, padding_idx, precision, init, name, **options
        As in `EmbeddingBag`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        optimizer: Optimizer,
        padding_idx: int | None = None,
        precision: str = "fp32",
        init: Init | None = None,
        name: str = "table",
        **options: Unpack[Options],
    ) -> None:
        refuse_unsupported("Embedding", options)  # type: ignore[arg-type]
        table = TableConfig(name, num_embeddings, embedding_dim, precision, "none", init)
        collection, own = make_collection([table], optimizer, options)
        OneTable.__init__(self, collection, padding_idx, **own)
        self._clear_padding()

    @classmethod
    def from_collection(
        cls,
        collection: EmbeddingBagCollection,
        *,
        padding_idx: int | None = None,
        **options: Unpack[ModuleOptions],
    ) -> Self:
        """Return a module of a collection with one unpooled table, such as a loaded one.

        Parameters
        ----------
        collection : mpembed.EmbeddingBagCollection
            Used, not copied.
        padding_idx
            As in the class.
        **options
            `output_dtype`, `clip_grad_value`, `clip_grad_norm`.

        Notes
        -----
        A collection, and so a checkpoint, has none of these options: give those of the module that
        was saved. Settings of the collection are changed when it is loaded.
        """
        refuse_other_collections(collection, "Embedding")
        module = cls.__new__(cls)
        OneTable.__init__(module, collection, padding_idx, **options)
        return module

    def forward(self, input: Tensor) -> Tensor:
        """Look up rows.

        Parameters
        ----------
        input : int32, int64, uint32 or uint64 Tensor (...)
            Row numbers, of any shape.

        Returns
        -------
        Tensor (..., embedding_dim)
            Of `output_dtype`.
        """
        input = row_numbers(input, "input", self.tables)
        flat = input.reshape(-1)
        try:
            out: Tensor = self._lookup(flat, self._offsets_of_equal_bags(flat, 1, flat.shape[0]))
        except IndexError as error:
            raise explained(error, self._table, input) from None
        return out.view(*input.shape, self.embedding_dim)

    def _output_shape(
        self, indices: Tensor, offsets: Tensor, order: Sequence[int]
    ) -> tuple[int, int]:
        return indices.shape[0], self.embedding_dim
