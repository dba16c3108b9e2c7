"""mpembed's tables as the kernel of TorchRec's sharded collections.

It needs TorchRec and FBGEMM; ``import mpembed.torch`` does not. ``docs/distributed_torchrec.md`` is
its guide.
"""

from mpembed.torch.torchrec._optimizer import MpembedFusedOptimizer
from mpembed.torch.torchrec._settings import TableSettings
from mpembed.torch.torchrec._sharded import (
    ShardedMpembedEmbeddingBagCollection,
    ShardedMpembedEmbeddingCollection,
)
from mpembed.torch.torchrec._sharder import MpembedSequenceSharder, MpembedSharder
from mpembed.torch.torchrec._shards import Shard

__all__ = [
    "MpembedFusedOptimizer",
    "MpembedSequenceSharder",
    "MpembedSharder",
    "Shard",
    "ShardedMpembedEmbeddingBagCollection",
    "ShardedMpembedEmbeddingCollection",
    "TableSettings",
]
