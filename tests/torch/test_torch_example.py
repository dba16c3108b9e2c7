"""examples/torch_dlrm.py: the losses of PyTorch, of mpembed.torch and of ``mpembed train``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
from folders import ROOT

pytest.importorskip("torch")

import torch

from mpembed.train.data.dataset import TRAIN
from mpembed.train.runner import open_dataset
from mpembed.train.settings import Setting, TrainOptions
from mpembed.train.trial import Trial

pytestmark = pytest.mark.torch
PATH = ROOT / "examples" / "torch_dlrm.py"
CLICKS = 2000


@pytest.fixture
def example() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("torch_dlrm", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def losses_of_train(precision: str) -> list[float]:
    torch.set_num_threads(1)
    setting = Setting(precision)
    options = TrainOptions((setting,), rows=CLICKS, optimizer="sgd", batch_size=64, threads=1)
    dataset = open_dataset(options)
    trial = Trial(setting, options, dataset.table_rows, options.seed)
    for block in dataset.blocks(64 * 64, last=TRAIN):
        trial.train(block)
    return trial.records.losses


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_after_the_swap_the_losses_are_those_of_mpembed_train(
    example: Any, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = example.main(CLICKS, "fp32", kind)
    assert losses["mpembed"] == losses_of_train("fp32")
    assert losses["torch"] == pytest.approx(losses["mpembed"], rel=1e-5)
    if kind == "Embedding":
        assert losses["torch"] == losses["mpembed"]
        assert "27 of 27 losses are the same to the last bit" in capsys.readouterr().out
    # It learns: the loss of the first batch is that of the start.
    assert sum(losses["mpembed"][-10:]) / 10 < losses["mpembed"][0]
