"""A model that convert takes, which its tests share."""

from __future__ import annotations

import torch
from torch import nn


class Model(nn.Module):
    """Two embeddings and bags, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Embedding(300, 16)
        self.bags = nn.ModuleList([nn.EmbeddingBag(2000, 16, mode=m) for m in ("sum", "mean")])
        self.again = self.bags[0]
        self.dense = nn.Linear(64, 1)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        parts = [self.words(indices).sum(1), *(bag(indices) for bag in self.bags)]
        result: torch.Tensor = self.dense(torch.cat([*parts, self.again(indices + 7)], 1))
        return result
