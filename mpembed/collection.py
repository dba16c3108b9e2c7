"""The mixed-precision cached embedding: several tables, one fused training step."""

import os
from collections.abc import Mapping, Sequence

from mpembed import registry
from mpembed._checkpoint import applying
from mpembed._checkpoint.changes import AS_SAVED, AsSaved, Changes
from mpembed._checkpoint.checkpoint_calls import CheckpointCalls
from mpembed._collection.base import collection_state as collection_state
from mpembed._collection.base import start
from mpembed._collection.report_calls import ReportCalls
from mpembed._collection.row_calls import RowCalls
from mpembed._collection.settings import Settings
from mpembed._collection.state import CollectionState
from mpembed._collection.training_calls import TrainingCalls
from mpembed.config import CacheConfig, TableConfig
from mpembed.devices import CudaDevice, TorchDevice
from mpembed.optim import Optimizer


class EmbeddingBagCollection(TrainingCalls, RowCalls, ReportCalls, CheckpointCalls):
    """Embedding tables in low precision with an FP32 cache, trained by fused optimizers.

    Parameters
    ----------
    tables : sequence of TableConfig
        Names are unique; dimensions, precisions and poolings may differ.
    cache : CacheConfig, optional
        One cache for each group of tables with the same dimension and kind of optimizer. None: no
        cache, every row is trained in its table.
    optimizer : Optimizer, optional
        Such as `RowwiseAdagrad`; its `lr` may change at every step. None where every table has one
        of its own or is frozen.
    device : str or object with ``device_id``
        ``"cpu"``, ``"cuda"``, ``"cuda:N"``, a ``cuda.core.Device`` or a ``torch.device``. Every
        array passed to a call must be there.
    seed : int
        0 <= seed < 2^64. All random bits, of initial rows and of rounding, come from it.
    rounding : str
        How rows and states are rounded into their formats. ``"stochastic"``: independently at each
        write. ``"paired"``: the same for a single write, but the errors of a row's writes, two at
        a time, mostly cancel; in formats without a header, and for states, as ``"stochastic"``.
        ``"nearest"``: to the closest value, ties to even.
    bounds : str
        What happens to an index that is out of range. ``"raise"``: IndexError, and nothing of the
        batch is applied. ``"drop"``: it contributes zero, is not trained, and is counted.
    on_nonfinite : str
        A row whose update would not be finite, or that its format could not store, keeps its
        value and is counted. ``"raise"`` then raises NonFiniteUpdateError after all other rows
        have been updated; ``"skip"`` does not.

    Notes
    -----
    The same calls give the same bytes for every number of threads and every SIMD level;
    ``docs/numerics.md`` defines every bit. Calls from several threads run one after the other.

    On a device:

    - A call returns when its work is queued on `stream`. None is the legacy default stream. An int
      is a stream's handle; that stream must outlive the collection's last call. Any other object
      has ``__cuda_stream__`` and is kept as long as needed.
    - Calls on different streams run in the order in which they were made. Arguments may be changed
      or freed in the order of the call's stream.
    - Wrong offsets, indices or updates are found later. Such a batch changes nothing but the step,
      the count of updates and the cache's clock. `check`, or the next call that waits for the
      device (`stats`, `rounding_report`, `rows`, `set_rows`, `state`, `set_state`, `flush`,
      `export`, `save`), raises the error.
    - Calls on a stream that is being captured become part of its CUDA graph; ``docs/guide.md``
      lists the calls that can be captured.
    """

    __slots__ = ()

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        optimizer: Optimizer | None = None,
        cache: CacheConfig | None = None,
        device: str | CudaDevice | TorchDevice = "cpu",
        seed: int = 0,
        rounding: str = registry.DEFAULT_ROUNDING,
        bounds: str = "raise",
        on_nonfinite: str = "raise",
    ) -> None:
        state = CollectionState(
            Settings.checked(tables, cache, optimizer, device, seed, rounding, bounds, on_nonfinite)
        )
        state.draw_initial_rows()
        start(self, state)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: str | CudaDevice | TorchDevice | None = None,
        *,
        deltas: Sequence[str | os.PathLike[str]] = (),
        cache: CacheConfig | AsSaved | None = AS_SAVED,
        precision: str | Mapping[str, str] | None = None,
        rounding: str | None = None,
        optimizer: Optimizer | Mapping[str, Optimizer] | None = None,
        bounds: str | None = None,
        on_nonfinite: str | None = None,
        num_embeddings: Mapping[str, int] | None = None,
    ) -> "EmbeddingBagCollection":
        """Return a collection as it was saved, or with other settings.

        Without any it continues bit for bit; batches that were open when it was saved are not part
        of it. With other settings it keeps bit for bit what fits them, the rest is converted or
        starts anew, and `load_report` says which; ``docs/checkpoints.md`` has the rules.

        Parameters
        ----------
        path : path-like
            A file that `save` wrote, on any device, also of an earlier version.
        device : str or object with ``device_id``, optional
            Where to put the collection; by default the device it was saved on. On the CPU, tables
            with ``placement="host"`` become ordinary ones.
        deltas : sequence of path-like
            Files that `save` wrote with `since`, to be applied in this order. Each continues the
            one before it, the first one `path`.
        cache : CacheConfig or None, optional
            Another cache, or None for none.
        precision : str or dict of table name -> str, optional
            Of all tables or of some.
        rounding, bounds, on_nonfinite : str, optional
            As in the class.
        optimizer : Optimizer or dict of table name -> Optimizer, optional
            The collection's, for tables that have none of their own; or some tables' own. A table
            keeps its states if the old optimizer has all of the new one's, by name and shape.
        num_embeddings : dict of table name -> int, optional
            Rows of some tables, more or fewer. New rows are those of a new collection.

        Raises
        ------
        OSError, ValueError
            If a file cannot be read, is not a checkpoint, or does not continue the one before it.
        TypeError, ValueError
            If a setting is not valid, names no table of the checkpoint, or has no room for a
            value, such as a large row in ``"fp16"``; or with settings and `deltas` at once.
        """
        changes = Changes(
            cache, precision, rounding, optimizer, bounds, on_nonfinite, num_embeddings
        )
        return from_state(applying.load(path, device, deltas, changes))


def from_state(state: CollectionState) -> EmbeddingBagCollection:
    """Return the collection of a state, which it uses and does not copy."""
    made = EmbeddingBagCollection.__new__(EmbeddingBagCollection)
    start(made, state)
    return made
