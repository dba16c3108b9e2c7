"""The converted run: mpembed's optimizer for a torch one, and the count of embeddings."""

from __future__ import annotations

from torch import nn

import mpembed as mpe
import mpembed.torch
from mpembed.optim import Optimizer

#: Learning rate of each optimizer where a model's own settings have none.
RATES = {"sgd": 1e-1, "adagrad": 1e-2, "lazy_adam": 1e-3, "adam": 1e-3}
#: Names of the optimizers that originals are trained with; converted ones have mpembed's.
LEARNERS = tuple(RATES)


def count_embeddings(model: object) -> int:
    """Return how many embedding modules a model has; RecBole's decision trees are no modules."""
    if not isinstance(model, nn.Module):
        return 0
    return sum(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in model.modules())


def table_optimizer(learner: str, lr: float, weight_decay: float = 0.0) -> Optimizer:
    """Return mpembed's optimizer of the name and settings of PyTorch's."""
    mode = "l2" if weight_decay else "none"
    kind = {"adagrad": mpe.Adagrad, "sgd": mpe.SGD}.get(learner, mpe.Adam)
    made: Optimizer = kind(lr=lr, weight_decay=weight_decay, weight_decay_mode=mode)
    return made


def convert(model: nn.Module, learner: str, lr: float, weight_decay: float = 0.0) -> None:
    """Replace a model's embeddings by FP32 tables."""
    optimizer = table_optimizer(learner, lr, weight_decay)
    mpembed.torch.convert(model, "fp32", optimizer=optimizer, verbose=False)
