"""All rows of a table as a tensor: read and set in pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch_modules import bag, state, train

from mpembed.torch import _whole_tables
from mpembed.torch._whole_tables import check_weight, read_table, write_table

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True, params=[1, 6 * 7, 1 << 22])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy a row, 7 rows or all at a time."""
    monkeypatch.setattr(_whole_tables, "_CHUNK", request.param)


def test_rows_are_read_cached_or_not() -> None:
    module = bag()
    train(module)
    (table,) = module.tables.tables
    expected = torch.from_numpy(module.tables.rows("table", np.arange(50)))
    before = state(module)
    assert torch.equal(read_table(module.tables, table), expected)
    half = read_table(module.tables, table, torch.bfloat16)
    assert torch.equal(half, expected.to(torch.bfloat16))
    assert state(module) == before


def test_rows_are_set() -> None:
    module = bag(precision="fp32")
    train(module)
    (table,) = module.tables.tables
    values = torch.randn(6, 50, dtype=torch.float64).T.requires_grad_()  # not contiguous
    check_weight("w", table, values)
    write_table(module.tables, table, values)
    assert torch.equal(read_table(module.tables, table), values.detach().float())


@pytest.mark.parametrize("bad", [torch.nan, 1e39, 1e6])
def test_the_row_that_cannot_be_stored_is_named(bad: float) -> None:
    module: Any = bag()
    values = torch.zeros(50, 6, dtype=torch.float64)
    values[48, 5] = bad
    with pytest.raises(ValueError, match="w: row 48 is not finite or exceeds the range of int4"):
        check_weight("w", module.tables.tables[0], values)
