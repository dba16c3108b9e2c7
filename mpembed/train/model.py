"""A DLRM: the perceptrons and the dot interaction in PyTorch, the tables in mpembed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import distributed as dist
from torch import nn

from mpembed.torch import EmbeddingBagCollection
from mpembed.torch.distributed import DistributedEmbeddingBagCollection, TableWise
from mpembed.train.data.clicks import CRITEO_COLUMNS, Columns
from mpembed.train.distributed import Ranks
from mpembed.train.settings import Setting, TrainOptions
from mpembed.train.tables import (
    cache_config,
    layer_sizes,
    table_configs,
    table_optimizer,
    table_owners,
)

MLP_ADAM_LR = 1e-3


def _mlp(sizes: Sequence[int], relu_last: bool, generator: torch.Generator) -> nn.Sequential:
    """Return linear layers with ReLU between; weights N(0, 2 / (m + n)), biases N(0, 1 / m)."""
    layers: list[nn.Module] = []
    for index, (n, m) in enumerate(pairwise(sizes)):
        linear = nn.Linear(n, m)
        with torch.no_grad():
            linear.weight.normal_(0.0, (2.0 / (m + n)) ** 0.5, generator=generator)
            linear.bias.normal_(0.0, (1.0 / m) ** 0.5, generator=generator)
        layers.append(linear)
        if relu_last or index < len(sizes) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class Perceptrons(nn.Module):
    """Everything of a DLRM except its tables.

    Parameters
    ----------
    dim : int
        Dimension of the embeddings.
    seed : int
        Seed of the starting weights.
    columns : Columns
        What the model is given: D features of numbers, at least one, and C categoricals.
    """

    def __init__(self, dim: int, seed: int, columns: Columns = CRITEO_COLUMNS) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = layer_sizes(dim, columns)
        self.dim, self._vectors = dim, len(columns.categorical) + 1
        self.bottom = _mlp(sizes["bottom"], True, generator)
        self.top = _mlp(sizes["top"], False, generator)
        self._below = torch.tril_indices(self._vectors, self._vectors, -1)

    def forward(self, dense: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """Return the log odds of a click.

        Parameters
        ----------
        dense : Tensor, shape (B, D)
            Features of the numbers.
        pooled : Tensor, shape (B, C * dim)
            Embeddings.

        Returns
        -------
        Tensor, shape (B,)
            Log odds.
        """
        bottom = self.bottom(dense)
        vectors = torch.cat([bottom, pooled], dim=1).view(len(dense), self._vectors, self.dim)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        pairs = products[:, self._below[0], self._below[1]]
        logits: torch.Tensor = self.top(torch.cat([bottom, pairs], dim=1)).squeeze(1)
        return logits


def mlp_optimizer(net: Perceptrons, options: TrainOptions) -> torch.optim.Optimizer:
    """Make the optimizer of the perceptrons.

    Parameters
    ----------
    net : Perceptrons
        The model.
    options : TrainOptions
        The run. With the optimizer "sgd" the perceptrons use SGD too, at the same rate, as DLRM's
        reference script does; otherwise they use Adam.

    Returns
    -------
    torch.optim.Optimizer
        The optimizer.
    """
    if options.optimizer == "sgd":
        return torch.optim.SGD(net.parameters(), lr=options.table_lr)
    return torch.optim.Adam(net.parameters(), lr=MLP_ADAM_LR, fused=True)


def make_tables(
    rows: Sequence[int],
    setting: Setting,
    options: TrainOptions,
    seed: int,
    columns: Columns = CRITEO_COLUMNS,
) -> EmbeddingBagCollection:
    """Make the embedding tables of one setting.

    Parameters
    ----------
    rows : sequence of int
        Rows of each table.
    setting : Setting
        How the rows are stored.
    options : TrainOptions
        Dimension, optimizer and cache policy.
    seed : int
        Seed of the starting rows and of the rounding.
    columns : Columns
        Its categoricals name the tables.

    Returns
    -------
    mpembed.torch.EmbeddingBagCollection
        A table for each categorical; the values of one click are summed.
    """
    return EmbeddingBagCollection(
        table_configs(rows, setting, options, columns),
        cache=cache_config(setting, options),
        optimizer=table_optimizer(options),
        seed=seed,
        rounding=setting.rounding,
    )


def make_sharded_tables(
    rows: Sequence[int],
    setting: Setting,
    options: TrainOptions,
    seed: int,
    columns: Columns,
    ranks: Ranks,
) -> DistributedEmbeddingBagCollection:
    """Make the embedding tables of one setting, each whole on one of several ranks.

    Parameters
    ----------
    rows, setting, options, seed, columns
        As in `make_tables`.
    ranks : Ranks
        All of them call it.

    Returns
    -------
    mpembed.torch.distributed.DistributedEmbeddingBagCollection
        A table for each categorical, of the same starting rows as those of `make_tables`.
    """
    tables = table_configs(rows, setting, options, columns)
    owners = table_owners(tables, ranks.size)
    return DistributedEmbeddingBagCollection(
        tables,
        {table.name: TableWise(owner) for table, owner in zip(tables, owners, strict=True)},
        cache=cache_config(setting, options),
        optimizer=table_optimizer(options),
        seed=seed,
        rounding=setting.rounding,
        process_group=dist.new_group(),  # its own, beside DDP's
    )
