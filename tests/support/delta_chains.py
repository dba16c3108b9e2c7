"""A folder with a checkpoint, the base, and deltas of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import mpembed as mpe


def state(emb: mpe.EmbeddingBagCollection) -> dict[str, Any]:
    return {name: np.array(array) for name, array in emb.state_arrays().items()}


def load(folder: Path, *deltas: str, device: str | None = None) -> mpe.EmbeddingBagCollection:
    files = [folder / one for one in deltas]
    return mpe.EmbeddingBagCollection.load(folder / "base", device=device, deltas=files)
