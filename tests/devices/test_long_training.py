"""Long trainings on a device: every array stays the CPU's, byte for byte.

`MPEMBED_TEST_STEPS` says how many steps each takes (25).
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import kinds
import pytest
from helpers import set_lr
from on_device import fetch
from oracles import DECAYS
from reference.pair import Batches, assert_same

import mpembed as mpe

pytestmark = pytest.mark.gpu
STEPS = int(os.environ.get("MPEMBED_TEST_STEPS", "25"))
BATCH: dict[str, Any] = {"batch": 3, "longest": 4, "bad": 0.01}
CACHES = {
    "lru-8": mpe.CacheConfig(num_sets=5, policy="lru", ways=8),
    "lru-32": mpe.CacheConfig(num_sets=1, policy="lru", ways=32),
    "lfu-8": mpe.CacheConfig(num_sets=5, policy="lfu", ways=8),
    "lfu-32": mpe.CacheConfig(num_sets=1, policy="lfu", ways=32),
}


def tables() -> list[mpe.TableConfig]:
    """Every format in the device's memory, in the host's, and in groups of both."""
    return [
        mpe.TableConfig(
            name=f"{precision}-{dim}-{place}",
            num_embeddings=30 + 3 * i,
            embedding_dim=dim,
            precision=precision,
            pooling=("sum", "mean")[i % 2],
            placement=place,
        )
        for i, precision in enumerate(mpe.registry.FORMATS)
        for dim, places in ((8, ("host",)), (16, ("device",)), (21, ("device", "host")))
        for place in places
    ]


class Twins:
    """The same collection on the CPU and on a device; each call goes to both."""

    def __init__(self, device: str, **options: Any) -> None:
        self.device = device
        there = tables()
        here = [dataclasses.replace(table, placement="device") for table in there]
        options |= {"bounds": "drop", "on_nonfinite": "skip", "seed": 11}
        self.here = mpe.EmbeddingBagCollection(here, **options)
        self.there = mpe.EmbeddingBagCollection(there, **options, device=device)
        self.compare("construction")

    def each(self, *arrays: Any) -> tuple[Any, Any]:
        """Return arrays as they are, and copies on the device; None stays None."""
        return arrays, [None if a is None else mpe.to_device(a, self.device) for a in arrays]

    def compare(self, what: str) -> None:
        """Compare tables, tags, policy state, sketch, optimizer state, and statistics."""
        self.there.check()
        assert_same(fetch(self.there.state_arrays()), self.here.state_arrays(), what)
        assert self.there.stats() == self.here.stats(), what

    def prefetch(self, batch: Any) -> None:
        """Admit a batch's rows, which are pinned until it is trained."""
        self.here.prefetch(*batch[0])
        self.there.prefetch(*batch[1])

    def forward(self, batch: Any, weights: Any, **options: Any) -> tuple[Any, Any]:
        """Look up and compare; return the output and the tickets, if there are any."""
        (indices, offsets), (far_indices, far_offsets) = batch
        (mine,), (its,) = self.each(weights)
        expected: Any = self.here.forward(indices, offsets, mine, **options)
        got: Any = self.there.forward(far_indices, far_offsets, its, **options)
        tickets = None
        if options.get("ticket"):
            (expected, one), (got, other) = expected, got
            tickets = one, other
        assert_same(fetch(got), expected, "output")
        return expected, tickets

    def backward(self, grad: Any, tickets: Any) -> None:
        """Update the rows and compare the gradients of the weights."""
        (mine,), (its,) = self.each(grad)
        expected = self.here.backward(mine, tickets[0])
        got = self.there.backward(its, tickets[1])
        assert (got is None) == (expected is None)
        if expected is not None:
            assert_same(fetch(got), expected, "gradient of the weights")

    def evaluate(self, batch: Any) -> None:
        """Look up without training, and write back."""
        self.forward(batch, None, training=False)
        self.here.flush()
        self.there.flush()

    def set_lr(self, lr: float) -> None:
        """Change the learning rate."""
        for one in (self.here, self.there):
            set_lr(one, lr)


def train(twins: Twins, steps: int, seed: int) -> None:
    """Take steps; batches wait as prefetched ones, and forwards stay open, for a while."""
    tables: Any = twins.here  # of which batches are made
    batches = Batches(tables, seed)
    ahead: list[Any] = []
    waiting: list[Any] = []
    rng = batches.rng
    for step in range(steps):
        if rng.random() < 0.3:
            ahead.append(twins.each(*batches.inputs(**BATCH)))
            twins.prefetch(ahead[-1])
        use = ahead and (len(ahead) > 2 or rng.random() < 0.3)
        batch = ahead.pop(0) if use else twins.each(*batches.inputs(**BATCH))
        weights = batches.weights(len(batch[0][0])) if step % 2 else None
        out, tickets = twins.forward(batch, weights, ticket=True)
        waiting.append((batches.grad(out, nonfinite=0.002 * (step % 7 == 3)), tickets))
        while len(waiting) > rng.integers(0, 2):
            twins.backward(*waiting.pop())
        if step % 10 == 9:
            twins.evaluate(twins.each(*batches.inputs(**BATCH)))
            twins.set_lr(0.1 / (1 + step / 50))
        if step % max(1, steps // 10) == 0:
            twins.compare(f"step {step}")
    twins.compare("the end")


@pytest.mark.pairwise
@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("mode", DECAYS)
@pytest.mark.parametrize("optimizer", kinds.ONE_EACH)
def test_the_devices_bytes_are_the_cpus(optimizer: str, mode: str, name: str, cuda: str) -> None:
    twins = Twins(cuda, cache=CACHES[name], optimizer=kinds.named(optimizer, mode=mode))
    train(twins, STEPS, seed=list(CACHES).index(name))
    total = {key: sum(s[key] for s in twins.here.stats().values()) for key in mpe.STATS}
    seen = ("hits", "conflict_misses", "evictions", "write_backs", "dropped", "nonfinite")
    assert all(total[key] for key in seen), total
