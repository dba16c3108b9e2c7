"""A click model in NumPy alone: a factorisation machine whose vectors are in INT4 tables.

Every click has 26 categorical values, each with a vector. The log odds are the sum of the vectors'
first elements and of the dot products of all pairs of the remaining elements.
"""

import numpy as np
import numpy.typing as npt

import mpembed as mpe
from mpembed.train.data.synthetic import generate

COLUMNS, ROWS, DIM = 26, 20_000, 16  # values are hashed into the rows of their column's table
BATCH, STEPS, WINDOW = 512, 120, 20
OFFSETS = np.arange(COLUMNS * BATCH + 1)  # bags of one value each

Floats = npt.NDArray[np.float32]


def clicks(step: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the table rows of a batch, table by table, and its labels."""
    drawn = generate(step * BATCH, (step + 1) * BATCH)
    return (drawn.cats % ROWS).ravel(), drawn.labels.astype(np.float32)


def log_odds(vectors: Floats) -> tuple[Floats, Floats]:
    """Return the log odds (B,) of vectors (B, 26, D), and their derivatives (B, 26, D)."""
    rest = vectors[..., 1:]
    total = rest.sum(axis=1, keepdims=True)
    products = (total[:, 0] ** 2 - (rest**2).sum(axis=1)).sum(axis=1) / 2
    slopes = np.ones_like(vectors)
    slopes[..., 1:] = total - rest
    return vectors[..., 0].sum(axis=1) + products, slopes


def train(steps: int = STEPS) -> list[float]:
    """Train; return the loss of each batch before it was trained on."""
    emb = mpe.EmbeddingBagCollection(
        [
            mpe.TableConfig(f"column{c}", ROWS, DIM, precision="int4", init=("normal", 0.03))
            for c in range(COLUMNS)
        ],
        cache=mpe.CacheConfig(load_factor=0.05, policy="lfu"),
        optimizer=mpe.RowwiseAdagrad(lr=0.04),
    )
    bias, losses = 0.0, []
    for step in range(steps):
        indices, labels = clicks(step)
        out = emb.forward(indices, OFFSETS)  # (B, 26 D)
        score, slopes = log_odds(out.reshape(BATCH, COLUMNS, DIM))
        score += np.float32(bias)
        losses.append(float(np.mean(np.logaddexp(0, score) - labels * score)))
        by_score = (1 / (1 + np.exp(-score)) - labels) / BATCH  # derivative of the loss
        bias -= float(by_score.sum())
        emb.backward((by_score[:, None, None] * slopes).reshape(out.shape))
        if (step + 1) % WINDOW == 0:
            print(f"{(step + 1) * BATCH:6,} clicks  loss {np.mean(losses[-WINDOW:]):.4f}")
    print(f"tables {emb.memory_report()['ratio']:.1f}x smaller than in FP32")
    return losses


if __name__ == "__main__":
    train()
