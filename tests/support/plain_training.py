"""Programs of the tests of mpembed.torch.distributed that train; each runs on every rank."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from folders import ROOT
from plain_batches import Batch, Features, Tables, bags_of, digest, raises, shards, table
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

import mpembed as mpe
from mpembed import torch as mt
from mpembed.torch.distributed import (
    DistributedEmbeddingBagCollection,
    RowWise,
    TableWise,
    _call,
)


def compare(
    tables: Tables,
    plan: Any,
    *,
    longest: int = 1,
    tolerance: float = 0.0,
    weighted: str = "nobody",
    optimizer: Callable[[], Any] = lambda: mpe.RowwiseAdagrad(lr=0.1),
    steps: int = 6,
    average: bool = False,
) -> None:
    """Train shards, and beside them one collection on the batches of all."""
    rank, size = dist.get_rank(), dist.get_world_size()
    module = DistributedEmbeddingBagCollection(
        tables, plan, optimizer=optimizer(), seed=5, average_gradients=average
    )
    whole = mpe.EmbeddingBagCollection(tables, optimizer=optimizer(), seed=5)

    def check(what: Any, got: Any, expected: Any) -> None:
        if tolerance == 0:
            assert np.array_equal(np.asarray(got), np.asarray(expected)), what
        else:
            one, other = (np.asarray(each).view(np.float32) for each in (got, expected))
            np.testing.assert_allclose(one, other, tolerance, tolerance, err_msg=str(what))

    for step in range(steps):
        batch = Batch(step, tables, bags_of(step), longest)
        if weighted == "some":  # those of others count as 1
            for factors in batch.factors:
                for bag in factors[batch.ends[1] :]:
                    bag[:] = 1
        mine = batch.part(rank, weighted=weighted == "all" or (weighted == "some" and rank == 0))
        every = batch.part(None, weighted=weighted != "nobody")
        for training in (False, True):
            module.train(training)
            before = digest(module.local)
            out = module(*mine)
            expected = torch.from_numpy(whole.forward(*every, training=training))
            check((step, training), out.detach(), batch.own(rank, expected))
            assert (digest(module.local) == before) != training
        out.backward(batch.own(rank, batch.grad) * (size if average else 1))
        whole.backward(batch.grad)
    assert (module.local.step, module.local.updates) == (whole.step, whole.updates)
    for key, got, rows in shards(module, whole):
        check(key, got, rows)


def bytes_of_one_process() -> None:
    last = dist.get_world_size() - 1
    tables = [
        table("owned", 50, 8),
        table("rows", 41, 8),
        table("owned mean", 40, 6, "int8", pooling="mean"),
        table("rows mean", 23, 4, pooling="mean"),
        table("few", 2, 8),
        table("none", 0, 8),
        table("pooled", 30, 8),
        table("frozen", 30, 8, trainable=False),
        table("part", 33, 5, table_id=9, first_row=7, total_rows=50),
    ]
    plan: Any = {one.name: RowWise() for one in tables}
    plan["owned"] = plan["owned mean"] = TableWise(last)
    plan["pooled"] = RowWise(exchange="pooled")
    compare(tables, plan)
    exact = dist.get_world_size() != 3  # a division by 3 rounds
    compare(tables, plan, optimizer=lambda: mpe.Adam(lr=0.01), average=exact)
    longer = [tables[0], tables[1], tables[2], tables[4], tables[5]]
    compare(longer, {t.name: plan[t.name] for t in longer}, longest=70, steps=3)
    alone = [tables[0], tables[2]]  # other ranks have no table
    compare(alone, {t.name: plan[t.name] for t in alone}, longest=3, weighted="all")


def sums_of_one_process() -> None:
    tables = [
        table("a", 50, 8, "fp32"),
        table("b", 41, 8, "fp32", pooling="mean"),
        table("c", 40, 6, "fp32"),
        table("d", 23, 6, "fp32", pooling="mean"),
    ]
    ways = [RowWise(exchange="pooled")] * 2 + [RowWise(exchange="rows")] * 2
    plan = dict(zip("abcd", ways, strict=True))
    for weighted in ("nobody", "some", "all"):
        for optimizer in (lambda: mpe.SGD(lr=0.05), lambda: mpe.RowwiseAdagrad(lr=0.1)):
            compare(tables, plan, longest=6, tolerance=1e-5, weighted=weighted, optimizer=optimizer)


def wide_indices() -> None:
    """Indices travel as int64 where a table is large; nobody could allocate one here."""
    replaced: Any = _call
    kept, replaced.index_dtype = replaced.index_dtype, lambda tables: torch.int64
    tables = [table("a", 50, 8), table("b", 41, 8), table("c", 40, 6, "fp32")]
    plan: Any = {"a": TableWise(0), "b": RowWise(), "c": RowWise(exchange="pooled")}
    compare(tables, plan)
    compare(tables[:1], {"a": TableWise(0)}, longest=5, weighted="all")
    replaced.index_dtype = kept


def cached() -> None:
    """Print a digest of a run with a cache; it does not depend on threads."""
    tables = [table("a", 60, 8), table("b", 41, 8), table("c", 30, 8, "int8")]
    plan: Any = {"a": TableWise(0), "b": RowWise(), "c": RowWise(mean_length=9)}
    rank, found = dist.get_rank(), []
    for threads in (1, 2):
        mpe.set_num_threads(threads)
        module = DistributedEmbeddingBagCollection(
            tables,
            plan,
            optimizer=mpe.Adam(lr=0.01),
            cache=mpe.CacheConfig(num_sets=1, ways=8, policy="lru"),
            seed=1,
        )
        for step in range(8):
            batch = Batch(step, tables, bags_of(step), 4)
            module(*batch.part(rank)).backward(batch.own(rank, batch.grad))
        stats = module.local.stats()
        assert sum(one["evictions"] for one in stats.values()) > 0
        found.append(digest(module.local))
    assert found[0] == found[1]
    print("digest", found[0])


def features() -> None:
    """Features in another order, of which two share a table."""
    rank, rng = dist.get_rank(), np.random.default_rng(0)
    tables = [table("t", 20, 4, "fp32"), table("u", 30, 6, "fp32", pooling="mean")]
    options: Any = {"feature_names": {"t": ["a", "b"], "u": ["c"]}, "seed": 3}
    plan: Any = {"t": RowWise(exchange="rows"), "u": RowWise(exchange="pooled")}
    module = DistributedEmbeddingBagCollection(
        tables, plan, optimizer=mpe.SGD(0.1), average_gradients=False, **options
    )
    one = mt.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1), **options)
    bags_in_all = 4 * dist.get_world_size()
    for _ in range(3):
        bags = [
            [rng.integers(0, 20, n).tolist() for n in rng.integers(0, 4, bags_in_all)]
            for _ in "cxba"
        ]
        out = module(Features("cxba", [bag[4 * rank : 4 * rank + 4] for bag in bags]))
        expected = one(Features("cxba", bags))
        assert isinstance(out, mt.KeyedTensor)
        assert (out.keys(), out.length_per_key()) == (["a", "b", "c"], [4, 4, 6])
        torch.testing.assert_close(out.values(), expected.values()[4 * rank : 4 * rank + 4])
        out.values().square().sum().backward()
        expected.values().square().sum().backward()


def saved() -> None:
    """Each rank saves its shard, and goes on from it with the bytes of a run without a break."""
    tables = [table("a", 60, 8), table("b", 41, 8)]
    plan: Any = {"a": TableWise(0), "b": RowWise()}
    cache = mpe.CacheConfig(num_sets=1, ways=8)
    made = [
        DistributedEmbeddingBagCollection(
            tables, plan, optimizer=mpe.Adam(lr=0.01), cache=cache, seed=2
        )
        for _ in range(2)
    ]
    rank = dist.get_rank()
    for step in range(6):
        batch = Batch(step, tables, bags_of(step), 3)
        for module in made:
            module(*batch.part(rank)).backward(batch.own(rank, batch.grad))
        if step == 3:
            made[0].local.save(f"shard-{rank}")
            made[0].local = mpe.EmbeddingBagCollection.load(f"shard-{rank}")
    assert digest(made[0].local) == digest(made[1].local)
    other = mpe.EmbeddingBagCollection([table("a", 59, 8)], optimizer=mpe.Adam(lr=0.01))
    with raises(ValueError, "this rank's shards, whose tables is [", "got [('a', 59,"):
        made[0].local = other
    for name, changed in (("bounds", "drop"), ("on_nonfinite", "skip"), ("optimizers", mpe.SGD(1))):
        argument: Any = {name.removesuffix("s") if name == "optimizers" else name: changed}
        other = mpe.EmbeddingBagCollection.load(f"shard-{rank}", **argument)
        with raises(ValueError, f"whose {name} is"):
            made[0].local = other


class Model(torch.nn.Module):
    """A module of tables and a layer above it."""

    def __init__(self, tables: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables, self.layer = tables, torch.nn.Linear(14, 1)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        ends = torch.arange(indices.numel() + 1)
        out: torch.Tensor = self.layer(self.tables(indices.flatten(), ends))
        return out


def data_parallel() -> None:
    """A mean loss of each rank trains what the mean loss of all does in one process."""
    rank, size = dist.get_rank(), dist.get_world_size()
    tables = [table("a", 50, 8, "fp32"), table("b", 41, 6, "fp32")]
    plan: Any = {"a": TableWise(size - 1), "b": RowWise()}
    sharded = DistributedEmbeddingBagCollection(
        tables, plan, optimizer=mpe.SGD(0.1), seed=1, process_group=dist.new_group()
    )
    assert list(sharded.parameters()) == []
    model = DistributedDataParallel(Model(sharded))
    one = Model(mt.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1), seed=1))
    optimizers = [torch.optim.SGD(m.layer.parameters(), 0.1) for m in (model.module, one)]
    for step in range(6):
        rng = torch.Generator().manual_seed(step)
        indices = torch.stack([torch.randint(n, (4 * size,), generator=rng) for n in (50, 41)])
        out, expected = model(indices[:, 4 * rank : 4 * rank + 4]), one(indices)
        torch.testing.assert_close(out, expected[4 * rank : 4 * rank + 4])
        for optimizer, values in zip(optimizers, (out, expected), strict=True):
            optimizer.zero_grad()
            (values - 1).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(model.module.layer.weight, one.layer.weight)


def page() -> None:
    """The Python of the manual's page runs."""
    text = (ROOT / "docs" / "distributed_plain.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        exec(block, names)
    assert names["out"].shape == (64, 80)
    assert names["model"].local.step == 2


def wire() -> None:
    """What is passed to all_to_all_single for others is what the formula says."""
    rank, size = dist.get_rank(), dist.get_world_size()
    sent, real = [0], dist.all_to_all_single

    def count(out: Any, given: torch.Tensor, outs: Any, ins: list[int], **options: Any) -> Any:
        sent[0] += (sum(ins) - ins[rank]) * given.element_size()
        return real(out, given, outs, ins, **options)

    replaced: Any = dist
    replaced.all_to_all_single = count
    bags = 200
    tables = [table(name, 1000, 32) for name in "abcde"] + [table("few", 1, 32)]
    plan: Any = {name: RowWise(exchange="rows") for name in "abcde"}
    plan |= {"a": TableWise(0), "b": TableWise(size - 1), "c": RowWise(exchange="pooled")}
    plan["few"] = RowWise(mean_length=100)
    for longest, weighted in ((2, False), (2, True), (20, False)):
        module = DistributedEmbeddingBagCollection(tables, plan, optimizer=mpe.SGD(0.1), seed=1)
        batch = Batch(0, tables, [bags] * size, longest)
        own = batch.lengths[:, batch.ends[rank] : batch.ends[rank + 1]]
        means = dict(zip(plan, own.mean(1), strict=True))
        formula = module.wire_bytes(bags, means, weighted=weighted)
        sent[0] = 0
        module(*batch.part(rank, weighted=weighted)).sum().backward()
        print("wire", rank, longest, weighted, sent[0], round(formula))
        assert abs(sent[0] - formula) <= 0.05 * formula
        assert (formula > 0) == (size > 1)
