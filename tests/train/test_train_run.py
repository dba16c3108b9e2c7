"""The job from settings to results, on few clicks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from mpembed.train import runner
from mpembed.train.data.options import OptionError
from mpembed.train.model import Perceptrons, make_tables
from mpembed.train.runner import open_dataset, run
from mpembed.train.settings import (
    DEFAULT_SETTINGS,
    OPTIMIZERS,
    Setting,
    TrainOptions,
)

pytestmark = pytest.mark.torch
RESULT = {"config", "versions", "threads", "ranks", "complete", "error", "data", "summary", "runs"}


def options(*settings: str, **values: Any) -> TrainOptions:
    values = {"rows": 1200, "dim": 8, "threads": 1, **values}
    return TrainOptions(tuple(Setting.parse(s) for s in settings), **values)


def train(chosen: TrainOptions) -> dict[str, Any]:
    return run(chosen, open_dataset(chosen), lambda trial, rows: None)


def losses(result: dict[str, Any]) -> list[list[float]]:
    return [
        [point["loss"] for point in r["curve"]] + [r["test"]["log_loss"]] for r in result["runs"]
    ]


@pytest.mark.parametrize(
    ("text", "setting", "name"),
    [
        ("fp32", Setting("fp32"), "fp32"),
        ("int8:0.05", Setting("int8", 0.05), "int8 + 5 %"),
        ("int8_fp16:0.125", Setting("int8_fp16", 0.125), "int8_fp16 + 12.5 %"),
        ("int4:0:nearest", Setting("int4", 0.0, "nearest"), "int4 nearest"),
        ("int4:0:stochastic", Setting("int4", 0.0, "stochastic"), "int4 stochastic"),
        ("int4:.01:paired", Setting("int4", 0.01), "int4 + 1 %"),
        ("fp32:1", Setting("fp32", 1.0), "fp32 + 100 %"),
        ("int4:.007", Setting("int4", 0.007), "int4 + 0.7 %"),
        ("int4:.913", Setting("int4", 0.913), "int4 + 91.3 %"),
    ],
)
def test_settings_are_read(text: str, setting: Setting, name: str) -> None:
    assert Setting.parse(text) == setting
    assert Setting.parse(name) == setting
    assert Setting.parse(setting.text) == setting
    assert setting.name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int7", "no precision 'int7'; known: fp32, "),
        ("", "no precision ''"),
        ("int4:2", "cache '2' is not a number from 0 to 1"),
        ("int4:-0.1", "cache '-0.1'"),
        ("int4:nan", "cache 'nan'"),
        ("int4:", "cache ''"),
        ("int4:5%", "cache '5%'"),
        ("int4:0:up", "rounding 'up' is not nearest or stochastic"),
        ("int4 + five %", "no precision 'int4 + five %'"),
        ("int4 + 500 %", "cache '5.0' is not a number from 0 to 1"),
        ("int4:0:nearest:1", "expected PRECISION"),
    ],
)
def test_bad_settings_are_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError) as error:
        Setting.parse(text)
    assert message in str(error.value)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 0}, "--dim is 0; it must be at least 1"),
        ({"batch_size": 0}, "--batch-size"),
        ({"epochs": 0}, "--epochs"),
        ({"rows": 0}, "--rows"),
        ({"seed": -1}, "--seed"),
        ({"seeds": 0}, "--seeds"),
        ({"min_count": 0}, "--min-count"),
        ({"max_rows": 2}, "--max-rows is 2; it must be at least 3"),
        ({"threads": 0}, "--threads"),
        ({"dim": 2**20 + 1}, "--dim is 1048577; it must be at most 1048576"),
        ({"batch_size": 2**24 + 1}, "--batch-size"),
        ({"rows": 2**63}, "--rows"),
        ({"seed": 2**64}, "--seed is 18446744073709551616; it must be at most"),
        ({"seed": 2**64 - 2, "seeds": 3}, "--seeds is 3; the last seed, 18446744073709551616,"),
        ({"threads": 1025}, "--threads is 1025; it must be at most 1024"),
        ({"lr": 3.5e38}, "--lr is 3.5e+38; it must be above 0 and at most 3.403e+38"),
        ({"lr": 0.0}, "--lr"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"lr": float("inf")}, "--lr is inf"),
        (
            {"optimizer": "adamax"},
            "--optimizer 'adamax' is not one of sgd, adagrad, rowwise-adagrad",
        ),
        ({"policy": "fifo"}, "--policy 'fifo' is not one of lru, lfu"),
    ],
)
def test_bad_options_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as error:
        options("fp32", **values)
    assert message in str(error.value)


def test_options_at_their_limits_are_taken() -> None:
    largest = float(np.finfo(np.float32).max)
    options("fp32", dim=2**20, threads=1024, seed=2**64 - 2, seeds=2, lr=largest)


def test_what_pytorch_cannot_allocate_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = options("fp32")
    dataset = open_dataset(chosen)

    def refuse(message: str) -> Callable[..., None]:
        def make(*_: Any, **__: Any) -> None:
            raise RuntimeError(message)

        return make

    monkeypatch.setattr(runner, "Trial", refuse("you tried to allocate; not enough memory"))
    with pytest.raises(MemoryError):
        run(chosen, dataset, lambda trial, rows: None)
    monkeypatch.setattr(runner, "Trial", refuse("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        run(chosen, dataset, lambda trial, rows: None)


def test_settings_must_differ() -> None:
    with pytest.raises(OptionError, match="'int4 \\+ 5 %' is given twice"):
        options("int4:0.05", "int4:0.050")
    with pytest.raises(OptionError, match="at least one"):
        options()


def linears(net: Perceptrons) -> list[torch.nn.Linear]:
    return [m for m in net.modules() if isinstance(m, torch.nn.Linear)]


def test_perceptrons_start_as_the_reference_script_has_it() -> None:
    layers = linears(Perceptrons(16, seed=3))
    sizes = [tuple(m.weight.shape) for m in layers]
    assert sizes == [(512, 13), (256, 512), (64, 256), (16, 64), (512, 367), (256, 512), (1, 256)]
    assert layers[1].weight.std().item() == pytest.approx((2 / (512 + 256)) ** 0.5, rel=0.02)
    assert layers[1].bias.std().item() == pytest.approx((1 / 256) ** 0.5, rel=0.2)
    torch.testing.assert_close(linears(Perceptrons(16, seed=3))[4].weight, layers[4].weight)
    assert not torch.equal(linears(Perceptrons(16, seed=4))[4].weight, layers[4].weight)


def test_interaction_is_every_pair_of_vectors_once() -> None:
    net = Perceptrons(4, seed=0)
    generator = torch.Generator().manual_seed(1)
    dense, pooled = (torch.randn(3, n, generator=generator) for n in (13, 26 * 4))
    seen: list[torch.Tensor] = []
    linears(net)[4].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(dense, pooled)
    bottom = net.bottom(dense)
    vectors = [bottom, *pooled.view(3, 26, 4).unbind(1)]
    want = [(vectors[i] * vectors[j]).sum(1) for i in range(27) for j in range(i)]
    torch.testing.assert_close(seen[0], torch.cat([bottom, torch.stack(want, 1)], 1))


def test_tables_start_small_for_adagrad_and_by_size_for_sgd() -> None:
    rows = [4, 4000] + [3] * 24
    ids = np.arange(4000)
    small = make_tables(rows, Setting("fp32"), options("fp32"), seed=1)
    assert np.std(small.tables.rows("C2", ids)) == pytest.approx(0.01, rel=0.05)
    by_size = make_tables(rows, Setting("fp32"), options("fp32", optimizer="sgd"), seed=1)
    assert np.abs(by_size.tables.rows("C2", ids)).max() == pytest.approx(4000**-0.5, rel=0.01)


def test_the_same_seed_gives_the_same_losses_and_another_does_not() -> None:
    chosen = options("fp32", "int4:0.05")
    first = losses(train(chosen))
    assert losses(train(chosen)) == first
    other = losses(train(options("fp32", "int4:0.05", seed=1)))
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_a_setting_is_not_touched_by_those_trained_beside_it() -> None:
    together = losses(train(options("fp32", "int4:0.05", "int2")))
    assert losses(train(options("int4:0.05")))[0] == together[1]


def test_with_fp32_tables_the_cache_changes_nothing() -> None:
    plain, cached = losses(train(options("fp32", "fp32:0.1")))
    assert plain == cached


#: Learning rates at which so few steps learn something, other than the default ones.
RATES = {"adam": 0.01, "rowwise-adam": 0.01, "lamb": 0.01, "sgd-momentum": 0.02}


@pytest.mark.pairwise
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_training_learns(optimizer: str, policy: str) -> None:
    more = {"policy": policy, "lr": RATES.get(optimizer), "rows": 5000, "batch_size": 64}
    chosen = options("int8_fp16:0.05", optimizer=optimizer, **more)
    (one,) = train(chosen)["runs"]
    curve = [point["loss"] for point in one["curve"]]
    assert np.mean(curve[-20:]) < np.mean(curve[:5])
    # 0.569 is the entropy of the labels; some of it is learnt, none of it is lost.
    assert one["test"]["log_loss"] < 0.58


def test_epochs_train_again_on_the_training_part_only() -> None:
    result = train(options("fp32", epochs=2))
    assert result["runs"][0]["curve"][-1]["rows"] == 2 * result["data"]["split_ends"]["train"]


def test_online_loss_is_that_of_the_second_half_of_the_first_epoch() -> None:
    # 1,024 training clicks make 8 batches of 128, and as many points of the curve an epoch.
    once, twice = (train(options("fp32", rows=1195, epochs=n))["runs"][0] for n in (1, 2))
    curve = [point["loss"] for point in once["curve"]]
    assert len(curve) == 8
    assert once["online"]["log_loss"] == pytest.approx(np.mean(curve[4:]))
    assert twice["online"] == once["online"]


def test_result_is_complete() -> None:
    result = train(options("fp32", "int4:0.05", seeds=2, max_rows=50))
    json.dumps(result, allow_nan=False)
    assert set(result) == RESULT
    assert [(r["setting"], r["seed"]) for r in result["runs"]] == [
        ("fp32", 0),
        ("int4 + 5 %", 0),
        ("fp32", 1),
        ("int4 + 5 %", 1),
    ]
    assert result["versions"]["torch"] == torch.__version__
    assert max(result["data"]["table_rows"]) == 50
    fp32, int4 = result["summary"]
    per_seed = [r["test"]["log_loss"] for r in result["runs"]]
    percent = np.array([per_seed[1] / per_seed[0] - 1, per_seed[3] / per_seed[2] - 1]) * 100
    assert int4["difference"]["percent"] == pytest.approx(percent.mean())
    assert int4["difference"]["standard_error"] is None  # two seeds are too few
    assert fp32["hit_rate"] is None
    assert 0.0 < int4["hit_rate"] < 1.0
    assert int4["bytes"] < fp32["bytes"]
    assert 0.0 < int4["embedding_ms"] < int4["step_ms"]


def test_default_settings_are_good_and_start_with_the_base() -> None:
    assert [Setting.parse(s).name for s in DEFAULT_SETTINGS] == [
        "fp32",
        "int8 + 5 %",
        "int4 + 5 %",
        "int4 + 1 %",
        "int2 + 5 %",
        "int4 nearest",
    ]
