"""The same collection on a device, where its steps are captured, and on the CPU."""

from __future__ import annotations

from typing import Any

import graphs
import numpy as np
from on_device import fetch

import mpembed as mpe

BAGS, COUNT = 3, 24


def mixed(places: str = "device") -> list[mpe.TableConfig]:
    """Return tables of every format, of two dimensions, of pooling both ways."""
    return [
        mpe.TableConfig(
            f"{precision}{dim}",
            13,
            dim,
            precision,
            pooling="mean" if dim == 5 else "sum",
            placement=places if precision == "int4" else "device",
        )
        for dim in (5, 8)
        for precision in mpe.registry.FORMATS
    ]


def bytes_of(emb: mpe.EmbeddingBagCollection) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in fetch(emb.state_arrays()).items()}


class Twins:
    """A collection whose steps are captured, and one on the CPU that takes them one by one."""

    def __init__(self, runtime: graphs.Runtime, tables: list[mpe.TableConfig], **options: Any):
        self.runtime, self.stream = runtime, runtime.stream()
        rate = options.pop("lr", 0.1)
        kind = options.pop("optimizer", mpe.SGD)
        self.there, self.here = (
            mpe.EmbeddingBagCollection(
                [mpe.TableConfig(**{**vars(t), "placement": place or t.placement}) for t in tables],
                optimizer=kind(rate),
                device=device,
                **options,
            )
            for device, place in (("cuda", None), ("cpu", "device"))
        )
        self.rng = np.random.default_rng(7)
        self.width = sum(table.embedding_dim for table in tables)
        lookups = COUNT * len(tables)
        send = mpe.to_device
        self.indices = send(np.zeros(lookups, np.int64), "cuda")
        self.offsets = send(np.zeros(BAGS * len(tables) + 1, np.int32), "cuda")
        self.weights = send(np.zeros(lookups, np.float32), "cuda")
        self.grad = send(np.zeros((BAGS, self.width), np.float32), "cuda")
        self.out = send(np.zeros((BAGS, self.width), np.float32), "cuda")
        self.weight_grad = send(np.zeros(lookups, np.float32), "cuda")
        self.draw()

    def draw(self, rows: int = 13) -> None:
        """Draw the next batch and put it into the buffers."""
        n, bags = self.indices.size, self.offsets.size - 1
        ends = np.sort(self.rng.integers(0, n + 1, bags - 1))
        self.batch = (
            self.rng.integers(0, rows, n),
            np.array([0, *ends, n], np.int32),
            self.rng.standard_normal(n).astype(np.float32),
            self.rng.standard_normal((BAGS, self.width)).astype(np.float32),
        )
        buffers = self.indices, self.offsets, self.weights, self.grad
        for buffer, values in zip(buffers, self.batch, strict=True):
            self.runtime.write(buffer, values, self.stream)

    def forward(self, weighted: bool = False, **options: Any) -> Any:
        weights = self.weights if weighted else None
        options = {"out": self.out, "stream": self.stream, **options}
        return self.there.forward(self.indices, self.offsets, weights, **options)

    def backward(self, weighted: bool = False) -> None:
        out = self.weight_grad if weighted else None
        self.there.backward(self.grad, stream=self.stream, out=out)

    def step(self, weighted: bool = False) -> None:
        self.forward(weighted)
        self.backward(weighted)

    def captured(self, weighted: bool = False, mode: int = graphs.GLOBAL) -> graphs.Graph:
        with self.runtime.capture(self.stream, mode) as made:
            self.step(weighted)
        return made[0]

    def assert_evaluated(self) -> None:
        expected = self.here.forward(*self.batch[:2], training=False)
        np.testing.assert_array_equal(self.out.numpy(), expected)

    def step_here(self, weighted: bool = False) -> tuple[Any, Any]:
        indices, offsets, weights, grad = self.batch
        out = self.here.forward(indices, offsets, weights if weighted else None)
        return out, self.here.backward(grad)

    def assert_equal(self) -> None:
        self.there.check()
        assert bytes_of(self.there) == bytes_of(self.here)
        assert self.there.stats() == self.here.stats()
        assert self.there.step == self.here.step
