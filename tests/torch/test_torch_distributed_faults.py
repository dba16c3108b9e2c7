"""mpembed.torch.distributed: what goes wrong on one rank is an error on all, and never a hang."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import plain_programs
import ranks
from plain_programs import assert_passed

pytestmark = pytest.mark.torch
PROGRAMS = ["refused", "different_calls", "different_arguments", "nonfinite"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each rank has printed of all programs, which are run once."""
    folder = tmp_path_factory.mktemp("ranks")
    every = ranks.run(
        plain_programs.all_of, 2, folder, folder, PROGRAMS, timeout=240, group_timeout=60
    )
    return ranks.succeed(every)


def test_a_wrong_batch_of_one_rank_is_an_error_on_all(told: list[str]) -> None:
    assert_passed(told, "refused")


def test_different_calls_are_an_error_on_all(told: list[str]) -> None:
    assert_passed(told, "different_calls")


def test_different_arguments_are_an_error_on_all(told: list[str]) -> None:
    assert_passed(told, "different_arguments")


def test_an_update_that_is_not_finite_is_an_error_where_the_row_is(told: list[str]) -> None:
    assert_passed(told, "nonfinite")


@pytest.mark.parametrize("name", ["dead_rank", "silent_rank", "fails_midway"])
def test_a_rank_that_is_gone_is_an_error_within_the_timeout(name: str, tmp_path: Path) -> None:
    found = ranks.run(plain_programs.alone, 2, tmp_path, name, timeout=240, group_timeout=3)
    assert found == [True, None if name == "dead_rank" else True]
