"""What a training step sends, on paper.

All numbers are bytes that leave a rank for another one, of all ranks together: N ranks, G bags of
a feature in their batches together, F features, C columns of all features together, L indices a
bag. Outputs and their gradients are FP32, indices int64, lengths int32 in TorchRec.

==================  =================================================================
table-wise          lengths and indices: (N - 1) / N * G * F * (4 + 8 L)
                    outputs, gradients: (N - 1) / N * G * C * 4, each
row-wise            lengths: (N - 1) * G * F * 4; indices: (N - 1) / N * G * F * 8 L
                    partial sums: (N - 1) * G * C * 4, on gloo twice that
                    gradients: (N - 1) * G * C * 4
row-wise, rows      indices: (N - 1) / N * G * F * 8 L
                    rows, gradients: (N - 1) / N * G * C * L * 4, each
==================  =================================================================

The last one is not TorchRec's: `mpembed.torch.distributed` exchanges rows where bags are short. It
sends int32 where the rows of a table can be counted so.

A row-wise forward ends in a reduce-scatter, for which PyTorch's gloo adds up everything on all
ranks and then takes a part; NCCL sends half as much.
"""

from __future__ import annotations

from typing import NamedTuple

FLOAT, INDEX, LENGTH = 4, 8, 4  # bytes
GLOO, NCCL = 2.0, 1.0  # what a reduce-scatter sends, of what it has to


class Step(NamedTuple):
    """Bytes of a training step, of all ranks together."""

    inputs: float
    forward: float
    backward: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self)


def torchrec(
    mode: str,
    world: int,
    batch: int,
    features: int,
    columns: int,
    length: float,
    *,
    scatter: float = GLOO,
    value: int = FLOAT,
) -> Step:
    """Return what TorchRec sends.

    Parameters
    ----------
    mode : str
        ``"table-wise"`` or ``"row-wise"``.
    world, batch, features, columns, length
        N, G, F, C and L above.
    scatter : float
        `GLOO` or `NCCL`.
    value : int
        Bytes of a value of outputs and gradients: 2 with FP16 or BF16 communication.
    """
    others = world - 1
    indices = others / world * batch * features * length * INDEX
    lengths = others * batch * features * LENGTH
    outputs = others * batch * columns * value
    if mode == "table-wise":
        return Step(indices + lengths / world, outputs / world, outputs / world)
    return Step(indices + lengths, scatter * outputs, outputs)


def exchanged_rows(
    world: int, batch: int, features: int, columns: int, length: float, *, index: int = INDEX
) -> Step:
    """Return what is sent where the row of each index travels; `index` is an index's bytes."""
    share = (world - 1) / world * batch * length
    return Step(share * features * index, share * columns * FLOAT, share * columns * FLOAT)
