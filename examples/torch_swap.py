"""Train a next-item model with PyTorch's table and with one of mpembed's.

    python examples/torch_swap.py [PRECISION]

The model and the training loop are the same. What differs is one line, `mpembed.torch.convert`, and
the optimizer of the table, `mpembed.torch.FusedOptimizer`.
"""

import math
import sys

import torch
from torch import nn

import mpembed as mpe
import mpembed.torch

ITEMS, DIM, GROUPS = 500, 32, 10
LR = 0.01


class NextItem(nn.Module):
    """Scores of all items after a sequence of them; item 0 fills up short sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, DIM, padding_idx=0)
        self.net = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, DIM))
        nn.init.normal_(self.items.weight, std=0.1)

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, ITEMS) of sequences (B, n)."""
        seen = (sequences != 0).unsqueeze(2)
        user = (self.items(sequences) * seen).sum(1) / seen.sum(1).clamp(min=1)
        scores: torch.Tensor = self.net(user) @ self.items.weight.T
        return scores


def batch(generator: torch.Generator, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sequences and the items that follow: users stay in one group of the items."""
    group = torch.randint(GROUPS, (size, 1), generator=generator)
    chosen = torch.randint(ITEMS // GROUPS - 1, (size, 9), generator=generator)
    items = 1 + group + GROUPS * chosen
    missing = torch.randint(1, 9, (size, 1), generator=generator)
    sequences = torch.where(torch.arange(8) < missing, items[:, :8], 0)
    return sequences, items[:, 8]


def train(model: NextItem, optimizers: list[torch.optim.Optimizer], steps: int = 200) -> float:
    """Train; return the mean loss of the last steps."""
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        sequences, following = batch(generator)
        loss = nn.functional.cross_entropy(model(sequences), following)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20


def main(precision: str = "int8") -> dict[str, float]:
    """Train both, print their losses, and return them."""
    torch.manual_seed(0)
    model = NextItem()
    losses = {"torch": train(model, [torch.optim.Adam(model.parameters(), lr=LR)])}

    torch.manual_seed(0)
    model = NextItem()
    adam = mpe.Adam(lr=LR, state_precision="bf16")
    mpembed.torch.convert(model, precision=precision, optimizer=adam)
    fused = mpembed.torch.FusedOptimizer(model)
    losses["mpembed"] = train(model, [fused, torch.optim.Adam(model.net.parameters(), lr=LR)])

    for name, loss in losses.items():
        print(f"{name:8} loss {loss:.4f}; a guess has {math.log(ITEMS):.4f}")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
