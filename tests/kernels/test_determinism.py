"""The same calls give the same bytes for every thread count and SIMD level."""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kinds
import numpy as np
import pytest
from folders import environment
from reference import RefCollection
from reference.pair import Batches, Pair

import mpembed as mpe

THREADS = (1, 2, 3, 8)
DECAYS = ("none", "l2", "decoupled")
POLICIES = [None, *mpe.registry.POLICIES]
POOLINGS = ("sum", "mean")


@dataclass(frozen=True)
class Size:
    """Tables of about so many rows, and how much is done with them."""

    precisions: tuple[str, ...]
    dims: tuple[int, ...]
    rows: int
    bags: int
    longest: int
    ways: int
    steps: int

    def tables(self) -> list[mpe.TableConfig]:
        return [
            mpe.TableConfig(
                f"{i}", self.rows + 17 * i, self.dims[i % len(self.dims)], name, POOLINGS[i % 2]
            )
            for i, name in enumerate(self.precisions)
        ]


SMALL = Size(tuple(mpe.registry.FORMATS), (1, 16, 33, 64), 900, 128, 14, 16, 14)
# One group; every kernel cuts its work into several tasks.
LARGE = Size(("int4", "int8", "fp16"), (16,), 25_000, 1024, 90, 32, 2)
TINY = Size(SMALL.precisions, SMALL.dims, 120, 128, 14, 16, 2)
CASES = {
    **{f"{name}-{policy}": SMALL for name in ("sgd", "rowwise_adagrad") for policy in POLICIES},
    **{f"{name}-{POLICIES[i % 3]}": SMALL for i, name in enumerate(kinds.NAMES)},
    **{f"large_{case}": LARGE for case in ("adagrad_bf16-None", "sgd-lru", "rowwise_adam-lfu")},
}


def skewed_batch(rng: np.random.Generator, size: Size) -> tuple[Any, Any]:
    """Indices of a hot row with hundreds of occurrences or thousands, and a long tail."""
    tables = size.tables()
    lengths = rng.integers(0, size.longest, size.bags * len(tables))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    indices = []
    for t, table in enumerate(tables):
        count = offsets[(t + 1) * size.bags] - offsets[t * size.bags]
        power = rng.random(count) ** 4
        indices.append((power * table.num_embeddings).astype(np.int64))
    return np.concatenate(indices), offsets


def digest(case: str) -> str:
    """Hash of every output, weight gradient and state byte of a training run."""
    size = CASES[case]
    optimizer, _, policy = case.removeprefix("large_").partition("-")
    tables = size.tables()
    cache = None
    if policy != "None":
        cache = mpe.CacheConfig(load_factor=0.1, policy=policy, ways=size.ways)
    emb = mpe.EmbeddingBagCollection(
        tables,
        cache=cache,
        optimizer=kinds.named(optimizer, 0.05, DECAYS[len(case) % 3]),
        seed=12,
    )
    rng = np.random.default_rng(3)
    total = hashlib.sha256()
    for step in range(size.steps):
        indices, offsets = skewed_batch(rng, size)
        weights = rng.standard_normal(len(indices)).astype(np.float32) if step % 3 else None
        if step % 4 == 3:
            emb.prefetch(indices, offsets)
        out = emb.forward(indices, offsets, weights)
        grad = rng.standard_normal(out.shape).astype(np.float32)
        total.update(out.tobytes())
        if step % 6 == 1:  # one update of two batches
            other, ticket = emb.forward(*skewed_batch(rng, size), ticket=True)
            again, latest = emb.forward(indices, offsets, weights, ticket=True)
            total.update(other.tobytes() + again.tobytes())
            weight_grad = emb.backward([(grad, ticket), (grad, latest)])[1]
        else:
            weight_grad = emb.backward(grad)
        if weight_grad is not None:
            total.update(weight_grad.tobytes())
        if step == size.steps // 2:
            emb.flush()
            ids = rng.permutation(tables[1].num_embeddings)[: size.rows // 3]
            emb.set_rows("1", ids, -np.array(emb.rows("1", ids)))
    for name, array in sorted(emb.state_arrays().items()):
        total.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def digests(isa: str | None) -> dict[str, str]:
    """Digests of every case and thread count from a new process."""
    variables = environment()
    variables.pop("MPEMBED_ISA", None)
    if isa is not None:
        variables["MPEMBED_ISA"] = isa
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines())


def print_digests() -> None:
    """Main function of the new process."""
    print("simd", mpe.info()["simd"])
    for case in CASES:
        for threads in THREADS:
            mpe.set_num_threads(threads)
            print(f"{case}-{threads}", digest(case))


@pytest.fixture(scope="module")
def baseline() -> dict[str, str]:
    found = digests("base")
    assert found["simd"] == "base"
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_thread_count_gives_the_same_bytes(case: str, baseline: dict[str, str]) -> None:
    assert len({baseline[f"{case}-{threads}"] for threads in THREADS}) == 1


def test_the_cases_differ(baseline: dict[str, str]) -> None:
    assert len({baseline[f"{case}-1"] for case in CASES}) == len(CASES)


NEEDS = {
    "avx2": {"avx2", "fma", "bmi2", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
}


def missing_flags(isa: str) -> set[str]:
    """CPU features of a SIMD level that this machine lacks, by the system's own account."""
    if platform.machine() not in ("x86_64", "AMD64") or not Path("/proc/cpuinfo").exists():
        pytest.skip("the system does not tell the features of the CPU")
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert flags is not None
    return NEEDS[isa] - set(flags[1].split())


@pytest.mark.parametrize("isa", NEEDS)
def test_every_simd_level_gives_the_same_bytes(isa: str, baseline: dict[str, str]) -> None:
    if missing := missing_flags(isa):
        pytest.skip(f"this machine's CPU has no {', '.join(sorted(missing))}")
    found = digests(isa)
    assert found["simd"] == isa
    assert {**found, "simd": ""} == {**baseline, "simd": ""}


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("policy", POLICIES)
def test_many_threads_equal_the_reference(threads: int, policy: str | None) -> None:
    cache = None if policy is None else mpe.CacheConfig(num_sets=2, policy=policy, ways=16)
    with_the_reference(TINY, cache, mpe.Adagrad(0.1), threads)


@pytest.mark.parametrize("policy", POLICIES)
def test_large_batches_equal_the_reference(policy: str | None) -> None:
    cache = None if policy is None else mpe.CacheConfig(load_factor=0.1, policy=policy, ways=8)
    pair = with_the_reference(LARGE, cache, mpe.RowwiseAdagrad(0.1), 3)
    pair.flush()
    ids = np.random.default_rng(1).permutation(LARGE.rows)[:9000]
    pair.rows("0", ids)
    pair.set_rows("0", ids, -pair.ref.rows("0", ids))
    # Every kernel had several tasks: the largest grain is 16,384 lookups, the cache's 4,096 rows.
    counts = np.array([list(s.values()) for s in pair.emb.stats().values()]).sum(axis=0)
    total = dict(zip(mpe.STATS, counts.tolist(), strict=True))
    assert total["accesses"] > 100_000 * LARGE.steps
    assert total["unique"] > 20_000 * LARGE.steps
    if policy is not None:
        assert total["misses"] > 20_000
        assert total["evictions"] > 1024
        assert total["write_backs"] > 4096


def with_the_reference(size: Size, cache: Any, optimizer: Any, threads: int) -> Pair:
    """Train on some threads, every byte compared."""
    tables, before = size.tables(), mpe.get_num_threads()
    try:
        mpe.set_num_threads(threads)
        emb = mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=optimizer)
        pair = Pair(emb, RefCollection(tables, cache, optimizer))
        rng = np.random.default_rng(threads)
        batches = Batches(pair.ref, 5)
        for step in range(size.steps):
            indices, offsets = skewed_batch(rng, size)
            weights = batches.weights(len(indices)) if step else None
            pair.backward(batches.grad(pair.forward(indices, offsets, weights)))
    finally:
        mpe.set_num_threads(before)
    return pair


if __name__ == "__main__":
    print_digests()
