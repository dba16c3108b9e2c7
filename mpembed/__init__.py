"""Mixed-precision embedding tables with an FP32 cache; see ``docs/`` and the README."""

import os as _os

from mpembed import _core, ops, registry
from mpembed._tensor import Tensor
from mpembed._version import __version__
from mpembed.collection import EmbeddingBagCollection
from mpembed.config import CacheConfig, TableConfig
from mpembed.devices import to_device
from mpembed.errors import NonFiniteUpdateError
from mpembed.info import get_num_threads, info, set_num_threads
from mpembed.optim import SGD, Adagrad, RowwiseAdagrad
from mpembed.tickets import Ticket

STATS = registry.STATS

if not _core.threads_variable_valid():
    raise ValueError(
        f"MPEMBED_NUM_THREADS must be an integer in 1 .. 1024, got "
        f"{_os.environ.get('MPEMBED_NUM_THREADS')!r}"
    )
# As with the threads, an empty variable is an unset one.
if _os.environ.get("MPEMBED_ISA", "") not in ("", "base", "avx2", "avx512"):
    raise ValueError(
        f"MPEMBED_ISA must be base, avx2 or avx512, got {_os.environ.get('MPEMBED_ISA')!r}"
    )

__all__ = [
    "SGD",
    "STATS",
    "Adagrad",
    "CacheConfig",
    "EmbeddingBagCollection",
    "NonFiniteUpdateError",
    "RowwiseAdagrad",
    "TableConfig",
    "Tensor",
    "Ticket",
    "__version__",
    "get_num_threads",
    "info",
    "ops",
    "registry",
    "set_num_threads",
    "to_device",
]
