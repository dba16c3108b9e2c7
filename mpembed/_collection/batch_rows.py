"""Which rows a batch asks for: counted only where a bound by its size would make a call wait."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mpembed._bindings import kernels
from mpembed._bindings.device import Stream
from mpembed._bindings.kernels import Batch
from mpembed.config import TableConfig

#: Row numbers, each once and ascending, by the name of a table's memory.
BatchRows = Mapping[str, npt.NDArray[np.int64]]


def batch_rows(configs: Sequence[TableConfig], batch: Batch, on: Stream) -> BatchRows:
    """Return the rows of a batch whose offsets were checked; indices out of range are left out."""
    indices = np.asarray(kernels.host_copy(batch.indices, on))
    offsets = np.asarray(kernels.host_copy(batch.offsets, on))
    ends = offsets[:: batch.batch_size] if batch.batch_size else np.zeros(len(configs) + 1, int)
    found = {}
    for number, config in enumerate(configs):
        own = indices[ends[number] : ends[number + 1]]
        own = own[(own >= 0) & (own < config.num_embeddings)]
        found[f"table.{config.name}"] = np.unique(own).astype(np.int64, copy=False)
    return found


def together(each: Sequence[BatchRows]) -> BatchRows:
    """Return the rows that several batches ask for."""
    names = each[0] if each else ()
    return {name: np.unique(np.concatenate([one[name] for one in each])) for name in names}
