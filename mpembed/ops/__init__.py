"""Stateless kernels on any DLPack tensor in CPU memory or on a CUDA device.

A call runs where its first array lies, and all others must lie there too. Inputs are read in place
and must be C-contiguous. Results are NumPy arrays on the CPU and `mpembed.Tensor` on a device, or
`out`, which may be any writable DLPack tensor and is returned. What is written shares no memory
with what is read. `stream` is as in `EmbeddingBagCollection`, and must be None on the CPU.
Rounding and layouts: ``docs/numerics.md``.
"""

from mpembed.ops.convert import (
    dequantize,
    pack_int2,
    pack_int4,
    quantize,
    stochastic_round,
    unpack_int2,
    unpack_int4,
)
from mpembed.ops.lookup import cache_lookup, embedding_bag, unique_rows
from mpembed.ops.sparse import (
    adagrad_,
    adam_,
    ftrl_,
    lamb_,
    rowwise_adagrad_,
    rowwise_adam_,
    sgd_,
)

__all__ = [
    "adagrad_",
    "adam_",
    "cache_lookup",
    "dequantize",
    "embedding_bag",
    "ftrl_",
    "lamb_",
    "pack_int2",
    "pack_int4",
    "quantize",
    "rowwise_adagrad_",
    "rowwise_adam_",
    "sgd_",
    "stochastic_round",
    "unique_rows",
    "unpack_int2",
    "unpack_int4",
]
