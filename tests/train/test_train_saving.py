"""A run that goes on from a saved model is the run without a break; others are refused by name."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import train_jobs

from mpembed.train.array_file import DamagedError
from mpembed.train.data.options import DataOptions, OptionError
from mpembed.train.keeper import Keeper, check_versions, resumed_options
from mpembed.train.options_json import changed
from mpembed.train.runner import open_dataset, run, versions
from mpembed.train.save_folder import SaveFolder, check_folder, sealed
from mpembed.train.saved_model import Position, SavedModel
from mpembed.train.settings import OPTIMIZERS, Setting, TrainOptions

pytestmark = pytest.mark.torch


def options(setting: str = "int4:0.05", **values: Any) -> TrainOptions:
    values = {"rows": 500, "dim": 4, "threads": 1, "batch_size": 100, "epochs": 2, **values}
    return TrainOptions((Setting.parse(setting),), **values)


def stop_after(steps: int) -> Callable[[], bool]:
    left = iter(range(steps - 1, -1, -1))
    return lambda: next(left, 0) == 0


def saved_run(
    folder: Path, chosen: TrainOptions, start: Path | None = None, steps: int = 10**9
) -> dict[str, Any]:
    """Train, from a saved model or anew, for some steps; save; return the results without times."""
    dataset = open_dataset(chosen, digested=True)
    place = SaveFolder(folder)
    place.open()
    try:
        begin = None if start is None else SavedModel(start)
        keeper = Keeper(place, chosen, dataset, versions(), start=begin)
        stop = stop_after(steps)
        result = run(chosen, dataset, lambda trial, rows: None, stop=stop, keeper=keeper)
        keeper.save()
    finally:
        place.close()
    return train_jobs.without_times(result)


SETTINGS = ["int4:0.05", "fp32", "int8_fp16:0.5:stochastic"]
# 428 rows to train: five steps an epoch, the last one of 28 rows.
STEPS = [7, 5, 10, 1, 3]
CASES = [
    pytest.param(
        name,
        STEPS[i % len(STEPS)],
        SETTINGS[i % len(SETTINGS)],
        marks=[pytest.mark.exhaustive] if i > 2 else [],
    )
    for i, name in enumerate(["rowwise-adagrad", "sgd", "adam", *sorted(OPTIMIZERS)])
]


@pytest.mark.parametrize(("optimizer", "steps", "setting"), CASES)
def test_a_run_goes_on_bit_for_bit(
    optimizer: str, steps: int, setting: str, tmp_path: Path
) -> None:
    chosen = options(setting, optimizer=optimizer)
    expected = saved_run(tmp_path / "whole", chosen)
    part = saved_run(tmp_path / "part", chosen, steps=steps)
    assert not part["complete"]
    assert SavedModel(tmp_path / "part").facts.steps == steps
    found = saved_run(tmp_path / "rest", chosen, start=tmp_path / "part")
    assert found == expected
    train_jobs.assert_same(
        train_jobs.model(tmp_path / "rest"), train_jobs.model(tmp_path / "whole")
    )


def test_a_finished_run_has_its_results_and_trains_more_epochs(tmp_path: Path) -> None:
    once = saved_run(tmp_path / "model", options(epochs=1))
    assert SavedModel(tmp_path / "model").facts.position == Position(1, 0)
    assert saved_run(tmp_path / "again", options(epochs=1), start=tmp_path / "model") == once
    twice = saved_run(tmp_path / "more", options(), start=tmp_path / "model")
    assert twice == saved_run(tmp_path / "whole", options())


def test_what_is_interrupted_while_it_is_scored_is_scored_again(tmp_path: Path) -> None:
    chosen = options()
    part = saved_run(tmp_path / "part", chosen, steps=11)  # asked for the 11th time: validation
    assert not part["complete"]
    assert SavedModel(tmp_path / "part").facts.position == Position(1, 428)
    found = saved_run(tmp_path / "rest", chosen, start=tmp_path / "part")
    assert found == saved_run(tmp_path / "whole", chosen)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    saved_run(folder, options(), steps=3)
    return folder


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"dim": 8},
            "--dim 8 is given, but the saved run has --dim 4; leave it out, or train anew",
        ),
        ({"batch_size": 64}, "--batch-size 64 is given, but the saved run has --batch-size 100;"),
        (
            {"optimizer": "adam"},
            "--optimizer adam is given, but the saved run has --optimizer rowwise-adagrad;",
        ),
        ({"lr": 0.5}, "--lr 0.5 is given, but the saved run has --lr 0.1;"),
        (
            {"settings": (Setting("fp32"),)},
            "--setting fp32 is given, but the saved run has --setting",
        ),
        (
            {"dense_transform": "log"},
            "--dense-transform log is given, but the saved run has --dense-transform auto;",
        ),
        ({"epochs": 0}, "--epochs is 0"),
    ],
)
def test_other_options_are_refused_by_name(
    given: dict[str, Any], message: str, model: Path
) -> None:
    with pytest.raises(OptionError) as error:
        resumed_options(SavedModel(model), given)
    assert message in str(error.value)


def test_refused_values_are_written_as_a_user_types_them() -> None:
    data = DataOptions(("a.csv",), categorical=("a,b", "c d"), header=False, delimiter="\t")
    settings = Setting("fp32"), Setting("int4", 0.05), Setting("int8", 0, "nearest")
    saved = TrainOptions(settings, data, rows=None)
    given = {
        "rows": 5,
        "settings": (Setting("int2", 1 / 3),),
        "categorical": ("a",),
        "header": True,
        "delimiter": ";",
        "list_separator": "|",
    }
    assert dict(changed(saved, given)) == {
        "--rows 5": "no --rows",
        "--setting int2:0.3333333333333333": "--setting fp32 --setting int4:0.05 --setting "
        "int8:0:nearest",
        "--categorical a": "--categorical 'a,b,c d'",
        "--header": "--no-header",
        "--delimiter ';'": "--delimiter tab",
        "--list-separator '|'": "no --list-separator",
    }


def test_what_may_change_does(model: Path) -> None:
    given = {"threads": 2, "epochs": 5, "files": ("x.txt",), "dim": 4}
    found = resumed_options(SavedModel(model), given)
    assert (found.threads, found.epochs, found.data.files) == (2, 5, ("x.txt",))


def test_fewer_epochs_than_are_trained_are_refused(tmp_path: Path) -> None:
    saved_run(tmp_path / "model", options())
    with pytest.raises(OptionError, match="--epochs is 1, but the saved run has trained 2"):
        resumed_options(SavedModel(tmp_path / "model"), {"epochs": 1})


def test_the_end_of_an_epoch_before_the_middle_of_the_next_is_refused(tmp_path: Path) -> None:
    part = tmp_path / "part"
    saved_run(part, options(), steps=7)  # two of the second epoch
    match = "--epochs is 1, but the saved run has trained 1 and 200 rows of the next already"
    with pytest.raises(OptionError, match=match):
        resumed_options(SavedModel(part), {"epochs": 1})
    assert resumed_options(SavedModel(part), {"epochs": 2}).epochs == 2
    # Nor is it saved, which would leave a model that cannot be read.
    with pytest.raises(ValueError, match="at a place that the data do not have"):
        saved_run(part, options(epochs=1), start=part)
    assert SavedModel(part).facts.steps == 7


def test_other_data_and_versions_are_refused_by_name(model: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="they have 600 rows, the saved run 500"):
        saved_run(tmp_path / "x", options(rows=600), start=model)
    with pytest.raises(OptionError, match=r"was saved with torch 2\S+, here is 9.9"):
        check_versions(SavedModel(model), {**versions(), "torch": "9.9"})
    check_versions(SavedModel(model), {**versions(), "python": "9.9"})


def test_the_same_number_of_other_rows_is_refused(tmp_path: Path) -> None:
    lines = [
        "\t".join([str(row % 2), *["1"] * 13, *[f"{row % 5:x}"] * 26]) + "\n" for row in range(60)
    ]
    data = tmp_path / "clicks.txt"
    data.write_text("".join(lines))
    from mpembed.train.data.options import DataOptions

    chosen = options(rows=None, data=DataOptions((str(data),)), batch_size=10, epochs=1)
    saved_run(tmp_path / "model", chosen, steps=2)
    lines[50] = "1" + lines[50][1:]  # a label of the test part, which no vocabulary knows
    data.write_text("".join(lines))
    with pytest.raises(OptionError, match="the same number of rows .*, but they are others"):
        saved_run(tmp_path / "x", chosen, start=tmp_path / "model")


def test_a_folder_of_other_files_is_refused(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    check_folder(folder)
    (folder / "cat.jpg").touch()
    with pytest.raises(OptionError, match=r"has other files, such as cat\.jpg"):
        check_folder(folder)
    with pytest.raises(OptionError, match="is not a folder"):
        check_folder(folder / "cat.jpg")
    with pytest.raises(OptionError, match="there is no directory"):
        check_folder(tmp_path / "no" / "model")
    check_folder(model)
    check_folder(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_one_process_at_a_time_saves_to_a_folder(tmp_path: Path) -> None:
    first, second = SaveFolder(tmp_path / "model"), SaveFolder(tmp_path / "model")
    first.open()
    with pytest.raises(OptionError, match="another process saves to it"):
        second.open()
    first.close()
    assert not (tmp_path / "model").exists()  # nothing was saved
    second.open()
    second.close()


def test_files_of_others_are_not_replaced(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    manifest = folder / "model.json"
    later = {"format": "mpembed-train", "version": 2, "files": {}, "model": {}}
    for text, reason in (
        (b'{"learner": {}, "version": [3, 0, 0]}', "is damaged"),
        (sealed({**later, "format": "other"}), "was not written by mpembed train --save"),
        (sealed(later), "has layout 2; this mpembed reads 1"),
    ):
        manifest.write_bytes(text)
        with pytest.raises(OptionError, match=f"{reason}.*; name a new or an empty folder"):
            check_folder(folder)
        assert manifest.read_bytes() == text
    manifest.unlink()
    tables = folder / "tables-a.safetensors"
    own = (model / "tables-a.safetensors").read_bytes()
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    for foreign in (b"", b"x" * 100, len(header).to_bytes(8, "little") + header + bytes(4)):
        tables.write_bytes(foreign)
        with pytest.raises(OptionError, match="tables-a.safetensors: was not written by mpembed"):
            check_folder(folder)
    tables.write_bytes(own)  # left by a first save that was killed
    check_folder(folder)


def test_a_folder_of_the_user_stays(tmp_path: Path) -> None:
    folder = SaveFolder(tmp_path)
    folder.open()
    folder.close()
    assert tmp_path.is_dir()


def test_a_folder_that_is_removed_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, times = tmp_path / "model", fcntl.flock, iter([True, False])

    def flock(file: int, how: int) -> None:
        if next(times):  # another process, which saves nothing, ends
            path.rmdir()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    first, second = SaveFolder(path), SaveFolder(path)
    first.open()
    monkeypatch.undo()
    with pytest.raises(OptionError, match="another process saves to it"):
        second.open()
    assert path.is_dir()
    first.close()
    assert not path.exists()


def test_a_save_since_it_was_read_is_seen(tmp_path: Path) -> None:
    saved_run(tmp_path / "model", options(), steps=2)
    early = SavedModel(tmp_path / "model")
    early.check_unchanged()
    saved_run(tmp_path / "model", options(), start=tmp_path / "model", steps=1)
    with pytest.raises(DamagedError, match="a run has saved meanwhile; try again"):
        early.check_unchanged()


def test_a_failed_first_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mpembed.train.keeper.write_arrays", fail)  # after the tables
    with pytest.raises(OSError, match="No space left"):
        saved_run(tmp_path / "model", options(), steps=1)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the disk is full, and the save after it succeeds."""
    chosen = options()
    saved_run(tmp_path / "model", chosen, steps=3)
    before = train_jobs.model(tmp_path / "model")
    real, count = os.fsync, 0
    for failing in range(1, 9):
        count = 0

        def fsync(file: int, failing: int = failing) -> None:
            nonlocal count
            count += 1
            if count == failing:
                raise OSError(28, "No space left on device")
            real(file)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            saved_run(tmp_path / "model", chosen, start=tmp_path / "model", steps=1)
        monkeypatch.setattr(os, "fsync", real)
        steps = SavedModel(tmp_path / "model").facts.steps
        if failing < 8:  # of four files and their folder; the last one is after the rename
            assert steps == 3
            train_jobs.assert_same(train_jobs.model(tmp_path / "model"), before)
        else:
            assert steps == 4
    assert count == 8
    saved_run(tmp_path / "model", chosen, start=tmp_path / "model", steps=1)
    assert len(list((tmp_path / "model").iterdir())) == 4


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no"):
        with pytest.raises(DamagedError, match="no model is saved there"):
            SavedModel(path)
    (tmp_path / "model.json").mkdir()
    with pytest.raises(DamagedError):
        SavedModel(tmp_path)
