"""Formats against int4 and paired draws against independent ones: ratios of CPU rates.

    python -P bench/relative_rates.py [--dims 16,64,128] [--rounds 30]

Tables of 128 MB in FP32 or more are looked up and updated by one thread. A round runs every
contender on the same batch, in an order of its own. A ratio is the median over the rounds of the
rates of one round, with its quartiles. Times are the process's processor time, which other programs
disturb less than the clock.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import mpembed as mpe

Times = npt.NDArray[np.float64]
BAGS, BAG = 2048, 20
VALUES = 128_000_000  # rows times dimension
WARM = 2  # rounds that are not counted
OPTIMIZERS = ("sgd", "rowwise_adagrad")


@dataclass(frozen=True)
class Contender:
    """How a table is stored."""

    precision: str
    rounding: str = "paired"

    def make(self, dim: int, optimizer: str) -> mpe.EmbeddingBagCollection:
        table = mpe.TableConfig("t", VALUES // dim, dim, precision=self.precision)
        chosen = mpe.optim.OPTIMIZERS[optimizer](lr=0.01)
        return mpe.EmbeddingBagCollection([table], optimizer=chosen, rounding=self.rounding)


def measure(contenders: list[Contender], dim: int, optimizer: str, rounds: int) -> Times:
    """Return seconds of (forward, update) x contender x round."""
    rng = np.random.default_rng(0)
    embs = [one.make(dim, optimizer) for one in contenders]
    offsets = np.arange(0, BAGS * BAG + 1, BAG)
    grad = rng.standard_normal((BAGS, dim)).astype(np.float32)
    out = np.empty_like(grad)
    seconds = np.empty((2, len(embs), WARM + rounds))
    for turn in range(WARM + rounds):
        indices = rng.integers(0, VALUES // dim, BAGS * BAG)
        for at in rng.permutation(len(embs)):
            start = time.process_time()
            embs[at].forward(indices, offsets, out=out, training=False)
            seconds[0, at, turn] = time.process_time() - start
        for at in rng.permutation(len(embs)):
            embs[at].forward(indices, offsets, out=out)
            start = time.process_time()
            embs[at].backward(grad)
            seconds[1, at, turn] = time.process_time() - start
    return seconds[:, :, WARM:]


def rates(seconds: Times) -> list[str]:
    """Return the rate of every contender but the first, relative to it, of (contender, round)."""
    said = []
    for own in seconds[1:]:
        low, median, high = np.quantile(seconds[0] / own, [0.25, 0.5, 0.75])
        said.append(f"{median:.3f} ({low:.2f} to {high:.2f})")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dims", default="16,64,128", help="dimensions, separated by commas")
    parser.add_argument(
        "--rounds", type=int, default=30, help="rounds that are counted (%(default)s)"
    )
    options = parser.parse_args()
    mpe.set_num_threads(1)
    for dim in map(int, options.dims.split(",")):
        for optimizer in OPTIMIZERS:
            print(f"D={dim}, {optimizer}")
            widths = [Contender(name) for name in ("int4", "int5", "int6", "int8")]
            forward, update = map(rates, measure(widths, dim, optimizer, options.rounds))
            for one, fast, slow in zip(widths[1:], forward, update, strict=True):
                print(f"  {one.precision} to int4: forward {fast}, update {slow}")
            for precision in ("int4", "int8"):
                draws = [Contender(precision, "stochastic"), Contender(precision)]
                (found,) = rates(measure(draws, dim, optimizer, options.rounds)[1])
                print(f"  {precision} paired to stochastic: update {found}", flush=True)


if __name__ == "__main__":
    main()
