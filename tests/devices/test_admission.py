"""Unique rows and admission on a device: many tiles of a sort, long and short lists of misses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from on_device import fetch

import mpembed as mpe

pytestmark = pytest.mark.gpu
BAGS = 8


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("lookups", [1, 1024, 2048, 2049, 80_000])
def test_unique_rows_of_many_tiles(lookups: int, dtype: Any, cuda: str) -> None:
    """A block counts 1024 or 2048 lookups, and waits for those before it, 32 of them at once."""
    highest = 2**31 - 1 if dtype == np.int32 else 2**40
    random = np.random.default_rng(lookups)
    rows = random.integers(0, highest, max(1, lookups // 3)).astype(dtype)
    indices = random.choice(rows, lookups)
    found = [fetch(array) for array in mpe.ops.unique_rows(mpe.to_device(indices, cuda))]
    unique, counts = np.unique(indices, return_counts=True)
    np.testing.assert_array_equal(found[0], unique)
    np.testing.assert_array_equal(found[1], np.append(0, np.cumsum(counts)))
    np.testing.assert_array_equal(found[2], np.argsort(indices, kind="stable"))


def trained(device: str, policy: str, sets: int, lookups: int) -> list[bytes]:
    """Return the state after some steps, of which two batches are open at once."""
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig(name, 500, 4, "int4") for name in "ab"],
        cache=mpe.CacheConfig(num_sets=sets, policy=policy),
        optimizer=mpe.RowwiseAdagrad(0.1),
        bounds="drop",
        device=device,
    )
    random, tickets = np.random.default_rng(1), []
    for _ in range(4):
        indices = (500 * random.random(lookups) ** 3).astype(np.int64)
        indices[::7] = -1
        offsets = np.append(np.sort(random.integers(0, lookups, 2 * BAGS)), lookups)
        offsets[0] = 0
        given: list[Any] = [indices, offsets, np.ones((BAGS, 8), np.float32)]
        if device != "cpu":
            given = [mpe.to_device(one, device) for one in given]
        tickets.append(emb.forward(*given[:2], ticket=True)[1])
        if len(tickets) == 2:
            emb.backward(given[2], tickets.pop(0))
    emb.check()
    return [fetch(array).tobytes() for array in emb.state_arrays().values()]


@pytest.mark.parametrize("policy", ["lru", "lfu"])
@pytest.mark.parametrize(
    ("sets", "lookups"),
    [(1, 10), (1, 900), (2, 900), (7, 900), (200, 900)],
    ids=["few", "long lists", "long and pinned", "mixed", "short lists"],
)
def test_misses_get_the_ways_that_they_get_on_the_cpu(
    policy: str, sets: int, lookups: int, cuda: str
) -> None:
    assert trained(cuda, policy, sets, lookups) == trained("cpu", policy, sets, lookups)


def test_the_first_wrong_offset_of_all_dimensions_is_told(cuda: str) -> None:
    tables = [mpe.TableConfig(name, 9, dim) for name, dim in (("a", 8), ("b", 3), ("c", 8))]
    indices, offsets = np.zeros(9, np.int64), np.array([0, 2, 3, 1, 5, 4, 9])
    for device in ("cpu", cuda):
        emb = mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1), device=device)
        given: list[Any] = [indices, offsets]
        if device != "cpu":
            given = [mpe.to_device(one, device) for one in given]

        def call(emb: Any = emb, given: Any = given) -> None:
            emb.forward(*given)
            emb.check()

        with pytest.raises(ValueError, match=r"offsets\[3\] is 1"):  # of b; c's is the group of a
            call()
