"""What a DLRM is made of, known without PyTorch: its tables and the sizes of its perceptrons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mpembed as mpe
from mpembed.collection import collection_state
from mpembed.optim import OPTIMIZERS as OPTIMIZER_CLASSES
from mpembed.optim import Optimizer
from mpembed.train.data.clicks import Columns
from mpembed.train.settings import OPTIMIZERS, Setting, TrainOptions

BOTTOM = (512, 256, 64)
TOP = (512, 256, 1)
MOMENTUM = 0.9


def layer_sizes(dim: int, columns: Columns) -> dict[str, tuple[int, ...]]:
    """Return the widths of both perceptrons, ``bottom`` and ``top``, input first.

    Parameters
    ----------
    dim : int
        Dimension of the embeddings.
    columns : Columns
        What the model is given: D features of numbers, at least one, and C categoricals.
    """
    inputs, vectors = max(len(columns.dense), 1), len(columns.categorical) + 1
    pairs = vectors * (vectors - 1) // 2
    return {"bottom": (inputs, *BOTTOM, dim), "top": (dim + pairs, *TOP)}


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


def table_configs(
    rows: Sequence[int], setting: Setting, options: TrainOptions, columns: Columns
) -> list[mpe.TableConfig]:
    """Return the configuration of each table: its rows are given, its columns name it."""
    # DLRM's script starts tables at U(+-1/sqrt(E)), which is also the collection's default. With
    # Adagrad, large tables would then start too close to zero and small ones too far from it.
    init = None if options.optimizer == "sgd" else ("normal", 0.01)
    return [
        mpe.TableConfig(name, num_rows, options.dim, precision=setting.precision, init=init)
        for name, num_rows in zip(columns.categorical, rows, strict=True)
    ]


def table_owners(tables: Sequence[mpe.TableConfig], ranks: int) -> list[int]:
    """Choose the rank of each table: the largest first, each to the rank with the fewest values.

    Parameters
    ----------
    tables : sequence of TableConfig
        The tables.
    ranks : int
        Their number.

    Returns
    -------
    list of int
        The rank of each table.
    """
    sizes = [table.num_embeddings * table.embedding_dim for table in tables]
    held, owners = [0] * ranks, [0] * len(tables)
    for table in sorted(range(len(tables)), key=lambda one: -sizes[one]):
        owners[table] = held.index(min(held))
        held[owners[table]] += sizes[table]
    return owners


def cache_config(setting: Setting, options: TrainOptions) -> mpe.CacheConfig | None:
    """Return the cache of a setting."""
    if not setting.load_factor:
        return None
    return mpe.CacheConfig(load_factor=setting.load_factor, policy=options.policy)


def check_tables(
    tables: mpe.EmbeddingBagCollection,
    rows: Sequence[int],
    columns: Columns,
    options: TrainOptions,
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Check tables that were saved.

    Parameters
    ----------
    tables : mpembed.EmbeddingBagCollection
        The tables.
    rows : sequence of int
        Rows that each of them should have.
    columns : Columns
        Those of the data.
    options : TrainOptions
        The run, of one setting and one seed.
    rank, ranks : int
        Of how many ranks they are those of which.

    Raises
    ------
    ValueError
        If they are not such as the run has.
    """
    found, optimizer, setting = (
        collection_state(tables).settings,
        table_optimizer(options),
        options.settings[0],
    )
    own = found.optimizer
    configs = table_configs(rows, setting, options, columns)
    owners = table_owners(configs, ranks)
    mine = [
        _identity(one, number)
        for number, (one, owner) in enumerate(zip(configs, owners, strict=True))
        if owner == rank
    ]
    for name, one, expected in (
        ("configurations", [_identity(one, n) for n, one in enumerate(found.tables)], mine),
        ("cache", found.cache, cache_config(setting, options)),
        ("optimizer", own and (own.kind, own.settings()), (optimizer.kind, optimizer.settings())),
        ("seed", found.seed, options.seed),
        ("rounding", found.rounding, setting.rounding),
        ("bounds", found.bounds, "raise"),
        ("on_nonfinite", found.on_nonfinite, "raise"),
    ):
        if one != expected:
            raise ValueError(f"its {name} are not those of the run")


def _identity(table: mpe.TableConfig, number: int) -> mpe.TableConfig:
    """Return a table with its number, which an unsharded one has by its place."""
    kept = number if table.table_id is None else table.table_id
    return replace(table, table_id=kept, total_rows=None)
