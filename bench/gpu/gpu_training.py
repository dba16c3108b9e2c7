"""Train the same batches on two devices and compare every table's bytes; for gpu.sh.

Run ``python bench/gpu/gpu_training.py [--short] [--device NAME]``; the exit status is 0 if all
bytes agree.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import Any

import gpu_figures
import numpy as np

import mpembed as mpe
from mpembed import registry
from mpembed.optim import OPTIMIZERS

FORMATS = tuple(registry.FORMATS)
POLICIES = (*registry.POLICIES, None)
ROWS, BAGS, POOL = 700, 40, 9


def collection(device: str, optimizer: str, policy: str | None) -> mpe.EmbeddingBagCollection:
    """Return tables of every format in two dimensions, with one cache per dimension."""
    tables = [
        mpe.TableConfig(f"{name}-{dim}", ROWS, dim, precision=name, pooling=pooling)
        for (name, pooling), dim in itertools.product(
            zip(FORMATS, itertools.cycle(("sum", "mean")), strict=False), (20, 64)
        )
    ]
    cache = None if policy is None else mpe.CacheConfig(load_factor=0.1, policy=policy)
    more: dict[str, Any] = {} if device == "cpu" else {"device": device}
    return mpe.EmbeddingBagCollection(
        tables, optimizer=OPTIMIZERS[optimizer](lr=0.1), cache=cache, **more
    )


def batches(tables: int, steps: int) -> list[tuple[Any, Any, Any]]:
    """Return indices, offsets and weights; some rows occur in many bags."""
    rng = np.random.default_rng(5)
    made = []
    for _ in range(steps):
        sizes = rng.integers(0, 2 * POOL, tables * BAGS)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        indices = (rng.random(offsets[-1]) ** 3 * ROWS).astype(np.int64)
        made.append((indices, offsets, rng.random(offsets[-1]).astype(np.float32)))
    return made


def train(device: str, optimizer: str, policy: str | None, steps: int) -> list[Any]:
    """Return the last output and all rows after some steps."""
    emb = collection(device, optimizer, policy)
    names = [f"{name}-{dim}" for name in FORMATS for dim in (20, 64)]

    def there(x: Any) -> Any:
        return x if device == "cpu" else mpe.to_device(x, device)

    out = None
    for indices, offsets, weights in batches(len(names), steps):
        x, o = there(indices), there(offsets)
        if policy is not None:
            emb.prefetch(x, o)
        out = emb.forward(x, o, per_sample_weights=there(weights))
        grad = np.sin(np.arange(np.prod(out.shape), dtype=np.float32)).reshape(out.shape)
        emb.backward(there(grad))
    emb.flush()
    everything = np.arange(ROWS)
    return [here(out), *(here(emb.rows(name, there(everything))) for name in names)]


def here(x: Any) -> Any:
    """Return an array in host memory."""
    return x if isinstance(x, np.ndarray) else x.numpy()


def main() -> int:
    """Compare; return the number of trainings that differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="few steps, for slow tools")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    wrong = 0
    for optimizer, policy in itertools.product(OPTIMIZERS, POLICIES):
        steps = 2 if options.short else 30
        pair = [train(device, optimizer, policy, steps) for device in ("cpu", options.device)]
        same = all(a.tobytes() == b.tobytes() for a, b in zip(*pair, strict=True))
        wrong += not same
        said = "same bytes" if same else "DIFFERENT"
        gpu_figures.add("training", f"{optimizer}, cache {policy}: {said}", same=same)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
