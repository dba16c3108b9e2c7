"""Learning rates through TorchRec's optimizers and PyTorch's schedulers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed", exc_type=ImportError)

import ranks
import sharded_models as models
import sharded_rates
import sharded_training as training

import mpembed as mpe
from mpembed.torch.torchrec import TableSettings

pytestmark = [pytest.mark.torch, pytest.mark.torchrec, pytest.mark.filterwarnings("ignore")]
INT8 = {"precision": "int8"}


@pytest.mark.parametrize("how", ["scheduler", "combined", "by hand", "warmup"])
def test_a_rate_that_halves_has_the_bytes_of_one_process(how: str, tmp_path: Path) -> None:
    batches = [models.batch(seed, 8) for seed in range(4)]
    arguments: Any = (models.table_wise(2), INT8, batches, how)
    results = ranks.succeed(ranks.run(sharded_rates.train, 2, tmp_path, *arguments))
    alone = models.unsharded(models.TABLES, training.optimizers()["adagrad"], "int8")
    for one in batches:
        models.train_alone(alone, [one], 0.5)
        assert alone.tables.optimizer is not None
        alone.tables.optimizer.lr *= 0.5
    for table in models.TABLES:
        own = models.joined([held for held, _ in results], table.name)
        assert models.same_bytes(own, models.held(table.name, alone.tables, table.name))
    for _, rates in results:
        assert rates == [[0.1 * 0.5**step] for step in range(4)]


def test_each_optimizer_is_a_group_and_rates_are_saved(tmp_path: Path) -> None:
    tables = {
        "t0": TableSettings(lr=0.5),
        "t1": TableSettings(optimizer=mpe.Adam(lr=0.02)),
        "t2": TableSettings(trainable=False),
    }
    plan = {"t0": ("cw", {"ranks": [0, 0]}), "t1": ("rw", {}), "t2": ("rw", {})}
    arguments: Any = (plan, {"tables": tables})
    first, second = ranks.succeed(ranks.run(sharded_rates.describe, 2, tmp_path, *arguments))
    groups, keys, state, text, again = first
    assert sorted(groups) == [(0.02, ["t1"]), (0.5, ["t0"])]
    assert keys == ["embedding_bags.t0.weight", "embedding_bags.t1.weight"]
    rates = {key: float(one["lr"]) for key, one in state.items()}
    assert rates == {"embedding_bags.t0.weight": 0.5, "embedding_bags.t1.weight": 0.02}
    assert "MpembedFusedOptimizer" in text
    assert again == groups
    assert second[0] == [(0.02, ["t1"])]
