"""The export of a later argument moves or frees the memory of an earlier one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from changing_arguments import CALLS, REFUSALS, arguments, batch, collection
from exporters import Exporter


@pytest.mark.torch
@pytest.mark.parametrize("taken", ["indices", "offsets", "weights"])
@pytest.mark.parametrize("way", ["set_", "resize_", "storage"])
def test_memory_is_moved_by_the_export_of_a_later_argument(taken: str, way: str) -> None:
    import torch

    emb = collection()
    for call, tables, roles in CALLS.values():
        for exporting in roles:
            if taken not in roles or exporting == taken:
                continue
            given = arguments(tables, np.int64)
            tensor = given[taken] = torch.from_numpy(given[taken]).clone()

            def move(tensor: Any = tensor) -> None:
                if way == "set_":
                    tensor.set_(torch.zeros(0, dtype=tensor.dtype))
                elif way == "resize_":
                    tensor.resize_(1 << 20)
                else:
                    tensor.untyped_storage().resize_(0)

            given[exporting] = Exporter(given[exporting], move)
            try:
                found = call(emb, given)
            except (*REFUSALS, RuntimeError):
                continue
            values = found.array if isinstance(found, Exporter) else found
            assert np.isfinite(np.asarray(values)).all()
    given = arguments(2, np.int64)
    moved = torch.from_numpy(given["indices"]).clone()
    offsets = Exporter(given["offsets"], lambda: moved.resize_(1 << 20))
    with pytest.raises(BufferError, match="^indices: its memory was moved or freed"):
        emb.forward(moved, offsets)


@pytest.mark.torch
def test_a_tensor_gives_its_storage_up_while_it_is_lent() -> None:
    import torch

    from mpembed._bindings.dlpack import view

    tensor = torch.arange(1000)
    lent = view(tensor, "tensor")
    tensor.set_(torch.zeros(0, dtype=torch.int64).untyped_storage())
    others = [torch.full((1000,), 7) for _ in range(20)]
    assert np.array_equal(np.asarray(lent), np.arange(1000))
    assert len(others) == 20


def test_an_array_is_resized_by_the_export_of_a_later_argument() -> None:
    emb, given = collection(), batch()
    ids = given["indices"].copy()

    def resize() -> None:
        ids.resize(1 << 20, refcheck=False)

    with pytest.raises(BufferError, match="^indices: its memory was moved or freed"):
        emb.forward(ids, Exporter(given["offsets"], resize))
