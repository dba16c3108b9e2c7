"""mpembed.torch beside other processes: DataLoader workers, copies in others, DDP."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.torch


WORKERS = """
    import sys
    import torch
    from torch.utils.data import DataLoader, Dataset
    import mpembed as mpe
    from mpembed import torch as mt

    class Batches(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, number):
            return torch.arange(number, number + 12).view(3, 4)

    def bag():
        cache = mpe.CacheConfig(num_sets=1, ways=8)
        return mt.EmbeddingBag(50, 6, precision="int4", cache=cache, optimizer=mpe.SGD(0.1))

    def train(module, batches):
        losses = []
        for indices in batches:
            loss = module(indices).square().sum()
            loss.backward()
            losses.append(loss.item())
        return losses

    if __name__ == "__main__":
        module, plain, dataset = bag(), bag(), Batches()
        # So that there are threads to be forked.
        train(module, [dataset[i] for i in range(6)])
        train(plain, [dataset[i] for i in range(6)])
        loader = DataLoader(
            Batches(), batch_size=None, num_workers=2, multiprocessing_context=sys.argv[1]
        )
        assert train(module, loader) == train(plain, [dataset[i] for i in range(6)])
        ids = torch.arange(50)
        assert (module.tables.rows("table", ids) == plain.tables.rows("table", ids)).all()
        print("trained")
"""

THERE = """
    import multiprocessing
    import torch
    import mpembed as mpe
    from mpembed import torch as mt

    def train(module):
        losses = []
        for number in range(4):
            loss = module(torch.arange(number, number + 12).view(3, 4)).square().sum()
            loss.backward()
            losses.append(loss.item())
        return losses

    def there(module, connection):
        connection.send((train(module), module.tables.rows("table", torch.arange(50))))

    if __name__ == "__main__":
        cache = mpe.CacheConfig(num_sets=1, ways=8)
        module = mt.EmbeddingBag(50, 6, precision="int4", cache=cache, optimizer=mpe.SGD(0.1))
        train(module)
        context = multiprocessing.get_context("spawn")
        here, other = context.Pipe()
        process = context.Process(target=there, args=(module, other))
        process.start()
        other.close()
        losses, rows = here.recv()
        process.join()
        assert process.exitcode == 0
        assert train(module) == losses
        assert (module.tables.rows("table", torch.arange(50)) == rows).all()
        print("trained")
"""


# Python 3.12 and later warn of it where there are threads.
FORK = "ignore::DeprecationWarning:multiprocessing.popen_fork"


def start(folder: Path, script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a program, in a process where modules of its own can be found again."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(script))
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-W", FORK, str(path), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert out.splitlines()[-1] == "trained"


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.exhaustive)])
def test_workers_of_a_data_loader_bring_batches(method: str, tmp_path: Path) -> None:
    finish(start(tmp_path, WORKERS, method))


def test_a_module_that_is_sent_to_another_process_trains_there_alike(tmp_path: Path) -> None:
    finish(start(tmp_path, THERE))


DDP = """
    import sys
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    import mpembed as mpe
    from mpembed import torch as mt

    rank, store = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = mt.EmbeddingBag(50, 6, mode="sum", optimizer=mpe.SGD(0.1))
            self.linear = torch.nn.Linear(6, 1)

        def forward(self, indices):
            return self.linear(self.bag(indices))

    model = DistributedDataParallel(Model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    assert len(list(model.parameters())) == 2
    for step in range(4):
        loss = model(torch.tensor([[1, 2], [3 + rank, 4 + rank]])).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight = model.module.linear.weight.detach()
    others = [torch.empty_like(weight) for _ in range(2)]
    dist.all_gather(others, weight)
    assert torch.equal(*others), others
    assert model.module.bag.tables.step == 8
    dist.destroy_process_group()
    print("trained")
"""


def test_ddp_synchronises_what_is_dense_and_nothing_else(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    processes = [start(tmp_path, DDP, str(rank), store) for rank in range(2)]
    for process in processes:
        finish(process)
