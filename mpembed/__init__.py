"""Mixed-precision embedding tables with an FP32 cache; see ``docs/`` and the README."""

import os as _os
from importlib.util import find_spec as _find_spec

# Compiled modules are found or not by one that has no folder of sources beside it.
if _find_spec("mpembed._bindings.memory") is None:
    raise ImportError(
        f"{__path__[0]} holds mpembed's source and no compiled modules: run Python in "
        "another folder to import the installed package, or build in place (CONTRIBUTING.md)"
    )
from mpembed import ops, registry
from mpembed._bindings import contract as _contract
from mpembed._bindings import kernels as _kernels
from mpembed._bindings.tensor import Tensor
from mpembed._checkpoint.background import BackgroundSave
from mpembed.collection import EmbeddingBagCollection
from mpembed.config import CacheConfig, TableConfig
from mpembed.devices import to_device
from mpembed.errors import NonFiniteUpdateError
from mpembed.info import get_num_threads, info, set_num_threads
from mpembed.optim import SGD, Adagrad, Adam, Ftrl, Lamb, RowwiseAdagrad, RowwiseAdam
from mpembed.paths import get_cmake_dir, get_include, get_pkgconfig_dir
from mpembed.tickets import Ticket
from mpembed.version import __version__

STATS = registry.STATS

_invalid = _kernels.invalid_variable()
if _invalid is not None:
    _known = {
        "MPEMBED_NUM_THREADS": f"an integer in 1 .. {_contract.MAX_THREADS}",
        "MPEMBED_ISA": "base, avx2 or avx512",
    }
    raise ValueError(f"{_invalid} must be {_known[_invalid]}, got {_os.environ.get(_invalid)!r}")

__all__ = [
    "SGD",
    "STATS",
    "Adagrad",
    "Adam",
    "BackgroundSave",
    "CacheConfig",
    "EmbeddingBagCollection",
    "Ftrl",
    "Lamb",
    "NonFiniteUpdateError",
    "RowwiseAdagrad",
    "RowwiseAdam",
    "TableConfig",
    "Tensor",
    "Ticket",
    "__version__",
    "get_cmake_dir",
    "get_include",
    "get_num_threads",
    "get_pkgconfig_dir",
    "info",
    "ops",
    "registry",
    "set_num_threads",
    "to_device",
]
