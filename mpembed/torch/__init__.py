"""PyTorch modules on mpembed's tables; ``docs/torch.md`` is their guide.

``import mpembed`` does not import PyTorch; this package does. Import its names from here: modules
with a leading underscore are private.
"""

from mpembed.torch._averaging import AveragedModel
from mpembed.torch._bag import Embedding, EmbeddingBag
from mpembed.torch._collection import EmbeddingBagCollection
from mpembed.torch._convert import convert
from mpembed.torch._convert_report import ConvertWarning
from mpembed.torch._freeze import freeze
from mpembed.torch._keyed import JaggedTensor, KeyedTensor
from mpembed.torch._optimizer import FusedOptimizer
from mpembed.torch._restore import restore
from mpembed.torch._sequence import EmbeddingCollection

__all__ = [
    "AveragedModel",
    "ConvertWarning",
    "Embedding",
    "EmbeddingBag",
    "EmbeddingBagCollection",
    "EmbeddingCollection",
    "FusedOptimizer",
    "JaggedTensor",
    "KeyedTensor",
    "convert",
    "freeze",
    "restore",
]
