"""A model that ``mpembed train --save`` has saved; read without PyTorch, and without trust."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from mpembed.collection import EmbeddingBagCollection
from mpembed.train.array_file import Arrays, DamagedError, read_arrays
from mpembed.train.data.encoding import Encoding
from mpembed.train.data.from_json import from_json
from mpembed.train.joined_tables import JoinedTables
from mpembed.train.options_json import described, restored
from mpembed.train.save_folder import KINDS, MANIFEST, named_file, read_manifest, table_kind
from mpembed.train.settings import TrainOptions
from mpembed.train.tables import check_tables

T = TypeVar("T")
Scores = dict[str, dict[str, float] | None]


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    Attributes
    ----------
    epoch : int
        Epochs that are done.
    rows : int
        Rows of the next one that are trained; all of them where only the scores of the last
        epoch's end are missing.
    """

    epoch: int = 0
    rows: int = 0


@dataclass(frozen=True)
class DataFacts:
    """What a run knows its data by.

    Attributes
    ----------
    rows, train_rows : int
        All, and those of the training part.
    digest : str
        Of all clicks.
    """

    rows: int
    train_rows: int
    digest: str


@dataclass(frozen=True)
class RunFacts:
    """What a save says of its run.

    Attributes
    ----------
    options : TrainOptions
        Those of the run: one setting and one seed.
    versions : dict of str to str
        Of the packages that results depend on.
    threads : int
        Of PyTorch.
    data : DataFacts
        Its data.
    position : Position
        How far it has come.
    ranks : int
        How many trained it, and have a file of tables each.
    scores : dict of str to dict, or None
        Of the validation and the test part, where they are measured.
    """

    options: TrainOptions
    versions: dict[str, str]
    threads: int
    data: DataFacts
    position: Position
    ranks: int
    scores: Scores

    def as_json(self, encoding: Encoding) -> dict[str, Any]:
        """Return all of it as JSON, and what the encoding says of itself."""
        return {
            "options": described(self.options),
            "versions": self.versions,
            "threads": self.threads,
            "data": asdict(self.data),
            "position": asdict(self.position),
            "ranks": self.ranks,
            "scores": self.scores,
            "encoding": encoding.describe(),
        }

    @property
    def steps(self) -> int:
        """How many steps the run has made."""
        size = self.options.batch_size
        epoch, rest = (-(-n // size) for n in (self.data.train_rows, self.position.rows))
        return self.position.epoch * epoch + rest


def facts_from(model: Mapping[str, Any]) -> RunFacts:
    """Return what a manifest says; KeyError, TypeError or ValueError if it is not of a save."""
    options = restored(model["options"])
    position = from_json(Position, model["position"])
    data = from_json(DataFacts, model["data"])
    threads, versions, scores = model["threads"], model["versions"], model["scores"]
    ranks = model["ranks"]
    counts = *asdict(position).values(), data.rows, data.train_rows, threads, ranks
    if not all(type(one) is int and one >= 0 for one in counts):
        raise ValueError("a number is not valid")
    if not all(isinstance(text, str) for pair in versions.items() for text in pair):
        raise ValueError("versions are not texts")
    ends = data.train_rows, data.rows
    if (
        not 0 < ends[0] < ends[1]
        or position.rows > ends[0]
        or (position.epoch * ends[0] + position.rows > options.epochs * ends[0])
    ):
        raise ValueError("it is at a place that the data do not have")
    if position.rows % options.batch_size and position.rows != data.train_rows:
        raise ValueError("it is in the middle of a batch")
    if len(options.settings) != 1 or options.seeds != 1:
        raise ValueError("it has several settings or seeds")
    if set(scores) != {"validation", "test"} or not all(map(_are_scores, scores.values())):
        raise ValueError("its scores are not valid")
    return RunFacts(options, versions, threads, data, position, ranks, scores)


def _are_scores(found: Any) -> bool:
    return found is None or (
        isinstance(found, dict)
        and set(found) == {"log_loss", "auc", "accuracy"}
        and all(type(one) is float or one is None for one in found.values())
    )


class SavedModel:
    """A model in a folder.

    Parameters
    ----------
    path : path-like
        The folder.

    Attributes
    ----------
    path : Path
        The folder.
    facts : RunFacts
        What it says of its run.

    Raises
    ------
    DamagedError
        If it is not a saved model, or cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._manifest: dict[str, Any] = self._read(lambda: read_manifest(self.path))
        try:
            self.facts = facts_from(self._manifest["model"])
            if self.facts.ranks != len(self._manifest["files"]) - len(KINDS) + 1:
                raise ValueError("it has not a file of tables for each rank")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            text = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
            raise DamagedError(f"{self.path / MANIFEST}: is damaged: {text}") from None

    def check_unchanged(self) -> None:
        """Raise DamagedError if a run has saved to the folder since this was read."""
        if self._read(lambda: read_manifest(self.path)) != self._manifest:
            raise DamagedError(f"{self.path}: a run has saved meanwhile; try again")

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except FileNotFoundError as error:
            if Path(error.filename or "") == self.path / MANIFEST:
                raise DamagedError(
                    f"{self.path}: no model is saved there (it has no {MANIFEST})"
                ) from None
            raise DamagedError(
                f"{error.filename}: is missing; if a run has saved meanwhile, try again"
            ) from None
        except OSError as error:
            raise DamagedError(
                f"{error.filename or self.path}: cannot be read: {error.strerror or error}"
            ) from None

    def _file(self, kind: str) -> Path:
        return self._read(lambda: named_file(self.path, self._manifest, kind))

    def encoding(self) -> Encoding:
        """Read how its data are encoded."""
        file = self._file("encoding")
        arrays = self._read(lambda: read_arrays(file))
        try:
            return Encoding.restore(self._manifest["model"]["encoding"], arrays)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DamagedError(f"{file}: {error}") from None

    def arrays(self) -> Arrays:
        """Read all but the tables and the encoding."""
        file = self._file("dense")
        return self._read(lambda: read_arrays(file))

    def tables(self, encoding: Encoding, rank: int = 0) -> EmbeddingBagCollection:
        """Read the tables of a rank, which have the rows of an encoding."""
        file = self._file(table_kind(rank))

        def load() -> EmbeddingBagCollection:
            try:
                return EmbeddingBagCollection.load(file, device="cpu")
            except ValueError as error:
                raise DamagedError(str(error)) from None

        tables = self._read(load)
        if tables.updates != self.facts.steps:
            raise DamagedError(
                f"{file}: has made {tables.updates} updates, not the {self.facts.steps} of the run"
            )
        try:
            place = rank, self.facts.ranks
            check_tables(tables, encoding.table_rows, encoding.columns, self.facts.options, *place)
        except ValueError as error:
            raise DamagedError(f"{file}: {error}") from None
        return tables

    def all_tables(self, encoding: Encoding) -> EmbeddingBagCollection | JoinedTables:
        """Read the tables of all ranks."""
        parts = [self.tables(encoding, rank) for rank in range(self.facts.ranks)]
        return parts[0] if len(parts) == 1 else JoinedTables(parts, encoding.columns.categorical)
