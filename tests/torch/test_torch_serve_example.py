"""examples/torch_serve.py: a model with INT4 tables answers in a process without mpembed."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import ROOT
from scripts import load

pytest.importorskip("torch")

import torch

pytestmark = pytest.mark.torch


def test_the_server_gives_the_answers_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load(ROOT / "examples" / "torch_serve.py")
    here, there = example.main(tmp_path)
    torch.testing.assert_close(there, here)
    assert here.argmax(1).tolist() == [0, 0]  # the items of both users are of the first third
    printed = capsys.readouterr().out
    assert "mpembed in the server: False" in printed
    losses = [float(line.split()[-1]) for line in printed.splitlines() if "loss" in line]
    assert losses[-1] < losses[0] / 2
    assert (tmp_path / "clicks.pt2").stat().st_size < example.ITEMS * example.DIM * 4 / 2
