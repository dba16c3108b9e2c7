"""The job behind ``mpembed train``: from options to a table, files and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mpembed.train import runner
from mpembed.train.array_file import DamagedError
from mpembed.train.board import Board
from mpembed.train.data.clicks import DataError
from mpembed.train.data.dataset import TRAIN, Dataset
from mpembed.train.data.files import expand
from mpembed.train.data.options import OptionError
from mpembed.train.data.sources import describe_source, source_note
from mpembed.train.distributed import ALONE, LostRankError, Ranks, lost_ranks, started_ranks
from mpembed.train.interrupts import Interrupts
from mpembed.train.keeper import Keeper, check_ranks, check_versions, resumed_options
from mpembed.train.options_json import described
from mpembed.train.outputs import write_output, write_results
from mpembed.train.progress import progress_display
from mpembed.train.report import check_outputs, check_outside
from mpembed.train.save_folder import SaveFolder, check_folder, holds_model
from mpembed.train.saved_model import SavedModel
from mpembed.train.settings import TrainOptions
from mpembed.train.streams import abandon, lossy_stderr, tell
from mpembed.train.trial import DivergedError, Trial
from mpembed.train.watched_files import WatchedFiles

FAILED, REFUSED = 1, 2  # exit statuses


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes
    ----------
    options : callable
        Returns the options of a new run.
    given : callable
        Returns those that were given, by name, for a run that goes on.
    json, plot, save, resume, logdir : Path or None
        Files and folders to write, and the one to go on from.
    save_every : int or None
        Steps between saves.
    """

    options: Callable[[], TrainOptions]
    given: Callable[[], Mapping[str, Any]]
    json: Path | None = None
    plot: Path | None = None
    save: Path | None = None
    save_every: int | None = None
    resume: Path | None = None
    logdir: Path | None = None

    @property
    def folder(self) -> Path | None:
        """The folder to save to."""
        return self.resume if self.save is None else self.save


class _Prepared:
    """A request of which all that can be refused without reading data has been checked."""

    def __init__(self, request: Request, ranks: Ranks) -> None:
        self.start: SavedModel | None = None
        if request.resume is None:
            self.options = request.options()
        else:
            self.start = SavedModel(request.resume)
            self.options = resumed_options(self.start, request.given())
            check_versions(self.start, runner.versions())
            check_ranks(self.start, ranks)
        _check_saving(request, self.options)
        if ranks.rank == 0:  # the others write nothing
            outputs = {"--json": request.json, "--plot": request.plot}
            folders = [one for one in (request.resume, request.save) if one is not None]
            check_outputs(expand(self.options.data.files), outputs, folders)
            if request.folder is not None:
                check_folder(request.folder)
                _keep_models(request)
            if request.logdir is not None:
                _check_logdir(request.logdir, folders)


def _check_saving(request: Request, options: TrainOptions) -> None:
    if request.folder is None:
        if request.save_every is not None:
            raise OptionError("--save-every needs --save, the folder to save to")
        return
    if request.save_every is not None and request.save_every < 1:
        raise OptionError(f"--save-every is {request.save_every}; it must be at least 1")
    if len(options.settings) != 1 or options.seeds != 1:
        raise OptionError(
            f"--save keeps one model, but {len(options.settings)} setting(s) and {options.seeds} "
            "seed(s) are trained; give one --setting and no --seeds"
        )


def _keep_models(request: Request) -> None:
    """Refuse to save a run where another one has saved its model."""
    path = request.save
    if path is None or not holds_model(path):
        return
    if request.resume is None or not path.samefile(request.resume):
        raise OptionError(
            f"--save {path}: holds a saved model, which stays: --resume {path} goes on with it; "
            "otherwise name another folder, or remove this one"
        )


def _check_logdir(path: Path, folders: Sequence[Path]) -> None:
    if path.exists() and not path.is_dir():
        raise OptionError(f"--logdir {path}: is not a folder")
    check_outside("--logdir", path, folders)
    if find_spec("tensorboard") is None:
        raise OptionError("--logdir needs tensorboard; install tensorboard")


def _board(request: Request, options: TrainOptions, ranks: Ranks) -> Board | None:
    if request.logdir is None or ranks.rank:
        return None
    return Board(request.logdir, options)


def train(request: Request, interrupts: Interrupts) -> int:
    """Train and report; whatever can be refused is refused before training starts.

    Parameters
    ----------
    request : Request
        What is asked for.
    interrupts : Interrupts
        Entered; until training starts, they raise Interrupted.

    Returns
    -------
    int
        The exit status.
    """
    ranks = ALONE
    try:
        with started_ranks() as ranks:
            if ranks.size > 1:
                interrupts.of_ranks(ranks.rank)
            return _known_to_all(request, ranks, interrupts)
    except OptionError as error:  # the ranks cannot meet
        return _fail(ALONE, str(error), REFUSED)
    except LostRankError as error:
        return _fail_alone(ranks, str(error))
    except MemoryError:
        return _fail_alone(ranks, "out of memory; try a smaller --dim, --max-rows or --batch-size")
    finally:
        abandon(sys.stderr)


def _known_to_all(request: Request, ranks: Ranks, interrupts: Interrupts) -> int:
    """Train and report; return the status, also of the errors that all ranks raise."""
    try:
        with lost_ranks():
            return _train(request, ranks, interrupts)
    except (DataError, OptionError, DamagedError) as error:
        return _fail(ranks, str(error), REFUSED)
    except DivergedError as error:
        return _fail(ranks, str(error), FAILED)


def _fail(ranks: Ranks, text: str, status: int) -> int:
    """Print what all ranks know; return the status."""
    if ranks.rank == 0:
        tell(text)
    return status


def _fail_alone(ranks: Ranks, text: str) -> int:
    """Print what the other ranks may not know; return the status."""
    tell(f"rank {ranks.rank}: {text}" if ranks.size > 1 else text)
    return FAILED


def _train(request: Request, ranks: Ranks, interrupts: Interrupts) -> int:
    prepared = ranks.together(lambda: _Prepared(request, ranks))
    options = prepared.options
    ranks.check_equal(described(options))
    saves = request.folder is not None
    files = ranks.together(lambda: WatchedFiles(expand(options.data.files)))
    dataset = ranks.together(lambda: runner.open_dataset(options, digested=saves))
    if not ranks.rank:
        for line in filter(None, (describe_source(dataset.source), source_note(dataset.source))):
            tell(line)
    ranks.check_equal({"rows": dataset.source.rows, "table rows": dataset.table_rows})
    with _keeper(request, ranks, prepared, dataset) as keeper:
        if prepared.start is not None and not ranks.rank:
            _compare_threads(prepared.start, options)
        board = ranks.together(lambda: _board(request, options, ranks))
        interrupts.raises = False
        with _progress(options, dataset, ranks, board) as report:
            try:
                result = runner.run(
                    options,
                    dataset,
                    report,
                    ranks=ranks,
                    stop=interrupts.asked,
                    keeper=keeper,
                    check=files.check,
                )
            except DataError as error:  # only of several ranks
                return _fail_alone(ranks, str(error))
        if not result["complete"] and not ranks.rank:
            tell(_stopped(result))
        # The model comes first: it is what the run was for, and no other output may lose it.
        failures = [] if result["error"] is None else [result["error"]]
        if keeper is not None:
            failures += write_output("--save", request.folder, lambda _: keeper.save())
        if not ranks.rank:
            failures += write_results(result, request.json, request.plot)
        if board is not None:
            finish = board.finish
            failures += write_output("--logdir", request.logdir, lambda _: finish(result))
    if failures:
        return _fail(ranks, "; ".join(failures), FAILED)
    return interrupts.status


@contextmanager
def _progress(
    options: TrainOptions, dataset: Dataset, ranks: Ranks, board: Board | None
) -> Iterator[Callable[[Trial, int], None]]:
    """Return what to call after each turn; the first rank alone shows something."""
    if ranks.rank:
        yield lambda trial, rows: None
        return
    console = Console(file=lossy_stderr())
    with progress_display(console, options, dataset.ends[TRAIN]) as display:

        def report(trial: Trial, rows: int) -> None:
            display(trial, rows)
            if board is not None:
                board(trial, rows)

        yield report


@contextmanager
def _keeper(
    request: Request, ranks: Ranks, prepared: _Prepared, dataset: Dataset
) -> Iterator[Keeper | None]:
    """Return the keeper of a run that is to be saved, or None; its folder is closed at the end."""
    if request.folder is None:
        yield None
        return
    folder, start = SaveFolder(request.folder), prepared.start
    if ranks.size > len(dataset.table_rows):
        raise OptionError(
            f"--save needs a table for each rank, but there are {len(dataset.table_rows)} tables "
            f"and {ranks.size} ranks; start fewer"
        )
    ranks.together(lambda: None if ranks.rank else folder.open())
    try:
        if start is not None:  # now that no other process can save there
            ranks.together(start.check_unchanged)
        keeper = Keeper(
            folder,
            prepared.options,
            dataset,
            runner.versions(),
            request.save_every,
            start,
            (lambda _: None) if ranks.rank else tell,
            ranks,
        )
        yield keeper
    finally:
        folder.close()


def _compare_threads(start: SavedModel, options: TrainOptions) -> None:
    saved, here = start.facts.threads, options.threads or torch.get_num_threads()
    if saved != here:
        tell(f"saved with {saved} thread(s), here {here}: sums may differ in their last bits")


def _stopped(result: dict[str, Any]) -> str:
    """Say how far a run has come that was stopped."""
    last = result["runs"][-1]
    rows = last["curve"][-1]["rows"] if last["curve"] else 0
    each = result["data"]["split_ends"][TRAIN]
    epochs = result["config"]["epochs"]
    return (
        f"stopped after {rows:,} of {each * epochs:,} clicks of {last['setting']}, seed "
        f"{last['seed']}; what was not measured by then is -"
    )
