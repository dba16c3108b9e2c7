"""Saves the model of a run while it is trained, and continues one from what was saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mpembed._checkpoint import strict_json
from mpembed.train.array_file import DamagedError, header_digest, write_arrays
from mpembed.train.data.dataset import TRAIN, Dataset
from mpembed.train.data.digest import DigestedSource
from mpembed.train.data.encoding import Block
from mpembed.train.data.options import OptionError
from mpembed.train.distributed import ALONE, Ranks
from mpembed.train.options_json import changed
from mpembed.train.save_folder import SaveFolder, table_kind
from mpembed.train.saved_model import (
    DataFacts,
    Position,
    RunFacts,
    SavedModel,
    Scores,
    facts_from,
)
from mpembed.train.settings import TrainOptions
from mpembed.train.trial import Trial
from mpembed.train.trial_state import dense_arrays, restore

#: Versions that may differ between a save and what goes on from it.
_MAY_DIFFER = {"python"}


class Keeper:
    """Keeps a run in a folder.

    Parameters
    ----------
    folder : SaveFolder
        Where to save; open on the first rank.
    options : TrainOptions
        The run, of one setting and one seed.
    dataset : Dataset
        Its data, of a `DigestedSource`.
    versions : dict of str to str
        Of the packages that results depend on.
    every : int, optional
        Steps from one save to the next while the run goes on; none by default.
    start : SavedModel, optional
        What to go on from.
    tell : callable
        Is given a line when a save has failed while the run goes on.
    ranks : Ranks
        That train together; each saves its tables, and the first one all else.

    Attributes
    ----------
    position : Position
        How far the run has come.
    """

    def __init__(
        self,
        folder: SaveFolder,
        options: TrainOptions,
        dataset: Dataset,
        versions: dict[str, str],
        every: int | None = None,
        start: SavedModel | None = None,
        tell: Callable[[str], None] = print,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._folder, self._options, self._dataset = folder, options, dataset
        self._versions, self._every, self._start, self._tell = versions, every, start, tell
        self._trial: Trial | None = None
        self._scores: Scores = {}
        self._wrote_encoding = False
        self.position = Position() if start is None else start.facts.position
        self._data = data_facts(dataset)
        if start is not None:
            check_data(start, self._data)
            self._scores = dict(start.facts.scores)
            if self.position.epoch < options.epochs:
                # Scores are those of the end; there may be more epochs than before.
                self._scores = dict.fromkeys(self._scores)

    def begin(self, make: Callable[..., Trial]) -> Trial:
        """Return the model of the run, new or as it was saved.

        Parameters
        ----------
        make : callable
            Makes a trial; ``tables=`` are those to go on with.

        Raises
        ------
        DamagedError
            If what was saved is not a model of this run.
        """
        if self._start is None:
            self._trial = make()
            return self._trial
        start, facts = self._start, self._start.facts
        encoding = self._dataset.encoding
        if start.encoding().describe() != encoding.describe():
            raise DamagedError(f"{start.path}: its encoding is not that of the data")
        tables, arrays = start.tables(encoding, self._ranks.rank), start.arrays()
        try:
            trial = make(tables=tables)
            trial.records = restore(arrays, trial.net, trial.optimizer, facts.steps)
        except ValueError as error:
            raise DamagedError(f"{start.path}: {error}") from None
        trial.scores = {part: _with_nan(one) for part, one in self._scores.items()}
        self._trial = trial
        return trial

    def rest(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Yield what is left of the blocks of an epoch, cut where it is to be saved."""
        skip = self.position.rows
        for block in blocks:
            if block.part != TRAIN:
                yield block
                continue
            begin, skip = min(skip, len(block)), max(skip - len(block), 0)
            yield from self._pieces(block[begin:])

    def _pieces(self, block: Block) -> Iterator[Block]:
        assert self._trial is not None
        size, start = self._options.batch_size, 0
        while start < len(block):
            end = len(block)
            if self._every is not None:
                end = start + size * (self._every - len(self._trial.records) % self._every)
            yield block[start:end]
            start = end

    def trained(self, rows: int) -> None:
        """Count rows of this epoch as trained; save if it is time to."""
        assert self._trial is not None
        self.position = replace(self.position, rows=self.position.rows + rows)
        if self._every is not None and len(self._trial.records) % self._every == 0:
            try:
                self.save()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                self._tell(f"--save {self._folder.path}: cannot be written: {reason}; going on")

    def end_epoch(self) -> None:
        """Count an epoch as done, the scores at its end included."""
        self.position = Position(self.position.epoch + 1, 0)

    def save(self) -> None:
        """Save the run as it is now, whole or not at all.

        Raises
        ------
        OSError
            If it cannot be written; the save before is still there.
        ValueError
            If it would be a save that cannot be read again; nothing is written.
        """
        trial, ranks, folder = self._trial, self._ranks, self._folder
        if trial is None:
            return
        facts = RunFacts(
            self._options,
            self._versions,
            torch.get_num_threads(),
            self._data,
            self.position,
            ranks.size,
            {part: _plain(scores) for part, scores in trial.scores.items()},
        )
        encoding = self._dataset.encoding
        model = facts.as_json(encoding)
        facts_from(strict_json.parse(json.dumps(model, allow_nan=False)))  # as a reader does
        writers: dict[str, Callable[[Any], None]] = {table_kind(ranks.rank): trial.tables.save}
        if not ranks.rank:
            writers["dense"] = lambda path: write_arrays(
                path, dense_arrays(trial.net, trial.optimizer, trial.records)
            )
        if not ranks.rank and not self._wrote_encoding:
            writers["encoding"] = lambda path: write_arrays(path, encoding.arrays())
        kinds = [kind for one in ranks.gather(list(writers)) for kind in one]
        names = ranks.gather({} if ranks.rank else folder.new_names(kinds))[0]

        def write() -> dict[str, list[str]]:
            files = {}
            for kind, write_file in writers.items():
                path = folder.path / names[kind]
                write_file(path)
                files[kind] = [path.name, header_digest(path)]
            return files

        def commit() -> None:
            if not ranks.rank:
                folder.commit(model, files)

        try:
            written = ranks.together(write)
        except Exception:
            folder.discard(names[kind] for kind in writers)
            raise
        files = {k: v for one in ranks.gather(written) for k, v in one.items()}
        ranks.together(commit)
        self._wrote_encoding = True


def _plain(scores: Mapping[str, float] | None) -> dict[str, Any] | None:
    """Replace NaN, which JSON cannot express, by None."""
    if scores is None:
        return None
    return {name: None if np.isnan(one) else float(one) for name, one in scores.items()}


def _with_nan(scores: Mapping[str, float | None] | None) -> dict[str, float] | None:
    if scores is None:
        return None
    return {name: np.nan if one is None else one for name, one in scores.items()}


def data_facts(dataset: Dataset) -> DataFacts:
    """Return what a run knows its data by."""
    assert isinstance(dataset.source, DigestedSource)
    return DataFacts(dataset.source.rows, dataset.ends[TRAIN], dataset.source.digest)


def check_data(start: SavedModel, found: DataFacts) -> None:
    """Raise OptionError if a run was saved with other data."""
    saved = start.facts.data
    if found == saved:
        return
    what = (
        f"{found.rows:,} rows, the saved run {saved.rows:,}"
        if found.rows != saved.rows
        else "the same number of rows as those of the saved run, but they are others"
    )
    raise OptionError(
        f"--resume {start.path}: the data are not those of the saved run: they have {what}; "
        "give the same files in --data, or train anew"
    )


def check_versions(start: SavedModel, versions: Mapping[str, str]) -> None:
    """Raise OptionError if a run was saved by packages whose results may differ."""
    for name in sorted(set(versions) | set(start.facts.versions)):
        here, saved = versions.get(name), start.facts.versions.get(name)
        if here != saved and name not in _MAY_DIFFER:
            raise OptionError(
                f"--resume {start.path}: was saved with {name} {saved}, here is {here}, whose "
                "results may differ; install the version that saved it, or train anew"
            )


def check_ranks(start: SavedModel, ranks: Ranks) -> None:
    """Raise OptionError if another number of ranks has saved a run."""
    if start.facts.ranks != ranks.size:
        raise OptionError(
            f"--resume {start.path}: was trained by {start.facts.ranks} process(es), here are "
            f"{ranks.size}; start as many, or train anew"
        )


def resumed_options(start: SavedModel, given: Mapping[str, Any]) -> TrainOptions:
    """Return the options of a saved run, with those that may change as they are given.

    Parameters
    ----------
    start : SavedModel
        What to go on from.
    given : mapping
        The options that were given. `threads`, `files` and a larger or smaller `epochs` may differ.

    Raises
    ------
    OptionError
        If another one differs.
    """
    options = start.facts.options
    may = {name: given[name] for name in ("threads", "epochs") if name in given}
    others = {name: value for name, value in given.items() if name not in (*may, "files")}
    for now, before in changed(options, others):
        raise OptionError(
            f"--resume {start.path}: {now} is given, but the saved run has {before}; leave it out, "
            "or train anew"
        )
    if "files" in given:
        may["data"] = replace(options.data, files=given["files"])
    found = replace(options, **may)
    position = start.facts.position
    if found.epochs < position.epoch + (position.rows > 0):
        more = f" and {position.rows:,} rows of the next" if position.rows else ""
        raise OptionError(
            f"--resume {start.path}: --epochs is {found.epochs}, but the saved run has trained "
            f"{position.epoch}{more} already; leave it out"
        )
    return found
