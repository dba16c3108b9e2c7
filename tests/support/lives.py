"""What the soak runs: small collections beside the reference, and two large ones."""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import drive
import kinds
import numpy as np
from helpers import digest
from oracles import DECAYS
from reference.pair import Batches, assert_same
from reference.scenario import OPERATIONS, Scenario

import mpembed as mpe
from mpembed._bindings.contract import PIN_MASK

PINS = np.uint64(PIN_MASK)
CALLS = [*OPERATIONS, *OPERATIONS, "reload", "twin", "forget", "threads", "odd"]


def random_tables(rng: np.random.Generator) -> list[mpe.TableConfig]:
    """Return one to four small tables of one or two dimensions, one of them perhaps frozen."""
    dims = rng.choice([1, 3, 8, 16, 33], 2)
    inits: list[Any] = [None, "zeros", ("uniform", -2.0, 1.0), ("normal", 0.5)]
    return [
        mpe.TableConfig(
            f"t{i}",
            int(rng.integers(1, 120)),
            int(rng.choice(dims)),
            str(rng.choice(drive.FORMATS)),
            str(rng.choice(drive.POOLINGS)),
            inits[rng.integers(len(inits))],
            trainable=bool(i == 0 or rng.random() < 0.9),
        )
        for i in range(rng.integers(1, 5))
    ]


class Life(Scenario):
    """A collection and the reference, from their making to their end."""

    def __init__(self, seed: int, number: int, folder: Path) -> None:
        rng = np.random.default_rng([seed, number])
        bad = float(rng.choice([0.0, 0.1]))
        policy = drive.POLICIES[rng.integers(len(drive.POLICIES))]
        pair = drive.make_pair(
            random_tables(rng),
            drive.make_cache(policy, int(rng.integers(1, 4)), int(rng.choice([8, 16, 32]))),
            kinds.named(str(rng.choice(kinds.EVERY)), mode=str(rng.choice(list(DECAYS)))),
            seed=int(rng.integers(2**63)),
            rounding=str(rng.choice(drive.ROUNDINGS)),
            bounds="drop" if bad else "raise",
        )
        batches = Batches(pair.ref, int(rng.integers(2**31)))
        options = {"batch": int(rng.integers(1, 7)), "longest": int(rng.integers(1, 9)), "bad": bad}
        super().__init__(pair, batches, options)
        self.file, self.calls = folder / "life", 0

    def live(self, calls: int) -> None:
        """Make random calls, one of them from a forked child."""
        forked = int(self.rng.integers(calls * 5))
        for self.calls in range(calls):
            if self.calls == forked:
                self.fork()
            self.run(str(self.rng.choice(CALLS)))
        self.close_all()
        self.pair.check("state at the end")
        self.assert_unpinned()

    def close_all(self) -> None:
        """Use or drop every batch that is open."""
        self.do_backward()
        for _, tickets in [*self.prefetched, *self.open]:
            self.pair.drop(tickets)
        self.prefetched, self.open = [], []

    def assert_unpinned(self) -> None:
        for name, array in self.pair.emb.state_arrays().items():
            assert not name.endswith(".tags") or not (array & PINS).any(), f"{name} has pins"
        report = self.pair.emb.memory_report()
        parts = [*report["tables"].values(), *report["caches"].values()]
        counted = sum(sum(part.values()) for part in parts)
        counted += sum(report[name] for name in ("statistics", "descriptors", "workspace"))
        assert counted == report["total"]

    def saved(self) -> Any:
        self.pair.emb.save(self.file)
        assert [path.name for path in self.file.parent.iterdir()] == [self.file.name]
        return mpe.EmbeddingBagCollection.load(self.file)

    def do_reload(self) -> None:
        """The collection goes on as its copy from a file."""
        self.close_all()
        loaded, emb = self.saved(), self.pair.emb
        for mine, other in zip(loaded.optimizers.values(), emb.optimizers.values(), strict=True):
            assert repr(mine) == repr(other)
        self.pair.emb = loaded
        self.pair.check("state after load")

    def do_twin(self) -> None:
        """A copy, without the batches that are open, trains as another one does."""
        twins = [self.saved(), self.saved()]
        kept = dict(self.pair.emb.state_arrays())
        for name in kept:
            if name.endswith(".tags"):
                kept[name] = kept[name] & ~PINS
        assert_same(twins[0].state_arrays(), kept, "a copy's state")
        for _ in range(2):
            inputs = self.inputs()
            outs = [twin.forward(*inputs) for twin in twins]
            assert_same(outs[0], outs[1], "a copy's forward")
            grad = self.batches.grad(outs[0])
            for twin in twins:
                twin.backward(grad)
        assert digest(twins[0]) == digest(twins[1])

    def do_forget(self) -> None:
        """Tickets die without a word; the reference hears of it."""
        while self.open:
            self.open.pop()[1][1].drop()
        gc.collect()
        empty = np.zeros(0, np.int64), np.zeros(len(self.pair.ref.tables) + 1, np.int64)
        self.do_backward()
        _, tickets = self.pair.forward(*empty, ticket=True)
        self.pair.drop(tickets)

    def do_threads(self) -> None:
        mpe.set_num_threads(int(self.rng.integers(1, 6)))

    def do_odd(self) -> None:
        """A call that is refused changes nothing."""
        indices, offsets = self.inputs()
        calls: list[Any] = [
            lambda: self.pair.emb.forward(indices, np.append(offsets[:-1], offsets[-1] + 1)),
            lambda: self.pair.emb.forward(indices.astype(np.float32), offsets),
            lambda: self.pair.emb.backward(np.zeros((1, 1, 1), np.float32)),
            lambda: self.pair.emb.set_rows("none", [0], np.zeros((1, 1), np.float32)),
        ]
        for call in calls:
            try:
                call()
            except (TypeError, ValueError, KeyError, IndexError, RuntimeError):
                self.pair.check("state after a refused call")
            else:
                raise AssertionError("a wrong call was not refused")

    def fork(self) -> None:
        """A child goes on as its parent would."""
        sys.stdout.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python and JAX warn of forks beside threads
            child = os.fork()
        if child == 0:
            status = 1
            try:
                for operation in ("train", "open", "flush", "close", "twin"):
                    self.run(operation)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        for _ in range(6000):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0, f"a forked child ended with {status}"
                return
            time.sleep(0.01)
        os.kill(child, 9)
        os.waitpid(child, 0)
        raise AssertionError("a forked child hangs")


class Large:
    """Two equal collections whose batches are work for several threads."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = np.random.default_rng([seed, 2**31])
        self.file = folder / "large"
        tables = [
            mpe.TableConfig("a", 20_000, 32, "int4"),
            mpe.TableConfig("b", 5_000, 32, "int8", "mean"),
            mpe.TableConfig("c", 9_000, 16, "fp16"),
        ]
        cache = mpe.CacheConfig(num_sets=64, policy="lfu")
        self.pair = [
            mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=mpe.Adam(0.01), seed=seed)
            for _ in range(2)
        ]

    def step(self) -> None:
        bags = 256
        lengths = self.rng.integers(0, 30, 3 * bags)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        counts = np.diff(offsets[::bags])
        rows = np.repeat([20_000, 5_000, 9_000], counts)
        indices = (rows * self.rng.random(len(rows)) ** 3).astype(np.int64)
        grad = self.rng.standard_normal((bags, 80)).astype(np.float32)
        outs = []
        for emb, threads in zip(self.pair, (1, int(self.rng.integers(2, 6))), strict=True):
            mpe.set_num_threads(threads)
            outs.append(emb.forward(indices, offsets))
            emb.backward(grad)
        assert_same(outs[0], outs[1], "outputs of one and of several threads")
        if self.rng.random() < 0.1:
            assert digest(self.pair[0]) == digest(self.pair[1]), "threads left different states"
            self.pair[0].save(self.file)
            self.pair[1] = mpe.EmbeddingBagCollection.load(self.file)
            assert digest(self.pair[0]) == digest(self.pair[1]), "a copy has another state"
            self.file.unlink()
