"""A chain of deltas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import collection
from helpers import train as train_small


@pytest.fixture
def chain(tmp_path: Path) -> Any:
    """A collection whose folder has a base and three deltas, each from the one before it."""
    emb = collection()
    train_small(emb, 1)
    emb.save(tmp_path / "base", track=True)
    for name in ("first", "second", "third"):
        since = emb.step
        train_small(emb, 1)
        emb.save(tmp_path / name, since=since)
    return emb
