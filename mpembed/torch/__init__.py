"""PyTorch modules on mpembed's tables; ``docs/torch.md`` is their guide.

``import mpembed`` does not import PyTorch; this package does. Import its names from here: modules
with a leading underscore are private.
"""

from mpembed.torch._bag import Embedding, EmbeddingBag
from mpembed.torch._collection import EmbeddingBagCollection
from mpembed.torch._convert import convert
from mpembed.torch._keyed import KeyedTensor
from mpembed.torch._optimizer import FusedOptimizer

__all__ = [
    "Embedding",
    "EmbeddingBag",
    "EmbeddingBagCollection",
    "FusedOptimizer",
    "KeyedTensor",
    "convert",
]
