"""``mpembed train`` on several ranks, started by the tests' own launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import last_threads
import numpy as np
import ranks
import train_programs
from programs import torchrun

from mpembed.config import TableConfig
from mpembed.train.distributed import ALONE, Ranks
from mpembed.train.tables import table_owners

pytestmark = pytest.mark.torch
SETTINGS = ["fp32", "int4:0.05"]
#: Relative, of each loss: gradients are summed in another order, and the first steps of Adam, for
#: the perceptrons, and of Adagrad are as long for tiny gradients as for large ones. Packed rows
#: have other caches, too.
TOLERANCES = 1e-3, 2e-2
SGD_TOLERANCE = 1e-6


def on_ranks(folder: Path, number: int, settings: list[str], **values: Any) -> list[Any]:
    return ranks.succeed(
        ranks.run(train_programs.train_rank, number, folder, settings, values, timeout=120)
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return on_ranks(tmp_path_factory.mktemp("ranks"), 2, SETTINGS)


@pytest.fixture(scope="module")
def one() -> Any:
    return train_programs.trained(SETTINGS, {})


def test_two_ranks_train_what_one_process_does(two: list[Any], one: Any) -> None:
    for rank in two:
        for setting in range(2):
            found, expected = rank["losses"][setting], one["losses"][setting]
            np.testing.assert_allclose(found, expected, rtol=TOLERANCES[setting])
            found, expected = (of["test"][setting]["log_loss"] for of in (rank, one))
            np.testing.assert_allclose(found, expected, rtol=TOLERANCES[setting])


def test_the_gradient_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """SGD shows it most exactly; the last batch, of 28 rows, is not a full one."""
    values = {"optimizer": "sgd", "batch_size": 125}
    expected = train_programs.trained(["fp32"], values)
    for rank in on_ranks(tmp_path, 2, ["fp32"], **values):
        np.testing.assert_allclose(rank["losses"], expected["losses"], rtol=SGD_TOLERANCE)
        (found,), (alone,) = rank["test"], expected["test"]
        assert found["log_loss"] == pytest.approx(alone["log_loss"], rel=SGD_TOLERANCE)


def test_all_ranks_have_the_results_of_all(two: list[Any], one: Any) -> None:
    for name in ("losses", "test", "memory", "cache", "rounding", "dense"):
        assert two[0][name] == two[1][name]
    assert two[0]["tables"] != two[1]["tables"]
    for setting in range(2):
        found, expected = two[0]["memory"][setting], one["memory"][setting]
        assert found["tables"] == expected["tables"]
        assert found["fp32_total"] == expected["fp32_total"]
        assert found["ratio"] == found["fp32_total"] / found["total"]
        assert list(two[0]["rounding"][setting]) == list(one["rounding"][setting])
        for name, counts in one["cache"][setting].items():
            for what in ("accesses", "unique"):
                assert two[0]["cache"][setting][name][what] == counts[what]
    # Without a cache each table is in one place, whatever the number of ranks.
    fp32, alone = two[0]["memory"][0], one["memory"][0]
    assert fp32["ratio_embeddings"] == pytest.approx(alone["ratio_embeddings"], rel=0.02)


def test_the_same_ranks_train_the_same_bytes(two: list[Any], tmp_path: Path) -> None:
    again = on_ranks(tmp_path, 2, SETTINGS)
    for first, second in zip(two, again, strict=True):
        assert first == second


@pytest.mark.exhaustive
def test_more_ranks_than_a_batch_has_rows(tmp_path: Path) -> None:
    """1,028 rows to train in batches of 3, the last of 2: some ranks have none."""
    values = {"batch_size": 3, "rows": 120}
    expected = train_programs.trained(["fp32"], values)
    for rank in on_ranks(tmp_path, 4, ["fp32"], **values):
        np.testing.assert_allclose(rank["losses"], expected["losses"], rtol=1e-4)
        assert rank["test"][0]["log_loss"] == pytest.approx(expected["test"][0]["log_loss"], 1e-4)


@pytest.mark.parametrize("more", [[], ["--lr", "1e30"]], ids=["trained", "diverged"])
def test_no_thread_of_gloo_outlives_the_ranks(tmp_path: Path, more: list[str]) -> None:
    arguments = ["train", "--rows", "1200", "--dim", "8", "--setting", "int4:0.05", *more]
    done = torchrun(tmp_path, last_threads.PROGRAM, "mpembed", *arguments)
    assert (done.returncode == 0) == (not more), done.stderr
    # torchrun may end a rank that is later than the first to fail
    assert set(last_threads.left(done)) == {"0"}


def test_a_batch_is_shared_out_whole() -> None:
    for size in (1, 2, 3, 7):
        for rows in (0, 1, 2, 6, 128):
            shares = [Ranks(size, rank).share(rows) for rank in range(size)]
            assert [row for one in shares for row in range(rows)[one]] == list(range(rows))
    assert ALONE.share(5) == slice(0, 5)


def test_tables_are_spread_by_their_size() -> None:
    def owners(sizes: list[int], number: int) -> list[int]:
        tables = [TableConfig(f"t{i}", rows, 8) for i, rows in enumerate(sizes)]
        return table_owners(tables, number)

    assert owners([10, 40, 30, 20, 5], 2) == [0, 0, 1, 1, 0]
    assert owners([5, 5], 4) == [0, 1]
    assert set(owners([1] * 26, 3)) == {0, 1, 2}
