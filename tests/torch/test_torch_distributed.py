"""mpembed.torch.distributed: shards train as one process does, byte for byte where promised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")

import plain_programs
import ranks
from plain_programs import assert_passed

pytestmark = pytest.mark.torch
PROGRAMS = [
    "bytes_of_one_process",
    "sums_of_one_process",
    "features",
    "saved",
    "wire",
    "cached",
    "dropped",
    "wide_indices",
    "data_parallel",
    "page",
]
RANKS = [2, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 4))]


def run(folder: Path, names: Sequence[str], world_size: int) -> list[str]:
    """Return what each rank has printed of programs."""
    every = ranks.run(
        plain_programs.all_of, world_size, folder, folder, names, timeout=240, group_timeout=60
    )
    return ranks.succeed(every)


@pytest.fixture(scope="module", params=RANKS)
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each rank has printed of all programs, which are run once."""
    return run(tmp_path_factory.mktemp("ranks"), PROGRAMS, request.param)


def test_shards_have_the_bytes_of_one_process(told: list[str]) -> None:
    """Owned tables always; tables by rows without a cache: with bags of one, or sums of rows."""
    assert_passed(told, "bytes_of_one_process")


def test_fp32_sums_agree_with_one_process(told: list[str]) -> None:
    assert_passed(told, "sums_of_one_process")


def test_features_come_in_any_order_and_share_tables(told: list[str]) -> None:
    assert_passed(told, "features")


def test_each_rank_saves_its_shard_and_goes_on(told: list[str]) -> None:
    assert_passed(told, "saved")


def test_a_step_sends_the_bytes_of_the_formula(told: list[str]) -> None:
    assert_passed(told, "wire")


def test_runs_with_a_cache_do_not_depend_on_threads(told: list[str]) -> None:
    assert_passed(told, "cached")


def test_indices_that_are_dropped_count_in_means_alone(told: list[str]) -> None:
    assert_passed(told, "dropped")


def test_indices_of_large_tables_travel_as_int64(told: list[str]) -> None:
    assert_passed(told, "wide_indices")


def test_the_rest_of_the_model_is_data_parallel(told: list[str]) -> None:
    assert_passed(told, "data_parallel")


def test_the_page_of_the_manual_runs(told: list[str]) -> None:
    assert_passed(told, "page")


def test_runs_with_a_cache_have_the_same_bytes(told: list[str], tmp_path: Path) -> None:
    again = run(tmp_path, ["cached"], len(told))
    assert_passed(again, "cached")
    runs = [[line for text in one for line in text.splitlines()] for one in (told, again)]
    digests = [[line for line in one if line.startswith("digest")] for one in runs]
    assert len(digests[0]) == len(told)
    assert digests[0] == digests[1]
