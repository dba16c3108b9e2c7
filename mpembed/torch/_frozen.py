"""Modules whose tables are buffers: for serving, export and safetensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from mpembed.config import TableConfig
from mpembed.torch import _frozen_torch
from mpembed.torch._bag_arguments import bag_arguments
from mpembed.torch._bag_errors import explained
from mpembed.torch._dense import dense
from mpembed.torch._frozen_lookup import NO_PADDING, decode_tables, encode_tables
from mpembed.torch._indices import signed_indices
from mpembed.torch._one_table import equal_bag_offsets


@dataclass(frozen=True)
class FrozenSettings:
    """What frozen modules have in common beside their tables.

    Attributes
    ----------
    operators : str
        ``"mpembed"`` or ``"torch"``: whose operators look up.
    drop : bool
        Whether an index out of range adds nothing; otherwise it is an error.
    output_dtype : torch.dtype
        What the FP32 result is rounded to.
    """

    operators: str
    drop: bool
    output_dtype: torch.dtype


class FrozenTables(nn.Module):
    """Tables as buffers of packed bytes, which no change of element type reaches.

    Training and evaluation are the same. Per-sample weights have gradients, rows have none.

    Parameters
    ----------
    tables : sequence of TableConfig
        The tables.
    rows : sequence of uint8 Tensor (E, row_bytes)
        Their packed rows.
    settings : FrozenSettings
        What looks up, and how.
    """

    _padding = NO_PADDING

    def __init__(
        self, tables: Sequence[TableConfig], rows: Sequence[Tensor], settings: FrozenSettings
    ) -> None:
        super().__init__()
        self._tables = encode_tables(tables)
        self._formats = decode_tables(self._tables)
        self.operators, self._drop = settings.operators, settings.drop
        self.output_dtype = settings.output_dtype
        self._each = [encode_tables([table]) for table in tables]
        for number, one in enumerate(rows):
            self.register_buffer(self._buffer_name(number), one)

    def _buffer_name(self, number: int) -> str:
        return f"rows_{number}"

    def _rows(self) -> list[Tensor]:
        return [getattr(self, self._buffer_name(i)) for i in range(len(self._formats))]

    @property
    def device(self) -> torch.device:
        """Where the tables lie."""
        return self._rows()[0].device

    def _signed(self, indices: Any, name: str) -> Tensor:
        return signed_indices(indices, name, lambda: self._drop)

    def _lookup(
        self,
        indices: Tensor,
        offsets: Tensor,
        weights: Tensor | None = None,
        order: Sequence[int] = (),
        *,
        table: int | None = None,
    ) -> Tensor:
        """Look up a table-major batch, or that of one table; `order` as in `_feature_order`."""
        rows, tables, formats = self._rows(), self._tables, self._formats
        if table is not None:
            rows, tables, formats = [rows[table]], self._each[table], formats[table : table + 1]
        if weights is not None:
            weights = dense("per_sample_weights", weights).to(torch.float32)
        for one in (indices, offsets, weights):
            if one is not None and one.is_meta and not rows[0].is_meta:
                raise TypeError("a batch on the meta device has no values: pass one of the CPU's")
        if self.operators == "torch":
            self._refuse_learned(weights)
            out = _frozen_torch.lookup(
                rows, formats, indices, offsets, weights, order, self._padding, self._drop
            )
        else:
            out = torch.ops.mpembed.frozen_lookup(
                rows,
                indices,
                offsets,
                weights,
                tables,
                list(order) or None,
                self._padding,
                self._drop,
            )
        return out.to(self.output_dtype)

    @staticmethod
    def _refuse_learned(weights: Tensor | None) -> None:
        if weights is not None and weights.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "per_sample_weights require grad, which operators='torch' does not give: "
                "freeze the model with operators='mpembed', or detach the weights"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the rows; ``half()`` and its like change the type of outputs."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.output_dtype = fn(torch.zeros(0, dtype=self.output_dtype, device="cpu")).dtype
        return self

    def __prepare_scriptable__(self) -> Self:  # PyTorch's hook
        raise RuntimeError(
            "torch.jit.script does not take frozen modules: use torch.export, or torch.jit.trace"
        )

    def extra_repr(self) -> str:
        """Return what ``repr`` says of the tables."""
        parts = [f"operators={self.operators!r}"]
        if self.output_dtype is not torch.float32:
            parts.append(f"output_dtype={self.output_dtype}")
        return ", ".join(parts)


class _OneTable(FrozenTables):
    """A single table, with the attributes of PyTorch's modules."""

    max_norm, norm_type, scale_grad_by_freq, sparse = None, 2.0, False, False

    def __init__(
        self,
        table: TableConfig,
        rows: Tensor,
        settings: FrozenSettings,
        *,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__([table], [rows], settings)
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.precision, self.padding_idx, self._table = table.precision, padding_idx, table

    def _buffer_name(self, number: int) -> str:
        return "rows"

    @property
    def weight(self) -> Tensor:
        """All rows (E, D), decoded at each use."""
        (rows,) = self._rows()
        found: Tensor
        if self.operators == "torch":
            found = _frozen_torch.values(rows, self.precision)
        else:
            found = torch.ops.mpembed.frozen_rows(rows, self.precision, self.embedding_dim)
        return found.to(self.output_dtype)

    def extra_repr(self) -> str:
        """Return what ``repr`` says of the table."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        head = f"{self.num_embeddings}, {self.embedding_dim}, {self.precision}{padding}"
        return f"{head}, {super().extra_repr()}"


class FrozenEmbedding(_OneTable):
    """An `Embedding` of ``freeze``."""

    def forward(self, input: Tensor) -> Tensor:
        """Look up rows: (..., embedding_dim) of row numbers of any shape."""
        input = self._signed(input, "input")
        flat = input.reshape(-1)
        try:
            out = self._lookup(flat, equal_bag_offsets(flat, 1, flat.shape[0]))
        except IndexError as error:
            raise explained(error, self._table, input) from None
        return out.view(*input.shape, self.embedding_dim)


class FrozenEmbeddingBag(_OneTable):
    """An `EmbeddingBag` of ``freeze``.

    Parameters
    ----------
    table, rows, settings
        As in `FrozenTables`.
    padding_idx : int or None
        A row that sums and means leave out.
    include_last_offset : bool
        Whether `offsets` ends with the number of indices.
    """

    def __init__(
        self,
        table: TableConfig,
        rows: Tensor,
        settings: FrozenSettings,
        *,
        padding_idx: int | None = None,
        include_last_offset: bool = False,
    ) -> None:
        super().__init__(table, rows, settings, padding_idx=padding_idx)
        self.mode, self.include_last_offset = table.pooling, include_last_offset
        self._padding = NO_PADDING if padding_idx is None else padding_idx

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Look up and pool bags, as the forward of `EmbeddingBag` does."""
        input = self._signed(input, "input")
        last = self.include_last_offset
        batch = bag_arguments(
            input, offsets, per_sample_weights, equal_bag_offsets, include_last_offset=last
        )
        try:
            return self._lookup(batch.input, batch.offsets, batch.weights)
        except (IndexError, ValueError) as error:
            raise explained(
                error, self._table, input, batch.given_offsets, include_last_offset=last
            ) from None

    def extra_repr(self) -> str:
        """Return what ``repr`` says of the table."""
        return f"{super().extra_repr()}, mode={self.mode!r}"
