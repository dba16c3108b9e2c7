"""A training step of a DLRM by mpembed.torch: rows updated in the backward, and at step()."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peers
import pytest
from arena import Entry
from rounds import OURS, Contender
from targets import THREADS

BATCH, ROWS, DIM = 2048, 100_000, 16
BATCHES = 4


def training(update: str) -> Callable[[], Callable[[int], None]]:
    """Return what makes a model and returns its step on batch i."""

    def build() -> Callable[[int], None]:
        torch = peers.torch()
        import mpembed as mpe
        from mpembed import torch as mt
        from mpembed.train.data.clicks import NUM_CATS, NUM_INTS
        from mpembed.train.model import Perceptrons

        generator = torch.Generator().manual_seed(0)
        tables = [mpe.TableConfig(f"t{i}", ROWS, DIM, precision="int8") for i in range(NUM_CATS)]
        bags = mt.EmbeddingBagCollection(tables, optimizer=mpe.RowwiseAdagrad(lr=0.02))
        rest = Perceptrons(DIM, 0)
        dense = torch.optim.SGD(rest.parameters(), 0.01)
        fused = mt.FusedOptimizer(bags, update=update)
        offsets = torch.arange(NUM_CATS * BATCH + 1)
        indices = torch.randint(ROWS, (BATCHES, NUM_CATS * BATCH), generator=generator)
        integers = torch.rand(BATCHES, BATCH, NUM_INTS, generator=generator)

        def step(number: int) -> None:
            k = number % BATCHES
            rest(integers[k], bags(indices[k], offsets)).square().mean().backward()
            for one in (dense, fused):
                one.step()
                one.zero_grad()

        return step

    return build


def entry(name: str, update: str) -> Entry:
    return Entry(name, (name, update), training(update), lambda step: Contender(name, step))


@pytest.mark.parametrize("threads", THREADS)
def test_training_step(benchmark: Any, arena: Any, threads: int) -> None:
    pytest.importorskip("torch")
    entries = [entry(OURS, "backward"), entry("update at step()", "step")]
    what = {"operation": "training step", "threads": threads}
    arena.compare(benchmark, "training", what, BATCH, entries)
