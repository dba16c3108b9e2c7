"""A DLRM: the perceptrons and the dot interaction in PyTorch, the tables in mpembed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

import mpembed as mpe
from mpembed.collection import collection_state
from mpembed.optim import OPTIMIZERS as OPTIMIZER_CLASSES
from mpembed.optim import Optimizer
from mpembed.torch import EmbeddingBagCollection
from mpembed.torch.distributed import DistributedEmbeddingBagCollection, TableWise
from mpembed.train.data.clicks import CRITEO_COLUMNS, Columns
from mpembed.train.distributed import ALONE, Ranks, new_group, table_owners
from mpembed.train.settings import OPTIMIZERS, Setting, TrainOptions

BOTTOM = (512, 256, 64)
TOP = (512, 256, 1)
MLP_ADAM_LR = 1e-3
MOMENTUM = 0.9


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
        inputs, vectors = max(len(columns.dense), 1), len(columns.categorical) + 1
        self.dim, self._vectors = dim, vectors
        self.bottom = _mlp((inputs, *BOTTOM, dim), True, generator)
        self.top = _mlp((dim + vectors * (vectors - 1) // 2, *TOP), False, generator)
        self._below = torch.tril_indices(vectors, vectors, -1)

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


def table_optimizer(options: TrainOptions) -> Optimizer:
    """Make the optimizer of the tables.

    Parameters
    ----------
    options : TrainOptions
        Its name and learning rate. All else is as by default, except that "sgd-momentum" has a
        momentum of 0.9.

    Returns
    -------
    mpembed.optim.Optimizer
        The optimizer.
    """
    kind = OPTIMIZERS[options.optimizer]
    own = {"momentum": MOMENTUM} if kind == "sgd_momentum" else {}
    return OPTIMIZER_CLASSES[kind](lr=options.table_lr, **own)


def make_tables(
    rows: Sequence[int],
    setting: Setting,
    options: TrainOptions,
    seed: int,
    columns: Columns = CRITEO_COLUMNS,
    ranks: Ranks = ALONE,
) -> EmbeddingBagCollection | DistributedEmbeddingBagCollection:
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
    ranks : Ranks
        Several share the tables out, each table whole on one rank.

    Returns
    -------
    EmbeddingBagCollection or DistributedEmbeddingBagCollection
        A table for each categorical; the values of one click are summed.
    """
    tables = _configs(rows, setting, options, columns)
    cache = _cache(setting, options)
    optimizer = table_optimizer(options)
    if ranks.size == 1:
        return EmbeddingBagCollection(
            tables, cache=cache, optimizer=optimizer, seed=seed, rounding=setting.rounding
        )
    owners = table_owners(tables, ranks.size)
    return DistributedEmbeddingBagCollection(
        tables,
        {table.name: TableWise(owner) for table, owner in zip(tables, owners, strict=True)},
        cache=cache,
        optimizer=optimizer,
        seed=seed,
        rounding=setting.rounding,
        process_group=new_group(),
    )


def _configs(
    rows: Sequence[int], setting: Setting, options: TrainOptions, columns: Columns
) -> list[mpe.TableConfig]:
    # DLRM's script starts tables at U(+-1/sqrt(E)), which is also the collection's default. With
    # Adagrad, large tables would then start too close to zero and small ones too far from it.
    init = None if options.optimizer == "sgd" else ("normal", 0.01)
    return [
        mpe.TableConfig(name, num_rows, options.dim, precision=setting.precision, init=init)
        for name, num_rows in zip(columns.categorical, rows, strict=True)
    ]


def _cache(setting: Setting, options: TrainOptions) -> mpe.CacheConfig | None:
    if not setting.load_factor:
        return None
    return mpe.CacheConfig(load_factor=setting.load_factor, policy=options.policy)


def check_tables(
    tables: mpe.EmbeddingBagCollection,
    rows: Sequence[int],
    setting: Setting,
    options: TrainOptions,
    seed: int,
    columns: Columns,
) -> None:
    """Raise ValueError if tables are not such as `make_tables` makes of the other arguments."""
    found, optimizer = collection_state(tables).settings, table_optimizer(options)
    own = found.optimizer
    for name, one, expected in (
        ("tables", list(found.tables), _configs(rows, setting, options, columns)),
        ("cache", found.cache, _cache(setting, options)),
        ("optimizer", own and (own.kind, own.settings()), (optimizer.kind, optimizer.settings())),
        ("seed", found.seed, seed),
        ("rounding", found.rounding, setting.rounding),
        ("bounds", found.bounds, "raise"),
        ("on_nonfinite", found.on_nonfinite, "raise"),
    ):
        if one != expected:
            raise ValueError(f"the tables' {name} are not those of the run: {one}, not {expected}")
