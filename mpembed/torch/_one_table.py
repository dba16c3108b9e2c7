"""What modules with a single table share: weight, padding, bags of one size."""

from __future__ import annotations

from typing import Any, NoReturn, Unpack

import torch
from torch import Tensor, nn

from mpembed.collection import EmbeddingBagCollection
from mpembed.torch._module import TableModule
from mpembed.torch._options import ModuleOptions
from mpembed.torch._outside_graphs import outside_graphs
from mpembed.torch._weight import read_weight
from mpembed.torch._weight_source import WeightSource

#: What PyTorch's modules read at every call, and these do not.
_FIXED = {
    *("num_embeddings", "embedding_dim", "padding_idx"),
    *("max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
}


class OneTable(TableModule):
    """A module with a single table."""

    # What PyTorch's modules have; convert refuses other values.
    max_norm: float | None = None
    norm_type: float = 2.0
    scale_grad_by_freq: bool = False
    sparse: bool = False
    padding_idx: int | None

    def __init__(
        self,
        collection: EmbeddingBagCollection,
        padding_idx: int | None = None,
        **options: Unpack[ModuleOptions],
    ) -> None:
        (table,) = collection.tables
        # Before the module is one: its calls ask for it.
        self.__dict__["padding_idx"] = _checked_padding(padding_idx, table.num_embeddings)
        TableModule.__init__(self, collection, **options)
        (self._table,) = collection.tables
        self.num_embeddings = self._table.num_embeddings
        self.embedding_dim = self._table.embedding_dim
        # The last offsets of equal bags, after the shape and device that they are for.
        self._equal_bags: tuple[Any, Tensor | None] = (None, None)

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> NoReturn:
        """Refuse: a table needs more than PyTorch's arguments."""
        raise TypeError(
            f"{cls.__name__}.from_pretrained is not supported: make the module, then assign the "
            "rows, module.weight = rows; requires_grad_(False) freezes it"
        )

    def _clear_padding(self) -> None:
        """Set the padding row to zeros, as PyTorch does in a new module."""
        if self.padding_idx is not None:
            row = torch.tensor([self.padding_idx], device=self.anchor.device)
            zeros = torch.zeros(1, self.embedding_dim, device=self.anchor.device)
            self._weight_source.set_rows(row, zeros)

    def _padding(self) -> int | None:
        return self.padding_idx

    def _attach(self, *arguments: Any, **options: Any) -> None:
        super()._attach(*arguments, **options)
        self._weight_source = WeightSource(self._calls, self.anchor)

    @property
    def weight(self) -> Tensor:
        """All rows as they are now (num_embeddings, embedding_dim), of `output_dtype`.

        A gradient through it updates the rows it reached. Writing to it in place, or assigning
        another tensor to it, sets rows; the optimizer's state does not change. The tensor takes
        the memory of the whole table in FP32 until the next write or training lookup. Compiled
        code leaves its graph for it.
        """
        compiling = torch.compiler.is_compiling()  # whose tensors are ordinary ones
        found: Tensor = self._read_weight(writable=not compiling)
        return found

    @weight.setter
    def weight(self, values: Tensor) -> None:
        self._weight_source.set_all(values)

    @outside_graphs("the weight of a table is all its rows, read from outside of tensors")
    def _read_weight(self, *, writable: bool) -> Tensor:
        source, dtype = self._weight_source, self.output_dtype
        return read_weight(source, dtype, trains=self.training, writable=writable)

    def _lookup(self, *arguments: Any) -> Any:
        self._weight_source.check()
        if self.training:
            self._weight_source.forget()  # they will change
        return super()._lookup(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":  # nn.Module would make a parameter of a parameter
            self._weight_source.set_all(value)
            if isinstance(value, nn.Parameter):
                self.anchor.requires_grad_(value.requires_grad)
        elif name in _FIXED and value != getattr(self, name, value):
            raise AttributeError(
                f"{name} is fixed when the module is made: make a new one, and assign its weight"
            )
        else:
            super().__setattr__(name, value)

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
        state = {**super().__getstate__(), "_equal_bags": (None, None)}
        del state["_weight_source"]
        return state

    def _optimizer_repr(self) -> str:
        trains = self.tables.optimizers[self._table.name]
        return "table frozen" if trains is None else repr(trains)

    def extra_repr(self) -> str:
        """Return what ``repr`` says of the table."""
        t = self._table
        padding = "" if self.padding_idx is None else f"padding_idx={self.padding_idx}, "
        return (
            f"{t.num_embeddings}, {t.embedding_dim}, {t.precision}, {padding}{super().extra_repr()}"
        )


def _checked_padding(padding_idx: int | None, rows: int) -> int | None:
    """Return the row, counted from the first; PyTorch counts negative ones from the end."""
    if padding_idx is None:
        return None
    if isinstance(padding_idx, bool) or not isinstance(padding_idx, int):
        raise TypeError(f"padding_idx must be an int or None, got {padding_idx!r}")
    if not -rows <= padding_idx < rows:
        raise ValueError(f"padding_idx must be a row of the table, 0 to {rows - 1}")
    return padding_idx % rows


def equal_bag_offsets(like: Tensor, bags: int, size: int) -> Tensor:
    """Return the offsets of `bags` bags of `size` indices each, on the device of `like`."""
    return torch.arange(bags + 1, dtype=torch.int64, device=like.device) * size
