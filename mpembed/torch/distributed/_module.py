"""The module: tables sharded over a process group, called like one that has them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from mpembed.collection import EmbeddingBagCollection, collection_state
from mpembed.config import TableConfig
from mpembed.optim import Optimizer
from mpembed.torch._feature_order import FeatureLayout
from mpembed.torch._options import Options, drawn_seed, make_collection
from mpembed.torch._outside_graphs import outside_graphs
from mpembed.torch._pooled_call import PooledCall
from mpembed.torch._poolings import refuse_unpooled
from mpembed.torch.distributed._call import ShardedCall, index_dtype
from mpembed.torch.distributed._plan import Plan, shard_tables
from mpembed.torch.distributed._ranks import Header, Ranks


class DistributedEmbeddingBagCollection(nn.Module):
    """Pooled tables whose rows are shared out over the ranks of a process group.

    Each rank calls the module with its own batch and gets the output of that batch. The backward
    gives the gradients to the ranks of the rows, each of which makes one fused update from the
    batches of all.

    Parameters
    ----------
    tables : sequence of mpembed.TableConfig
        The whole tables, with pooling ``"sum"`` or ``"mean"``.
    plan : mapping of table name -> TableWise or RowWise
        Where their rows are.
    optimizer, feature_names, is_weighted
        As in ``mpembed.torch.EmbeddingBagCollection``.
    average_gradients : bool
        True divides gradients by the number of ranks, as ``DistributedDataParallel`` does: for a
        loss that is the mean over the batch of its rank. False adds them up: for a loss that is
        already divided by the size of the batch of all ranks.
    process_group : torch.distributed.ProcessGroup, optional
        By default the one of all processes.
    **options
        `cache`, `device`, `seed`, `rounding`, `bounds` and `on_nonfinite` as in
        ``mpembed.EmbeddingBagCollection``. A cache belongs to one rank. Without a `seed`, the
        first rank draws one.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, on that rank; RuntimeError on the others, and on all where their
        arguments are not the same.

    Notes
    -----
    Every rank must make the same calls in the same order. Batches may differ in size and may be
    empty. The module has no parameters: set rates on every rank, by ``local.optimizer.lr``. One
    backward is one update. A NonFiniteUpdateError is raised on the ranks of the rows, after all
    ranks have updated the others.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        plan: Plan,
        *,
        optimizer: Optimizer | None = None,
        feature_names: Mapping[str, Sequence[str]] | None = None,
        is_weighted: bool = False,
        average_gradients: bool = True,
        process_group: Any = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        self._ranks = ranks = Ranks(process_group)
        self._is_weighted, self._average = is_weighted, average_gradients
        own = {k: v for k, v in options.items() if k not in ("device", "seed")}

        def check() -> tuple[dict[str, str], int]:
            self._sharded = shard_tables(tables, plan, ranks.size)
            refuse_unpooled(tables)
            self._layout = FeatureLayout(tables, feature_names)
            settings = {
                "names of tables": [table.config.name for table in self._sharded],
                **{f"table {table.config.name!r}": table for table in self._sharded},
                "optimizer": optimizer,
                "feature_names": feature_names,
                "is_weighted": is_weighted,
                "average_gradients": average_gradients,
                **own,
                "seed": options.get("seed"),
            }
            texts = {name: repr(value) for name, value in settings.items()}
            return texts, options.get("seed", drawn_seed())

        told = ranks.together("the arguments of DistributedEmbeddingBagCollection", check)
        _refuse_differences([texts for texts, _ in told])

        def make() -> None:
            here = [t for t in self._sharded if ranks.rank in t.ranks] or self._sharded[:1]
            shards = [table.shard(ranks.rank) for table in here]
            seeded: Options = {**options, "seed": told[0][1]}
            self._local, others = make_collection(shards, optimizer, seeded)
            if others:
                raise TypeError(
                    f"not supported by sharded tables: {', '.join(others)}; leave them out, and "
                    "convert or clip outside of the module"
                )

        ranks.together("the options of DistributedEmbeddingBagCollection", make)
        ranks.device = torch.device(self.local.device)
        self._forwards = 0

    @property
    def local(self) -> EmbeddingBagCollection:
        """The shards of this rank: learning rates, statistics, memory.

        Each rank saves its shard to a file of its own by ``local.save(path)``. To continue, assign
        ``EmbeddingBagCollection.load(path)``, under the same plan with as many ranks. A rank
        without tables has an empty one.
        """
        return self._local

    @local.setter
    def local(self, collection: EmbeddingBagCollection) -> None:
        found, expected = _described(collection), _described(self._local)
        for name, value in expected.items():
            if found[name] != value:
                raise ValueError(
                    f"local must be this rank's shards, whose {name} is {value}, got "
                    f"{found[name]}: load the file that this rank saved, without changes, under "
                    "the same plan with as many ranks"
                )
        self._local = collection

    @property
    def tables(self) -> list[TableConfig]:
        """The whole tables."""
        return [table.config for table in self._sharded]

    def is_weighted(self) -> bool:
        """Return whether the weights of the features are used."""
        return self._is_weighted

    @outside_graphs("mpembed's sharded tables")
    def forward(
        self,
        features: Any,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Any:
        """Look up and pool the batch of this rank; every rank must call it.

        Parameters
        ----------
        features, offsets, per_sample_weights
            As in ``mpembed.torch.EmbeddingBagCollection.forward``. Weights with a gradient are
            refused.

        Returns
        -------
        KeyedTensor or Tensor (B, sum of D)
            As there, of this rank's batch.

        Raises
        ------
        TypeError, ValueError, KeyError, IndexError
            If the batch of this rank is wrong. The other ranks get a RuntimeError that says why.
            No rank has changed anything.
        RuntimeError
            Also on all ranks, if they do not make the same call.
        """
        training = self.training and torch.is_grad_enabled()
        divisor = self._ranks.size if self._average else 1
        where = self._sharded, self._ranks, self.local
        call = ShardedCall(*where, self._forwards, divisor, training=training)
        looked_up = PooledCall(
            self.tables, self._layout, call.drops, call.look_up, is_weighted=self._is_weighted
        )
        with call.refused_by_all():
            result = looked_up(features, offsets, per_sample_weights)
        self._forwards += 1
        return result

    def wire_bytes(
        self,
        batch_size: int,
        mean_lengths: float | Mapping[str, float] = 1.0,
        *,
        weighted: bool = False,
    ) -> float:
        """Return about how many bytes this rank sends to others in a training step.

        Parameters
        ----------
        batch_size : int
            Bags a table on each rank, alike.
        mean_lengths : float or mapping of table name -> float
            Mean number of indices of a bag, spread evenly over the rows.
        weighted : bool
            With per-sample weights.
        """
        each: Any = mean_lengths
        if not isinstance(each, Mapping):
            each = {table.name: mean_lengths for table in self.tables}
        rank, size = self._ranks.rank, self._ranks.size
        index_bytes = index_dtype(self._sharded).itemsize
        parts = (
            t.wire_bytes(
                rank, size, batch_size, each[t.config.name], index_bytes, weighted=weighted
            )
            for t in self._sharded
        )
        return sum(parts, 2.0 * 8 * len(Header(0, 0)) * (size - 1))


def _refuse_differences(told: Sequence[Mapping[str, str]]) -> None:
    """Raise ValueError for the first argument that some rank has otherwise than rank 0."""
    for rank, texts in enumerate(told):
        for name in [*told[0], *texts]:
            own, first = (one.get(name, "the default") for one in (texts, told[0]))
            if own != first:
                raise ValueError(
                    f"all ranks must pass the same arguments, but {name} is {own} on rank {rank} "
                    f"and {first} on rank 0"
                )


def _described(collection: EmbeddingBagCollection) -> dict[str, Any]:
    """Return what all ranks must agree on, and what a shard is."""
    settings = collection_state(collection).settings
    return {
        "tables": [
            (t.name, t.num_embeddings, t.embedding_dim, t.first_row, t.pooling, t.precision)
            for t in collection.tables
        ],
        "optimizers": [
            None if one is None else (one.kind, one.states) for one in settings.optimizers
        ],
        "bounds": settings.bounds,
        "on_nonfinite": settings.on_nonfinite,
        "device": collection.device,
    }
