"""State of sharded tables: saved with any plan on any number of ranks, loaded with any other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")

import ranks
import sharded_saves
from sharded_plans import PLANS
from sharded_saves import Save

pytestmark = pytest.mark.torch
Pairs = Sequence[tuple[int, Sequence[str]]]
#: Numbers of ranks whose saves and loads are all paired.
WORLDS = os.environ.get("MPEMBED_TEST_RANKS", "1,2").split(",")


def check_pairs(
    tmp_path: Path, optimizer: str, saves: Pairs, loads: Pairs, *, later: bool = False
) -> None:
    """Save with some worlds and plans; load each with others. Rows, states and cached rows equal.

    Tables in fp32 with fp32 states then train to the bytes of a run that was not interrupted.
    """
    wanted = {} if "bf16" in optimizer else sharded_saves.after_all_steps(optimizer)
    made = []
    for world, plans in saves:
        some = [Save(plan, optimizer, tmp_path / f"{world}{plan}", later) for plan in plans]
        ranks.succeed(ranks.run(sharded_saves.save, world, tmp_path, some, timeout=120))
        made += some
    for world, plans in loads:
        results = ranks.run(sharded_saves.load, world, tmp_path, plans, made, wanted, timeout=240)
        assert sum(ranks.succeed(results)) > 20 * len(made)


def test_two_ranks_load_on_one_and_with_other_plans(tmp_path: Path) -> None:
    check_pairs(tmp_path, "adam", [(2, ["mixed", "rw"])], [(1, ["tw"]), (2, ["uneven"])])


def test_an_asynchronous_save_has_the_state_of_its_call(tmp_path: Path) -> None:
    check_pairs(tmp_path, "rowwise_adagrad", [(2, ["uneven"])], [(2, ["mixed"])], later=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("optimizer", "later"), [("adam", False), ("adam_bf16", True)])
def test_every_pair_of_save_and_load(optimizer: str, later: bool, tmp_path: Path) -> None:
    worlds = [(int(world), PLANS) for world in WORLDS]
    check_pairs(tmp_path, optimizer, worlds, worlds, later=later)
