"""Tables sharded over the processes of ``torch.distributed``; ``docs/distributed_plain.md``.

For programs that have PyTorch alone. Import its names from here: modules with a leading underscore
are private.
"""

from mpembed.torch.distributed._module import DistributedEmbeddingBagCollection
from mpembed.torch.distributed._plan import RowWise, TableWise

__all__ = ["DistributedEmbeddingBagCollection", "RowWise", "TableWise"]
