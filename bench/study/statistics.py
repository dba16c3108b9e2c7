"""Means over seeds, and paired differences with their standard errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its standard error, NaN where there is one seed."""

    mean: float
    error: float
    seeds: int

    def __str__(self) -> str:
        if not self.seeds:
            return "-"
        error = "" if np.isnan(self.error) else f" ± {self.error:.2f}"
        return f"{round(self.mean, 2) + 0.0:+.2f}{error}".replace("-", "\N{MINUS SIGN}")


def estimate(values: list[float]) -> Estimate:
    """Return the mean of values and its standard error."""
    if not values:
        return Estimate(float("nan"), float("nan"), 0)
    array = np.array(values, np.float64)
    error = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else float("nan")
    return Estimate(float(array.mean()), float(error), len(array))


def loss_percent(found: Mapping[int, float], base: Mapping[int, float], higher: bool) -> Estimate:
    """Return by how many per cent a setting is worse than another with the same seeds.

    Parameters
    ----------
    found, base : mapping of int to float
        The metric by seed; seeds that only one of them has are left out.
    higher : bool
        Whether a higher metric is better.
    """
    return estimate(list(losses_percent(found, base, higher).values()))


def losses_percent(
    found: Mapping[int, float], base: Mapping[int, float], higher: bool
) -> dict[int, float]:
    """Return what `loss_percent` is the mean of, by seed."""
    sign = -100.0 if higher else 100.0
    common = sorted(found.keys() & base.keys())
    return {seed: sign * (found[seed] / base[seed] - 1.0) for seed in common}


def share_percent(part: Mapping[int, float], whole: Mapping[int, float]) -> Estimate:
    """Return the mean of values in per cent of the mean of others with the same seeds.

    The standard error is that of a ratio of means of paired values, to first order.
    """
    common = sorted(part.keys() & whole.keys())
    parts = np.array([part[seed] for seed in common])
    wholes = np.array([whole[seed] for seed in common])
    if not common or not wholes.mean():
        return estimate([])
    share = parts.mean() / wholes.mean()
    residual = estimate((100.0 * (parts - share * wholes) / wholes.mean()).tolist())
    return Estimate(100.0 * float(share), residual.error, len(common))
