"""What a run says of rounding noise."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich")

import mpembed as mpe
from mpembed import rounding
from mpembed.train.report import rounding_notes


def run(setting: str, seed: int, *ratios: float) -> dict[str, Any]:
    """Return what a trial says of tables with these ratios."""
    tables = [mpe.TableConfig(f"C{i}", 9, 4, "int4") for i in range(len(ratios))]
    sums = np.array([[100, round(ratio * 1000), 1000] for ratio in ratios])
    found = rounding.judge(tables, [0.0] * len(tables), sums)
    judged = {name: asdict(table) for name, table in found.items()}
    return {"setting": setting, "seed": seed, "rounding": judged}


def test_settings_with_too_much_noise_are_named_with_their_worst_table() -> None:
    runs = [run("fine", 3, 0.01, 0.1), run("int4", 3, 0.2, 0.5, 0.01), run("int4", 4, 9.0)]
    (note,) = rounding_notes({"config": {"seed": 3}, "runs": runs})
    assert note.startswith("int4: rounding noise exceeds 0.1 of the updates in 2 of 3 tables")
    assert "most in C1 (0.5); raise precision: int" in note
