"""What tests of hostile files share: a checkpoint in parts, and both readers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import checkpoint_files
import pytest
from background_saves import Gate
from checkpoint_files import READERS, CheckpointFile

from mpembed._collection import snapshot


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> CheckpointFile:
    """Return a checkpoint that no test changes."""
    path = tmp_path_factory.mktemp("hostile") / "file"
    return CheckpointFile.of(checkpoint_files.make(), path)


@pytest.fixture
def parts(original: CheckpointFile) -> CheckpointFile:
    """Return a checkpoint to change."""
    return copy.deepcopy(original)


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> Any:
    """Return each reader: why it refuses a file, or None."""
    return READERS[request.param]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Chunks of a few rows, each of which waits to be let through."""
    made, pieces = Gate(), snapshot.Snapshot.pieces
    monkeypatch.setattr(snapshot, "_CHUNK", 1)
    monkeypatch.setattr(snapshot.Snapshot, "pieces", lambda self: made.pieces(pieces(self)))
    yield made
    made.release()
