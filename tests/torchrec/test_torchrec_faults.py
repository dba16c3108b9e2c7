"""A rank that goes wrong: an error on all ranks within the group's timeout, never a hang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchrec", reason="TorchRec is not installed", exc_type=ImportError)

import ranks
import sharded_faults
import sharded_models as models

from mpembed.torch.torchrec import TableSettings

pytestmark = [pytest.mark.torch, pytest.mark.torchrec, pytest.mark.filterwarnings("ignore")]
PLANS: dict[str, dict[str, Any]] = {
    "tables": models.table_wise(2),
    "rows": models.row_wise(),
    "mixed": {"t0": ("rw", {}), "t1": ("tw", {"rank": 1}), "t2": ("cw", {"ranks": [0, 1]})},
    "one rank": {name: ("tw", {"rank": 0}) for name in ("t0", "t1", "t2")},
}


def step(
    folder: Path, plan: str, fault: str, *, stays: bool = False, options: Any = None
) -> list[Any]:
    """Run two ranks of which the second goes wrong; if it stays, a timeout tells the other."""
    arguments = PLANS[plan], fault, stays, options or {}
    group_timeout = 4.0 if stays else 20.0
    return ranks.run(sharded_faults.step, 2, folder, *arguments, group_timeout=group_timeout)


@pytest.mark.parametrize(
    ("fault", "plan", "stays"),
    [
        ("index", "tables", False),
        ("index", "rows", False),
        ("index", "mixed", False),
        ("negative", "rows", False),
        ("negative", "tables", False),
        ("index", "mixed", True),
    ],
)
def test_a_bad_index_is_an_error_on_all_ranks(
    fault: str, plan: str, stays: bool, tmp_path: Path
) -> None:
    found = ranks.succeed(step(tmp_path, plan, fault, stays=stays))
    kinds = {kind for kind, _ in found}
    assert "IndexError" in kinds
    assert kinds <= {"IndexError", "RuntimeError"}  # of gloo: closed, or timed out
    (message,) = (text for kind, text in found if kind == "IndexError")
    assert "feature 'f0' (table 't0', num_embeddings=" in message
    assert "out of range" in message
    assert ("of the 100 rows of 't0', from " in message) == (plan != "tables")


def test_an_index_can_be_dropped(tmp_path: Path) -> None:
    for fault in ("index", "negative"):
        found = step(tmp_path, "mixed", fault, options={"bounds": "drop"})
        assert ranks.succeed(found) == ["worked", "worked"]


@pytest.mark.parametrize("plan", ["tables", "rows"])
def test_a_gradient_that_is_not_finite_is_an_error_where_its_rows_are(
    plan: str, tmp_path: Path
) -> None:
    found = ranks.succeed(step(tmp_path, plan, "infinite"))
    assert "NonFiniteUpdateError" in {kind for kind, _ in found}
    assert {kind for kind, _ in found} <= {"NonFiniteUpdateError", "RuntimeError"}
    skipped = step(tmp_path, plan, "infinite", options={"on_nonfinite": "skip"})
    assert ranks.succeed(skipped) == ["worked", "worked"]


@pytest.mark.parametrize("plan", ["tables", "rows"])
def test_a_dead_rank_is_an_error_on_the_others(plan: str, tmp_path: Path) -> None:
    found = step(tmp_path, plan, "dies")
    assert found[1] is None
    assert found[0][0] == "RuntimeError"


@pytest.mark.parametrize("plan", ["tables", "rows", "mixed", "one rank"])
def test_a_rank_may_have_a_batch_without_indices(plan: str, tmp_path: Path) -> None:
    assert ranks.succeed(step(tmp_path, plan, "empty")) == ["worked", "worked"]


def test_ranks_may_have_batches_of_different_sizes_where_tables_are_whole(tmp_path: Path) -> None:
    assert ranks.succeed(step(tmp_path, "tables", "batch")) == ["worked", "worked"]


def test_batches_of_different_sizes_are_an_error_where_rows_are_split(tmp_path: Path) -> None:
    found = step(tmp_path, "rows", "batch")
    assert all(one != "worked" for one in found)


@pytest.mark.parametrize("plan", ["tables", "rows"])
def test_a_batch_size_for_each_feature_is_refused(plan: str, tmp_path: Path) -> None:
    found = ranks.succeed(step(tmp_path, plan, "variable"))
    assert found[1][0] == "ValueError"
    assert "give all features one batch size" in found[1][1]
    assert found[0][0] == "RuntimeError"


def test_settings_of_no_table_are_warned_of_once(tmp_path: Path) -> None:
    known, unknown = TableSettings(lr=0.5), TableSettings(precision="int8")
    for tables, expected in (({"t0": known}, 0), ({"t0": known, "t_0": unknown}, 1)):
        told = ranks.succeed(ranks.run(sharded_faults.warned, 2, tmp_path, tables))
        assert [len(one) for one in told] == [expected, expected]
        assert all("['t_0']" in text and "'t1'" in text for one in told for text in one)


def test_a_table_of_nobody_is_unexpected(tmp_path: Path) -> None:
    for name in ("none", "none.columns.0-4"):
        told = ranks.succeed(ranks.run(sharded_faults.unexpected, 2, tmp_path, name))
        assert told == 2 * [[f"embedding_bags.{name}"]]


def test_a_tensor_dict_gives_the_same_means(tmp_path: Path) -> None:
    assert all(ranks.succeed(ranks.run(sharded_faults.of_tensor_dict, 2, tmp_path)))
