"""Modules under DistributedDataParallel: the tables of all replicas stay equal."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from programs import finish, start

pytestmark = pytest.mark.torch

SETUP = """
    import contextlib
    import os
    import sys
    import numpy as np
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    import mpembed as mpe
    from mpembed import torch as mt

    rank, store = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(rank)

    def equal(values):
        others = [torch.empty_like(values) for _ in range(2)]
        dist.all_gather(others, values)
        return torch.equal(*others)

    def state_is_equal(tables):
        return all(
            equal(torch.from_numpy(np.array(array).reshape(-1).view(np.uint8)))
            for name, array in tables.state_arrays().items()
        )
"""

END = """
    dist.barrier()
    dist.destroy_process_group()
    print("trained", flush=True)
    os._exit(0)  # a thread of gloo that wants the interpreter while it ends aborts the process
"""

REPLICAS = """
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            cache = mpe.CacheConfig(num_sets=1, ways=8)
            self.words = mt.Embedding(
                50, 6, precision="int4", cache=cache, optimizer=mpe.Adam(0.01), seed=rank
            )
            self.bag = mt.EmbeddingBag(
                50, 6, mode="mean", padding_idx=3, precision="int8", optimizer=mpe.Adagrad(0.1),
                seed=rank,
            )
            self.linear = torch.nn.Linear(6, 1)

        def forward(self, indices):
            rows = self.words(indices).sum(1) + self.words(indices.flip(1) // 2).sum(1)
            pooled = self.bag(indices) + self.words.weight[10:12].sum()
            return self.linear(rows + pooled)

    model = DistributedDataParallel(Model())
    dense = torch.optim.SGD(model.module.linear.parameters(), lr=0.01)
    fused = mt.FusedOptimizer(model) if {deferred} else None
    for step in range(50):
        for several in range(2 if step % 5 < 2 else 1):
            unfinished = step % 5 == 0 and several == 0
            with model.no_sync() if unfinished else contextlib.nullcontext():
                # Batches of different sizes, some of them empty.
                indices = torch.randint(50, (2 + (step + rank) % 3, rank + step % 4),
                                        generator=generator)
                model(indices).square().mean().backward()
        if fused is not None:
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            assert equal(norm.reshape(1))
            fused.step()
            fused.zero_grad()
        dense.step()
        dense.zero_grad()
    for module in (model.module.words, model.module.bag):
        assert state_is_equal(module.tables)
        assert module.tables.stats()["table"]["accesses"] > 0
"""


def run(folder: Path, body: str) -> None:
    store = str(folder / "store")
    processes = []
    for rank in range(2):
        (folder / str(rank)).mkdir()
        processes.append(start(folder / str(rank), SETUP + body + END, str(rank), store))
    for process in processes:
        finish(process)


@pytest.mark.parametrize("deferred", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_replicas_are_equal_after_fifty_steps(deferred: bool, tmp_path: Path) -> None:
    run(tmp_path, REPLICAS.replace("{deferred}", str(deferred)))


LIKE_PYTORCH = """
    def model(bag):
        torch.manual_seed(3)
        return torch.nn.Sequential(bag, torch.nn.Linear(6, 1))

    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(9))
    dense = model(torch.nn.EmbeddingBag.from_pretrained(rows.clone(), freeze=False, mode="sum"))
    bag = mt.EmbeddingBag(50, 6, mode="sum", optimizer=mpe.SGD(0.1))
    bag.weight = rows if rank == 0 else rows + 1  # the first one's are those of all
    ours = model(bag)
    both = [DistributedDataParallel(one) for one in (dense, ours)]
    optimizers = [torch.optim.SGD(one.parameters(), 0.1) for one in both]
    fused = mt.FusedOptimizer(both[1])
    for step in range(20):
        indices = torch.randint(50, (4, 3), generator=generator)
        for one, optimizer in zip(both, optimizers):
            for part in indices.split(4 - step % 2 * 2):
                one(part).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(one.parameters(), 0.5)
            optimizer.step()
        fused.step()
        for optimizer in (*optimizers, fused):
            optimizer.zero_grad()
    torch.testing.assert_close(ours[0].weight.detach(), dense[0].weight.detach())
    torch.testing.assert_close(ours[1].weight, dense[1].weight)
    assert not torch.allclose(dense[0].weight, rows)
    del fused, optimizers, optimizer
    fused = mt.FusedOptimizer(ours, torch.amp.GradScaler("cpu"), update="backward")
    try:
        both[1](indices)
    except RuntimeError as error:
        assert "use update='step'" in str(error)
    else:
        raise AssertionError("a scaler is refused")
    with both[1].join():
        try:
            both[1](indices)
        except RuntimeError as error:
            assert "join() does not work with tables" in str(error)
        else:
            raise AssertionError("join is refused")
"""


def test_they_train_as_pytorchs_embedding_does(tmp_path: Path) -> None:
    run(tmp_path, LIKE_PYTORCH)


SEQUENCES = """
    class Features:
        def __init__(self, lengths):
            self.ends = torch.tensor([0, *np.cumsum(lengths)])
            self.rows = torch.randint(20, (int(self.ends[-1]),), generator=generator)

        def keys(self):
            return ["b", "a"]

        def values(self):
            return self.rows

        def offsets(self):
            return self.ends

        def weights_or_none(self):
            return None

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            tables = [mpe.TableConfig("a", 20, 4, "int8", "none"),
                      mpe.TableConfig("b", 20, 6, "int4", "none")]
            self.rows = mt.EmbeddingCollection(tables, optimizer=mpe.Adam(0.01), seed=rank)
            self.linear = torch.nn.Linear(10, 1)

        def forward(self, features):
            padded = {k: one.to_padded_dense(3) for k, one in self.rows(features).items()}
            return self.linear(torch.cat([padded["a"], padded["b"]], 2))

    model = DistributedDataParallel(Model())
    fused = mt.FusedOptimizer(model) if {deferred} else None
    for step in range(20):
        # Features of different sizes, some of them empty.
        lengths = [(step + rank) % 3, step % 2, rank, step % 4 * rank]
        model(Features(lengths)).square().mean().backward()
        if fused is not None:
            fused.step()
            fused.zero_grad()
    assert state_is_equal(model.module.rows.tables)
    assert sum(one["accesses"] for one in model.module.rows.tables.stats().values()) > 0
"""


@pytest.mark.parametrize("deferred", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_replicas_of_sequences_are_equal(deferred: bool, tmp_path: Path) -> None:
    run(tmp_path, SEQUENCES.replace("{deferred}", str(deferred)))


SHARED = """
    bag = mt.EmbeddingBag(50, 6, mode="sum", optimizer=mpe.Adam(0.1), precision="fp32")
    twin = mt.EmbeddingBag.from_collection(bag.tables)

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = bag, twin

        def forward(self, indices):
            return self.one(indices) + self.other(indices.flip(0) + 1)

    model = DistributedDataParallel(Both())
    for step in range(3):
        model(torch.randint(49, (4, 3), generator=generator)).square().sum().backward()
    assert int(bag.tables.state_arrays()["updates"].sum()) == 3
    assert state_is_equal(bag.tables)
"""


def test_modules_of_one_collection_share_the_update(tmp_path: Path) -> None:
    run(tmp_path, SHARED)
