"""mpembed.torch beside other processes: DataLoader workers, copies in others."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from programs import finish, start

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
        options = {"precision": "int4", "cache": cache, "seed": 0}
        return mt.EmbeddingBag(50, 6, optimizer=mpe.SGD(0.1), **options)

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


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.exhaustive)])
def test_workers_of_a_data_loader_bring_batches(method: str, tmp_path: Path) -> None:
    finish(start(tmp_path, WORKERS, method))


def test_a_module_that_is_sent_to_another_process_trains_there_alike(tmp_path: Path) -> None:
    finish(start(tmp_path, THERE))
