"""An optimizer of one's own: Lion, in lion.h beside this file, trains INT8 vectors to fit targets.

The first run needs a C++ compiler for some seconds; what it compiles is kept.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import mpembed as mpe
import mpembed.cuda

ROWS, DIM, BATCH, STEPS, WINDOW = 2_000, 32, 512, 240, 40
SOURCE = Path(__file__).with_name("lion.h")


def lion(lr: float, state_precision: str = "fp32") -> mpembed.cuda.Optimizer:
    """Return Lion with the parameters of its paper."""
    return mpembed.cuda.Optimizer(
        SOURCE.read_text(),
        "Lion",
        lr,
        parameters={"beta1": 0.9, "beta2": 0.99},
        state_precision=state_precision,
    )


def main(device: str = "cpu") -> None:
    """Fit the rows of a table to random targets, on the CPU or on a device."""
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig("item", num_embeddings=ROWS, embedding_dim=DIM, precision="int8")],
        cache=mpe.CacheConfig(load_factor=0.05),
        optimizer=lion(2e-3, "bf16"),
        device=device,
    )
    rng = np.random.default_rng(0)
    targets = rng.normal(0.0, 0.1, (ROWS, DIM)).astype(np.float32)
    losses: list[float] = []
    for step in range(1, STEPS + 1):
        ids = rng.zipf(1.2, BATCH) % ROWS
        out = emb.forward(*send(device, ids, np.arange(BATCH + 1)))
        vectors = out if isinstance(out, np.ndarray) else out.numpy()
        errors = vectors - targets[ids]
        losses.append(float((errors**2).mean()))
        emb.backward(*send(device, errors / BATCH))
        if step % WINDOW == 0:
            print(f"{step:4} steps  loss {np.mean(losses[-WINDOW:]):.6f}")


def send(device: str, *arrays: npt.NDArray[Any]) -> list[Any]:
    """Return arrays where the collection is."""
    return [array if device == "cpu" else mpe.to_device(array, device) for array in arrays]


if __name__ == "__main__":
    main(*sys.argv[1:])
