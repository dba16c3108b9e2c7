"""Train a model with low-precision tables, and serve it in a process that has no mpembed.

    python examples/torch_serve.py [FOLDER]

The first process trains, freezes the tables and saves a program of PyTorch's own operators. The
second one, which this file starts, loads that program with PyTorch alone.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

ITEMS, DIM = 2000, 16
VISITS = [[17, 42, 99], [1234, 5, 5]]  # what two users looked at


class Clicks(nn.Module):
    """How much a user, known by the items that were looked at, likes a group of items."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.EmbeddingBag(ITEMS, DIM, mode="mean")
        self.net = nn.Sequential(nn.Linear(DIM, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, visits: torch.Tensor) -> torch.Tensor:
        """Return the log odds (B, 3) of visits (B, n)."""
        log_odds: torch.Tensor = self.net(self.items(visits))
        return log_odds


def train(steps: int = 100) -> nn.Module:
    """Return a model that tells the thirds of the items apart, its table in INT4."""
    import mpembed as mpe
    import mpembed.torch

    torch.manual_seed(0)
    model = Clicks()
    mpembed.torch.convert(
        model,
        precision="int4",
        cache=mpe.CacheConfig(load_factor=0.05),
        optimizer=mpe.RowwiseAdagrad(lr=0.02),
    )
    optimizer = torch.optim.Adam(model.net.parameters(), lr=0.01)
    for step in range(steps):
        group = torch.randint(3, (64,))
        visits = torch.randint(ITEMS // 3, (64, 8)) + group.unsqueeze(1) * (ITEMS // 3)
        loss = nn.functional.cross_entropy(model(visits), group)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step:3}: loss {loss.item():.4f}")
    return model


def save(model: nn.Module, path: Path) -> torch.Tensor:
    """Save a program without mpembed; return what the frozen model says of the visits."""
    import mpembed.torch

    frozen = mpembed.torch.freeze(model, operators="torch")
    any_size = {0: torch.export.Dim("users", min=0), 1: torch.export.Dim("visits", min=1)}
    example = torch.tensor(VISITS)
    program = torch.export.export(frozen, (example,), dynamic_shapes=(any_size,))
    torch.export.save(program, path)
    log_odds: torch.Tensor = frozen(example)
    return log_odds.detach()


def serve(path: Path) -> None:
    """Load the program; print the answers and whether mpembed was there, as JSON."""
    program = torch.export.load(path).module()
    with torch.inference_mode():
        one_by_one = [program(torch.tensor([visits]))[0].tolist() for visits in VISITS]
    print(json.dumps({"log_odds": one_by_one, "mpembed": "mpembed" in sys.modules}))


def main(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Train, save and serve; return the answers of the frozen model and of the server."""
    path = folder / "clicks.pt2"
    here = save(train(), path)
    print(f"the program has {path.stat().st_size:,} bytes, FP32 rows {ITEMS * DIM * 4:,}")
    server = subprocess.run(
        [sys.executable, __file__, "serve", path], stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(server.stdout)
    there = torch.tensor(found["log_odds"])
    difference = (there - here).abs().max().item()
    print(f"mpembed in the server: {found['mpembed']}; largest difference {difference:.1e}")
    return here, there


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]))
    elif sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
