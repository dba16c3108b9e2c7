"""examples/torch_swap.py: the same model and loop, with PyTorch's table and with mpembed's."""

from __future__ import annotations

import math

import pytest
from folders import ROOT
from scripts import load

pytest.importorskip("torch")

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_after_the_swap_it_learns_as_before(
    precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load(ROOT / "examples" / "torch_swap.py")
    losses = example.main(precision)
    assert losses["torch"] < 0.8 * math.log(example.ITEMS)
    assert losses["mpembed"] == pytest.approx(losses["torch"], rel=0.02)
    assert f"1 table(s) to {precision}" in capsys.readouterr().out
