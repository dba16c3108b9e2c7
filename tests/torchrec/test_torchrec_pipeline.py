"""A whole model on two ranks: TorchRec's pipeline, quantised communication, dense layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed", exc_type=ImportError)

import ranks
import sharded_clicks
import sharded_models as models
import torch

import mpembed as mpe

pytestmark = [pytest.mark.torch, pytest.mark.torchrec, pytest.mark.filterwarnings("ignore")]
MIXED: dict[str, Any] = {
    "t0": ("rw", {}),
    "t1": ("tw", {"rank": 1}),
    "t2": ("cw", {"ranks": [0, 1]}),
}
CACHED = {"precision": "int4", "cache": mpe.CacheConfig(load_factor=0.1, ways=8)}


def test_the_pipeline_has_the_bytes_of_the_plain_loop(tmp_path: Path) -> None:
    batches = [models.batch(seed, 16) for seed in range(6)]

    def trained(pipelined: bool) -> list[Any]:
        arguments = MIXED, CACHED, batches, pipelined
        return ranks.succeed(ranks.run(sharded_clicks.train, 2, tmp_path, *arguments))

    for (losses, held, dense), (expected, same, plain) in zip(
        trained(True), trained(False), strict=True
    ):
        assert losses == expected
        assert len(held) == len(same) > 0
        assert all(models.same_bytes(a, b) for a, b in zip(held, same, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(dense, plain, strict=True))


def test_the_model_learns_in_int4(tmp_path: Path) -> None:
    arguments = MIXED, CACHED, None
    for losses in ranks.succeed(ranks.run(sharded_clicks.learn, 2, tmp_path, *arguments)):
        assert sum(losses[-4:]) < 0.5 * sum(losses[:4])


@pytest.mark.parametrize("plan", ["tw", "rw"])
def test_it_learns_with_quantised_communication(plan: str, tmp_path: Path) -> None:
    chosen = models.table_wise(2) if plan == "tw" else models.row_wise()
    arguments = chosen, CACHED, "BF16"  # which TorchRec makes FP16 on gloo
    for losses in ranks.succeed(ranks.run(sharded_clicks.learn, 2, tmp_path, *arguments)):
        assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
