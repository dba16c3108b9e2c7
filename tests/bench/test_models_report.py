"""bench/models: which trainings are planned, what a results file says, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from models import cli, recbole_models, report, results
from models.cases import Case, Kind, Sizes, Training
from models.compare import Comparison, compare

FM, MF = Case("recbole", "fm", "FM"), Case("recbole", "mf", "MF", {"loss": "bpr"})
SIZES = Sizes(epochs=1, batch=8, list_length=5, user_items=9, saved=False, recbole=None)


def result(case: Case = FM, kind: Kind = "original", **changes: Any) -> dict[str, Any]:
    learner, seed = changes.pop("learner", "sgd"), changes.pop("seed", 0)
    line = {
        "key": Training(case, kind, learner, seed).key,
        "library": case.library,
        "case": case.name,
        "model": case.model,
        "kind": kind,
        "learner": learner,
        "seed": seed,
        "ok": True,
        "tables": 2,
        "losses": [2.0, 1.0],
        "metrics": {"auc": 0.7},
        "seconds": 1.0,
    }
    return {**line, **changes}


def failure(case: Case = FM, kind: Kind = "converted", **changes: Any) -> dict[str, Any]:
    wrong = {"ok": False, "stage": "fit", "error": "RuntimeError: a | b\nmore", "trace": []}
    return {**result(case, kind, **changes), **wrong}


def test_originals_of_one_optimizer_have_several_seeds() -> None:
    planned = cli.plan([FM], ["sgd", "lazy_adam"], ["original", "converted"], 3)
    seeds = [(one.kind, one.learner, one.seed) for one in planned]
    assert seeds == [
        ("original", "sgd", 0),
        *(("original", "lazy_adam", seed) for seed in range(3)),
        ("converted", "sgd", 0),
        ("converted", "lazy_adam", 0),
    ]


def test_resume_skips_what_is_done_and_failed_what_succeeded() -> None:
    todo = cli.plan([FM, MF], ["sgd"], ["original"], 1)
    done = {one["key"]: one for one in (result(), failure(MF, "original"))}
    assert cli.needed(todo, done, resume=False, failed=False) == todo
    assert cli.needed(todo, done, resume=True, failed=False) == []
    assert [one.case for one in cli.needed(todo, done, resume=False, failed=True)] == [MF]


@pytest.mark.parametrize("original", [failure(kind="original"), result(tables=0)])
def test_a_model_that_has_nothing_to_convert_is_not_converted(original: dict[str, Any]) -> None:
    todo = cli.plan([FM], ["sgd"], ["converted"], 1)
    assert cli.needed(todo, {original["key"]: original}, resume=False, failed=False) == []


def test_a_later_result_counts_and_an_unfinished_line_does_not(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.jsonl"
    results.append(file, [result(), result(seconds=2.0)])
    with file.open("a", encoding="utf-8") as out:
        out.write('{"key": "half')
    (only,) = results.read(file).values()
    assert only["seconds"] == 2.0


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text("[]\n" + json.dumps(result()) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"results\.jsonl: line 1 is no result"):
        results.read(file)


def comparison(*lines: dict[str, Any]) -> Comparison:
    (one,) = compare(lines)
    return one


def test_differences_are_relative_for_losses_and_absolute_for_metrics() -> None:
    after = result(kind="converted", losses=[2.0, 1.5], metrics={"auc": 0.75})
    one = comparison(result(), after)
    assert one.loss_difference("sgd") == pytest.approx(0.5)
    assert one.metric_difference("sgd") == pytest.approx(0.05)
    assert one.loss_difference("adam") is None


@pytest.mark.parametrize(("other_seed", "equal"), [(0.74, True), (0.71, False)])
def test_metrics_are_equal_within_what_seeds_differ(other_seed: float, equal: bool) -> None:
    after = result(kind="converted", metrics={"auc": 0.73})
    noisy = (
        result(learner="lazy_adam"),
        result(learner="lazy_adam", seed=1, metrics={"auc": other_seed}),
    )
    assert comparison(result(), after, *noisy).equal("sgd") is equal


def test_one_failure_of_several_optimizers_is_a_failure() -> None:
    lines = [result(), result(learner="adam"), result(kind="converted")]
    assert comparison(*lines).runs_after
    assert not comparison(*lines, failure(learner="adam")).runs_after


def test_the_page_counts_cases_and_models_and_gives_reasons() -> None:
    lines = [
        *(result(), result(kind="converted")),
        *(result(MF), failure(MF)),
        failure(Case("recbole", "gone", "Gone"), "original"),
    ]
    page = report.page(lines)
    assert "| recbole | 3 | 2 | 2 | 1 | 50 % | 1 of 1 |" in page
    assert "| recbole, models | 3 | 2 | 2 | 1 | 50 % |" in page
    assert "| 1 | fit: RuntimeError: a / b |" in page
    before = page[page.index("Do not run before") :]
    assert "| recbole | gone | fit: RuntimeError: a / b |" in before


def test_recbole_configurations_are_those_that_its_tests_pass(tmp_path: Path) -> None:
    tests = tmp_path / "tests/model"
    tests.mkdir(parents=True)
    (tests / "test_model_auto.py").write_text(
        "import unittest\n"
        "from recbole.quick_start import objective_function\n"
        "def quick_test(config_dict):\n"
        "    objective_function(config_dict=config_dict, config_file_list=[], saved=False)\n"
        "class TestGeneral(unittest.TestCase):\n"
        "    def test_bpr(self):\n"
        "        quick_test({'model': 'BPR', 'alpha': 1.0})\n",
        encoding="utf-8",
    )
    (tests / "test_model_manual.py").write_text(
        "import unittest\n"
        "from recbole.quick_start import objective_function\n"
        "class TestSequential(unittest.TestCase):\n"
        "    def test_two(self):\n"
        "        for stage in ('first', 'second'):\n"
        "            objective_function(config_dict={'model': 'Two', 'stage': stage})\n",
        encoding="utf-8",
    )
    sizes = Sizes(**{**vars(SIZES), "recbole": str(tmp_path)})
    found = [(one.key, one.model, one.settings) for one in recbole_models.cases(sizes)]
    assert found == [
        ("recbole/bpr", "BPR", {"alpha": 1.0}),
        ("recbole/two", "Two", {"stage": "first"}),
        ("recbole/two_2", "Two", {"stage": "second"}),
    ]


def test_without_a_checkout_there_are_no_cases_of_recbole() -> None:
    assert recbole_models.cases(SIZES) == []
