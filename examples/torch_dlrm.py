"""Train the DLRM of `mpembed train` on its synthetic clicks, with PyTorch's tables and mpembed's.

    python examples/torch_dlrm.py [CLICKS [PRECISION [Embedding or EmbeddingBag]]]

The only difference is one line: `mpembed.torch.convert(...)`. In FP32 the losses are bit-identical
to those of `mpembed train --optimizer sgd --batch-size 64 --threads 1` and of nn.Embedding, which
adds the gradients of a row one after the other, as mpembed does within blocks of 64. The order of
nn.EmbeddingBag is another: some of its losses differ in the last bit.
"""

import sys
from functools import partial

import torch
from torch import nn

import mpembed as mpe
import mpembed.torch
from mpembed.train.data.dataset import TRAIN, Dataset
from mpembed.train.model import Perceptrons, make_tables
from mpembed.train.runner import open_dataset
from mpembed.train.settings import Setting, TrainOptions


class Dlrm(nn.Module):
    """A DLRM with the initial weights and rows of `mpembed train`."""

    def __init__(self, table_rows: list[int], options: TrainOptions, kind: str) -> None:
        super().__init__()
        self.net = Perceptrons(options.dim, options.seed)
        start = make_tables(table_rows, Setting("fp32"), options, options.seed).tables
        self.tables = nn.ModuleList()
        for table in start.tables:
            rows = torch.from_numpy(start.rows(table.name, torch.arange(table.num_embeddings)))
            made = nn.Embedding if kind == "Embedding" else partial(nn.EmbeddingBag, mode="sum")
            self.tables.append(made(rows.shape[0], rows.shape[1], _weight=rows))

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the log odds of clicks with the integers (B, 13) and the ids (26, B)."""
        columns = zip(self.tables, ids.unsqueeze(2), strict=True)  # (B, 1) ids for each table
        vectors = [table(column).flatten(1) for table, column in columns]
        pooled = torch.cat(vectors, dim=1)
        log_odds: torch.Tensor = self.net(dense, pooled)
        return log_odds


def train(model: nn.Module, dataset: Dataset, options: TrainOptions) -> list[float]:
    """Train on the training part of the clicks; return the loss of each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=options.table_lr)
    criterion, losses = nn.BCEWithLogitsLoss(), []
    for block in dataset.blocks(64 * options.batch_size, last=TRAIN):
        for batch in block.batches(options.batch_size):
            log_odds = model(torch.from_numpy(batch.dense), torch.from_numpy(batch.ids))
            loss = criterion(log_odds, torch.from_numpy(batch.labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def main(
    clicks: int = 5000, precision: str = "fp32", kind: str = "Embedding"
) -> dict[str, list[float]]:
    """Train with both kinds of tables, print a summary, and return the losses."""
    torch.set_num_threads(1)
    options = TrainOptions(
        (Setting(precision),), rows=clicks, optimizer="sgd", batch_size=64, threads=1
    )
    dataset = open_dataset(options)
    model = Dlrm(dataset.table_rows, options, kind)
    losses = {"torch": train(model, dataset, options)}
    model = Dlrm(dataset.table_rows, options, kind)
    mpembed.torch.convert(model, precision=precision, optimizer=mpe.SGD(lr=options.table_lr))
    losses["mpembed"] = train(model, dataset, options)
    for name, values in losses.items():
        last = values[-20:]
        print(f"{name:8} loss {values[0]:.6f} -> {sum(last) / len(last):.6f} (the last 20)")
    same = sum(a == b for a, b in zip(*losses.values(), strict=True))
    print(f"{same} of {len(values)} losses are the same to the last bit")
    return losses


if __name__ == "__main__":
    given = sys.argv[1:]
    main(int(given[0]) if given else 5000, *given[1:])
