"""The same calls give the same bytes for every thread count and SIMD level."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import RefCollection
from reference.pair import Batches, Pair

import mpembed as mpe

THREADS = (1, 2, 3, 8)
STEPS = 30
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda: mpe.SGD(0.05, weight_decay=0.01, weight_decay_mode="l2"),
    "adagrad": lambda: mpe.Adagrad(0.05),
    "adagrad_bf16": lambda: mpe.Adagrad(0.05, state_precision="bf16"),
    "rowwise_adagrad": lambda: mpe.RowwiseAdagrad(
        0.05, weight_decay=0.01, weight_decay_mode="decoupled"
    ),
}
POLICIES = [None, *mpe.registry.POLICIES]
CASES = [f"{optimizer}-{policy}" for optimizer in OPTIMIZERS for policy in POLICIES]


def make_tables(rows: int) -> list[mpe.TableConfig]:
    dims = (1, 16, 33, 64)
    return [
        mpe.TableConfig(f"{i}", rows + 17 * i, dims[i % 4], name, ("sum", "mean")[i % 2])
        for i, name in enumerate(mpe.registry.FORMATS)
    ]


def skewed_batch(rng: np.random.Generator, tables: list[mpe.TableConfig]) -> tuple[Any, Any]:
    """Some 6,000 indices: a hot row with hundreds of occurrences, and a long tail."""
    lengths = rng.integers(0, 14, 128 * len(tables))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    indices = []
    for t, table in enumerate(tables):
        count = offsets[(t + 1) * 128] - offsets[t * 128]
        power = rng.random(count) ** 4
        indices.append((power * table.num_embeddings).astype(np.int64))
    return np.concatenate(indices), offsets


def digest(case: str) -> str:
    """Hash of every output, weight gradient and state byte of a training run."""
    optimizer, _, policy = case.partition("-")
    tables = make_tables(900)
    cache = None
    if policy != "None":
        cache = mpe.CacheConfig(load_factor=0.1, policy=policy, ways=16)
    emb = mpe.EmbeddingBagCollection(
        tables, cache=cache, optimizer=OPTIMIZERS[optimizer](), seed=12
    )
    rng = np.random.default_rng(3)
    total = hashlib.sha256()
    for step in range(STEPS):
        indices, offsets = skewed_batch(rng, tables)
        weights = rng.standard_normal(len(indices)).astype(np.float32) if step % 3 else None
        if step % 4 == 3:
            emb.prefetch(indices, offsets)
        out = emb.forward(indices, offsets, weights)
        grad = rng.standard_normal(out.shape).astype(np.float32)
        total.update(out.tobytes())
        weight_grad = emb.backward(grad)
        if weight_grad is not None:
            total.update(weight_grad.tobytes())
        if step == STEPS // 2:
            emb.flush()
    for name, array in sorted(emb.state_arrays().items()):
        total.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def digests(isa: str | None) -> dict[str, str]:
    """Digests of every case and thread count from a new process."""
    environment = {**os.environ}
    environment.pop("MPEMBED_ISA", None)
    if isa is not None:
        environment["MPEMBED_ISA"] = isa
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        env=environment,
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


@pytest.mark.parametrize("isa", ["avx2", "avx512", None])
def test_every_simd_level_gives_the_same_bytes(isa: str | None, baseline: dict[str, str]) -> None:
    best = mpe.info()["simd"] if "MPEMBED_ISA" not in os.environ else None
    found = digests(isa)
    if isa is not None and best == isa:
        assert found["simd"] == isa
    assert {**found, "simd": ""} == {**baseline, "simd": ""}


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("policy", POLICIES)
def test_many_threads_equal_the_reference(threads: int, policy: str | None) -> None:
    tables = make_tables(120)
    cache = None if policy is None else mpe.CacheConfig(num_sets=2, policy=policy, ways=16)
    before = mpe.get_num_threads()
    try:
        mpe.set_num_threads(threads)
        emb = mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=mpe.Adagrad(0.1))
        pair = Pair(emb, RefCollection(tables, cache, mpe.Adagrad(0.1)))
        rng = np.random.default_rng(threads)
        batches = Batches(pair.ref, 5)
        for step in range(2):
            indices, offsets = skewed_batch(rng, tables)
            weights = batches.weights(len(indices)) if step else None
            pair.backward(batches.grad(pair.forward(indices, offsets, weights)))
    finally:
        mpe.set_num_threads(before)


if __name__ == "__main__":
    print_digests()
