"""Programs of the tests of mpembed.torch.distributed in which a rank makes a mistake."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from plain_batches import Batch, Features, bags_of, digest, raises, shards, table
from torch import distributed as dist

import mpembed as mpe
from mpembed.collection import collection_state
from mpembed.torch.distributed import DistributedEmbeddingBagCollection, RowWise, TableWise
from mpembed.torch.distributed._owner import OwnerBatch


def small() -> DistributedEmbeddingBagCollection:
    tables = [table("a", 60, 8), table("b", 41, 8)]
    plan: Any = {"a": TableWise(0), "b": RowWise()}
    cache = mpe.CacheConfig(num_sets=1, ways=8)
    options: Any = {"optimizer": mpe.RowwiseAdagrad(lr=0.1), "cache": cache, "seed": 2}
    return DistributedEmbeddingBagCollection(tables, plan, **options)


def refused() -> None:
    """One rank's mistake is an error on all, and changes nothing."""
    rank = dist.get_rank()
    module, twin = small(), small()

    def expect(faulty: int, kind: type[Exception], texts: Sequence[str], *batch: Any) -> None:
        before = digest(module.local)
        if rank == faulty:
            with raises(kind, *texts):
                module(*batch)
        else:
            with raises(RuntimeError, f"rank {faulty} refused", *texts):
                module(*batch)
        assert digest(module.local) == before

    def train(one: Any, step: int) -> torch.Tensor:
        batch = Batch(step, one.tables, bags_of(step), 3)
        out: torch.Tensor = one(*batch.part(rank))
        out.backward(batch.own(rank, batch.grad))
        return out

    good = torch.arange(6), torch.arange(7)
    for step, faulty in enumerate([0, 1, 1, 0]):
        indices, offsets = (one.clone() for one in good)
        indices[-1] = 41 if rank == faulty else indices[-1]
        texts = ["table 'b'", "index 41", "out of range"]
        expect(faulty, IndexError, texts, indices, offsets)
        module.eval()
        expect(faulty, IndexError, texts, indices, offsets)
        module.train()
        ends = offsets[:-1] if rank == faulty else offsets
        expect(faulty, ValueError, ["2 x batch size + 1"], good[0], ends)
        ends = offsets.flip(0) if rank == faulty else offsets
        expect(faulty, ValueError, ["must not decrease"], good[0], ends)
        floats = good[0].float() if rank == faulty else good[0]
        expect(faulty, TypeError, ["int32"], floats, offsets)
        weights = torch.ones(len(indices), requires_grad=rank == faulty)
        expect(faulty, ValueError, ["detach"], good[0], offsets, weights)
        keys = Features("ab" if rank != faulty else "ac", [[[1]], [[2]]])
        expect(faulty, KeyError, ["no feature 'b'"], keys)
        keys = Features("ab", [[[1]], [[2 if rank != faulty else 41]]])
        expect(faulty, IndexError, ["feature 'b'", "index 41"], keys)
        for one in (module, twin):
            train(one, step)
    assert digest(module.local) == digest(twin.local)
    out = train(module, 9)
    with raises(RuntimeError, "used already"):
        out.backward(torch.ones_like(out))


def different_calls() -> None:
    """Ranks that do not make the same call all get an error, and can go on."""
    rank = dist.get_rank()
    module, twin = small(), small()
    batch = Batch(0, module.tables, [3, 3], 3)
    module.train(rank == 0)
    before = digest(module.local)
    with raises(RuntimeError, "a training forward", "a forward in evaluation", "same calls"):
        module(*batch.part(rank))
    module.train()
    assert digest(module.local) == before
    out = module(*batch.part(rank))
    if rank == 0:  # the other one's loss does not reach the output
        with raises(RuntimeError, "a backward", "a training forward", "reaches the output"):
            out.sum().backward()
    else:
        with raises(RuntimeError, "a backward", "a training forward", "reaches the output"):
            module(*batch.part(rank))
    twin(*batch.part(rank))
    del out
    for one in (module, twin):
        one(*batch.part(rank)).sum().backward()
    assert digest(module.local) == digest(twin.local)


def different_arguments() -> None:
    """Ranks that do not pass the same arguments all get an error."""
    rank = dist.get_rank()
    tables = [table("a", 60, 8)]
    made = DistributedEmbeddingBagCollection
    with raises(ValueError, "all ranks must pass the same arguments", "but table 'a' is", "rank 1"):
        made(tables, {"a": TableWise(rank)}, optimizer=mpe.SGD(0.1))
    with raises(
        ValueError, "all ranks must pass the same arguments", "but optimizer is SGD(lr=1.1"
    ):
        made(tables, {"a": RowWise()}, optimizer=mpe.SGD(0.1 + rank))
    more: Any = {"bounds": "drop"} if rank else {}
    with raises(ValueError, "but bounds is 'drop' on rank 1 and the default on rank 0"):
        made(tables, {"a": RowWise()}, **more)
    with raises(ValueError if rank else RuntimeError, "rank of table 'a' in plan"):
        made(tables, {"a": TableWise(2 * rank)}, optimizer=mpe.SGD(0.1))
    with raises(ValueError if rank else RuntimeError, "pooling"):
        kind: Any = {"pooling": "none" if rank else "sum"}
        made([table("a", 60, 8, **kind)], {"a": RowWise()}, optimizer=mpe.SGD(0.1))
    with raises(ValueError, "have the same table_id, 1"):
        twice = [table("a", 60, 8, table_id=1), table("b", 60, 8)]
        made(twice, {"a": TableWise(0), "b": TableWise(1)}, optimizer=mpe.SGD(0.1))
    with raises(TypeError, "clip_grad_norm"):
        made(tables, {"a": RowWise()}, optimizer=mpe.SGD(0.1), clip_grad_norm=1.0)
    module = made(tables, {"a": RowWise()}, optimizer=mpe.SGD(0.1))  # the first rank draws a seed
    seeds: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seeds, collection_state(module.local).settings.seed)
    assert len(set(seeds)) == 1


def dropped() -> None:
    """With bounds="drop" an index out of range counts nothing but in the mean."""
    rank, size = dist.get_rank(), dist.get_world_size()
    tables = [table(name, 41, 8, "fp32", pooling="mean") for name in "abc"]
    plan: Any = {"a": TableWise(size - 1), "b": RowWise(), "c": RowWise(exchange="pooled")}
    options: Any = {"bounds": "drop", "seed": 0}
    module = DistributedEmbeddingBagCollection(
        tables, plan, optimizer=mpe.SGD(0.1), average_gradients=False, **options
    )
    one = mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1), **options)
    indices, offsets = torch.tensor([3, 99, -1, 4, 40, 41]), torch.arange(0, 7, 2)
    every = torch.stack([indices.view(3, 2) + r for r in range(size)], 1).flatten()
    out = module(indices + rank, offsets)
    expected = torch.from_numpy(one.forward(every, torch.arange(0, 6 * size + 1, 2)))
    torch.testing.assert_close(out, expected[rank : rank + 1])
    out.sum().backward()
    one.backward(torch.ones(size, 24))
    for _, got, rows in shards(module, one):
        np.testing.assert_allclose(got.view(np.float32), rows.view(np.float32), 1e-6)


def nonfinite() -> None:
    """An update that is not finite is an error where the row is; all others are made."""
    rank = dist.get_rank()
    tables = [table("a", 6, 4, "fp32"), table("b", 6, 4, "fp32")]
    plan: Any = {"a": TableWise(0), "b": RowWise()}
    module = DistributedEmbeddingBagCollection(
        tables, plan, optimizer=mpe.SGD(0.1), seed=0, average_gradients=False
    )
    before = [module.local.rows(t.name, np.arange(t.num_embeddings)) for t in module.local.tables]
    for times in (1, 2):
        out = module(torch.tensor([rank, 4, 3 * rank, 3 * rank]), torch.tensor([0, 1, 2, 3, 4]))
        grad = torch.ones(2, 8)
        grad[rank, 0] = torch.inf if rank == 1 else 1.0  # of row 4 of the first table
        if rank == 0:
            with raises(mpe.NonFiniteUpdateError, "1 row(s)", "row 4 of table 'a'"):
                out.backward(grad)
        else:
            out.backward(grad)
        after = [
            module.local.rows(t.name, np.arange(t.num_embeddings)) for t in module.local.tables
        ]
        moved = [(one - other).min(1) for one, other in zip(before, after, strict=True)]
        expected = [[0.2, 0, 0]] if rank else [[0.1, 0.1, 0, 0, 0, 0], [0.2, 0, 0]]
        for got, want in zip(moved, expected, strict=True):
            np.testing.assert_allclose(got, times * np.array(want), atol=1e-6)


def dead_rank() -> bool:
    """A rank that dies is an error on the others: return whether it came in time."""
    rank, module = dist.get_rank(), small()
    batch = Batch(0, module.tables, [3, 3], 3)
    module(*batch.part(rank)).sum().backward()
    if rank == 1:
        os._exit(0)
    return fails_in_time(lambda: module(*batch.part(rank)))


def silent_rank() -> bool:
    """A rank that lives and does not call is an error on the others, too."""
    rank, module = dist.get_rank(), small()
    batch = Batch(0, module.tables, [3, 3], 3)
    out = module(*batch.part(rank))
    if rank == 1:
        time.sleep(6)
        return True
    return fails_in_time(lambda: out.sum().backward())


def fails_midway() -> bool:
    """After a call that failed between its messages every later one is refused."""
    rank, module = dist.get_rank(), small()
    batch = Batch(0, module.tables, [3, 3], 3)
    if rank == 1:
        return fails_in_time(lambda: module(*batch.part(rank)))
    broken = mock.patch.object(OwnerBatch, "look_up", side_effect=MemoryError("none is left"))
    with broken, raises(MemoryError, "none is left"):
        module(*batch.part(rank))
    for _ in range(2):
        with raises(RuntimeError, "MemoryError: none is left", "start all ranks again"):
            module(*batch.part(rank))
    time.sleep(6)  # the other rank finds out by its timeout
    return True


def fails_in_time(call: Callable[[], Any]) -> bool:
    start = time.monotonic()
    try:
        call()
    except RuntimeError:
        return time.monotonic() - start < 10  # the group's timeout is 3 s
    raise AssertionError("no error")
