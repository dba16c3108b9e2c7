"""The forward of a collection on a device: one launch for its tables of all dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cuda_backend
import emulated
import numpy as np
import pytest
from copied_backend import CopiedBackend
from on_device import fetch

import mpembed as mpe
from mpembed import devices

pytestmark = pytest.mark.gpu
BATCH = 5
# Dimensions and launches: rows whose columns are not aligned have a launch of their own, and one
# launch serves eight dimensions.
CASES = [
    ((8, 16, 64), 1),
    ((64, 20, 4), 1),
    ((3, 5, 7), 1),
    ((64, 3, 16), 2),
    (tuple(range(4, 40, 4)), 2),
]


def make(dims: Sequence[int], formats: Sequence[str], device: str, cached: bool) -> Any:
    tables = [
        mpe.TableConfig(f"t{i}", 30, dim, formats[i % len(formats)], ("sum", "mean")[i // 2 % 2])
        for i, dim in enumerate([*dims, *dims])
    ]
    cache = mpe.CacheConfig(num_sets=1, policy="lru") if cached else None
    return mpe.EmbeddingBagCollection(
        tables, cache=cache, optimizer=mpe.RowwiseAdagrad(0.1), device=device
    )


def batch(tables: int) -> list[Any]:
    random = np.random.default_rng(3)
    offsets = np.append(0, np.cumsum(random.integers(0, 5, tables * BATCH)))
    indices = random.integers(0, 30, offsets[-1])
    return [indices, offsets, random.random(offsets[-1], np.float32)]


class Counted:
    """Calls of the C API's `lookup`, and their launches where the emulation counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.launches: list[int] = []
        emulation = cuda_backend.choice() == "emulation"
        self.count: Callable[[], int] = emulated.launches if emulation else int  # int: always 0
        self.backend = CopiedBackend(devices.cuda_backend())
        self.backend.wrap("lookup", 3, self.lookup)
        monkeypatch.setitem(devices._known, name, self.backend.device())

    def lookup(self, real: Callable[..., int], *arguments: Any) -> int:
        before = self.count()
        status = real(*arguments)
        self.launches.append(self.count() - before)
        return status


@pytest.mark.parametrize("formats", [("int4",), ("int4", "fp16", "int8")], ids=["one", "several"])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("dims", "launches"), CASES)
def test_launches_of_a_forward(
    dims: Sequence[int],
    launches: int,
    formats: Sequence[str],
    cached: bool,
    cuda: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Counted(monkeypatch, cuda)
    here, there = (make(dims, formats, device, cached) for device in ("cpu", cuda))
    arrays = batch(2 * len(dims))
    sent = [mpe.to_device(array, cuda) for array in arrays]
    for training in (True, False):
        expected = here.forward(*arrays, training=training)
        counted.launches.clear()
        out = there.forward(*sent, training=training)
        counts = cuda_backend.choice() == "emulation"
        assert counted.launches == [launches if counts else 0]
        np.testing.assert_array_equal(out.numpy(), expected, strict=True)
        if training:
            here.backward(np.ones_like(expected))
            there.backward(mpe.to_device(np.ones_like(expected), cuda))


@emulated.alone
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("groups", "sorts"), [(1, 1), (3, 1), (8, 1), (9, 2)])
def test_one_sort_finds_the_rows_of_eight_groups(
    groups: int, sorts: int, cached: bool, cuda: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cache before the admission, without one at the update; beside CUB's two kernels."""
    launches: list[int] = []

    def discard(real: Callable[..., int], *arguments: Any) -> int:
        before = emulated.launches()
        status = real(*arguments)
        launches.append(emulated.launches() - before)
        return status

    backend = CopiedBackend(devices.cuda_backend())
    backend.wrap("discard", 6, discard)
    monkeypatch.setitem(devices._known, cuda, backend.device())
    dims = [1 + i for i in range(groups)]
    here, there = (make(dims, ("int4", "fp16"), device, cached) for device in ("cpu", cuda))
    indices, offsets, _ = batch(2 * groups)
    out = here.forward(indices, offsets)
    here.backward(np.ones_like(out))
    there.forward(*(mpe.to_device(array, cuda) for array in (indices, offsets)))
    there.backward(mpe.to_device(np.ones_like(out), cuda))
    assert launches == ([2 * sorts, 0] if cached else [sorts, 2 * sorts])
    for name, array in fetch(there.state_arrays()).items():
        np.testing.assert_array_equal(array, here.state_arrays()[name], name)


LOOKUPS = 3000  # some rows have more than one block of gradients


@emulated.alone
@pytest.mark.parametrize(
    ("policy", "prefetched", "expected"),
    [
        (None, False, emulated.Counts(13, 1, 1, 5, 52)),
        ("lru", False, emulated.Counts(13, 2, 1, 7, 59)),
        ("lfu", False, emulated.Counts(14, 2, 1, 7, 60)),
        ("lru", True, emulated.Counts(15, 2, 1, 7, 69)),
    ],
)
def test_launches_of_a_step(
    policy: str | None, prefetched: bool, expected: emulated.Counts, cuda: str
) -> None:
    """Of a group's forward and backward; what CUB's sort of the batch takes is not counted."""
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig(f"t{i}", 30, 8, "int4") for i in range(3)],
        cache=mpe.CacheConfig(num_sets=1, policy=policy) if policy else None,
        optimizer=mpe.RowwiseAdagrad(0.1),
        device=cuda,
    )
    indices = np.random.default_rng(3).integers(0, 30, LOOKUPS)
    offsets = np.linspace(0, LOOKUPS, 3 * BATCH + 1).astype(np.int64)
    indices, offsets = mpe.to_device(indices, cuda), mpe.to_device(offsets, cuda)
    grad = mpe.to_device(np.ones((BATCH, 24), np.float32), cuda)
    out = mpe.to_device(np.empty((BATCH, 24), np.float32), cuda)
    for _ in range(2):
        before = emulated.counts()
        if prefetched:
            emb.prefetch(indices, offsets)
        emb.forward(indices, offsets, out=out)
        emb.backward(grad)
    assert emulated.counts().since(before) == expected
