"""The examples run as a user runs them, without PyTorch, and what they train is the tables."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scripts
from folders import ROOT

import mpembed as mpe
from mpembed.train.data.synthetic import generate

EXAMPLES = ROOT / "examples"
NAMES = ["numpy_train", "jax_train"]
# An import of PyTorch fails, whether it is installed or not.
RUN = """
import runpy, sys
sys.modules["torch"] = None
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def needs(name: str) -> None:
    if name.startswith("jax"):
        pytest.importorskip("jax")


def loss_of_the_best_constant(clicks: int) -> float:
    """What a model that sees nothing of a click can reach."""
    share = float(generate(0, clicks).labels.mean())
    return float(-(share * np.log(share) + (1 - share) * np.log(1 - share)))


def output_of(name: str, folder: Path) -> str:
    """Run an example, with warnings as errors; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, str(EXAMPLES / f"{name}.py")],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_learns(name: str, tmp_path: Path) -> None:
    needs(name)
    printed = output_of(name, tmp_path)
    losses = [float(loss) for loss in re.findall(r" clicks  loss (\d\.\d+)$", printed, re.M)]
    assert len(losses) == 6
    assert losses[0] > losses[-1]
    assert losses[-1] < loss_of_the_best_constant(120 * 512) - 0.015
    ratio = re.search(r"^tables (\d+\.\d)x smaller", printed, re.M)
    assert ratio is not None
    assert float(ratio[1]) > 3


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_the_tables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the same model learns less."""
    needs(name)
    module = scripts.load(EXAMPLES / f"{name}.py")
    trained = np.mean(module.train(40)[-10:])
    monkeypatch.setattr(mpe.EmbeddingBagCollection, "backward", lambda *_, **__: None)
    assert trained < np.mean(module.train(40)[-10:]) - 0.003


def test_the_derivative_of_the_log_odds() -> None:
    module = scripts.load(EXAMPLES / "numpy_train.py")
    rng = np.random.default_rng(3)
    vectors, shift = rng.standard_normal((2, 5, 3, 4))
    odds, slopes = module.log_odds(vectors)
    h = 1e-6
    change = (module.log_odds(vectors + h * shift)[0] - module.log_odds(vectors - h * shift)[0]) / h
    np.testing.assert_allclose(change / 2, (slopes * shift).sum(axis=(1, 2)), rtol=1e-7)
    pairs = sum(vectors[:, i, 1:] * vectors[:, j, 1:] for i in range(3) for j in range(i)).sum(1)
    np.testing.assert_allclose(odds, vectors[..., 0].sum(1) + pairs)


def test_an_optimizer_of_ones_own_fits_the_targets(tmp_path: Path) -> None:
    printed = output_of("own_optimizer", tmp_path)
    losses = [float(loss) for loss in re.findall(r" steps  loss (\d\.\d+)$", printed, re.M)]
    assert len(losses) == 6
    assert losses[-1] < losses[0] / 3
