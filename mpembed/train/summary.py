"""Means over seeds and paired differences to the first setting."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

#: Fewer seeds say too little of how much a mean may be off.
_SEEDS_FOR_ERROR = 3


def standard_error(values: npt.NDArray[np.float64]) -> float | None:
    """Return the standard error of a mean over seeds.

    Parameters
    ----------
    values : ndarray of float64
        One a seed.

    Returns
    -------
    float or None
        The error; None with fewer than three seeds.
    """
    if len(values) < _SEEDS_FOR_ERROR:
        return None
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def paired_difference(
    losses: npt.NDArray[np.float64], base: npt.NDArray[np.float64]
) -> dict[str, float | None]:
    """Compare losses of the same seeds and batches.

    Parameters
    ----------
    losses, base : ndarray of float64
        Log losses, one a seed, in the same order.

    Returns
    -------
    dict
        ``percent``, the mean over the seeds of ``100 * (loss / base - 1)``, and ``standard_error``
        of that mean, see :func:`standard_error`.
    """
    percent = 100.0 * (losses / base - 1.0)
    return {"percent": float(percent.mean()), "standard_error": standard_error(percent)}


def _measured(run: dict[str, Any], *keys: str) -> float | None:
    """Return a number of a run, None where it was stopped before that."""
    found: Any = run
    for key in keys:
        found = None if found is None else found[key]
    return found  # type: ignore[no-any-return]  # a number at the end of the keys


def _row(runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    def measured(*keys: str) -> npt.NDArray[np.float64]:
        values = (_measured(run, *keys) for run in runs)
        return np.array([value for value in values if value is not None], np.float64)

    def mean(*keys: str) -> float | None:
        values = measured(*keys)
        return float(values.mean()) if len(values) else None

    def difference(part: str) -> dict[str, float | None]:
        pairs = [
            [_measured(one, part, "log_loss") for one in pair]
            for pair in zip(runs, base, strict=True)
        ]
        both = [pair for pair in pairs if None not in pair]
        if not both:
            return {"percent": None, "standard_error": None}
        losses, base_losses = np.array(both, np.float64).T
        return paired_difference(losses, base_losses)

    return {
        "setting": runs[0]["setting"],
        "seeds": len(runs),
        "log_loss": mean("test", "log_loss"),
        "log_loss_error": standard_error(measured("test", "log_loss")),
        "difference": difference("test"),
        "online_log_loss": mean("online", "log_loss"),
        "online_difference": difference("online"),
        "auc": mean("test", "auc"),
        "accuracy": mean("test", "accuracy"),
        "validation_log_loss": mean("validation", "log_loss"),
        "bytes": runs[0]["memory"]["total"],
        "ratio": runs[0]["memory"]["ratio"],
        "ratio_embeddings": runs[0]["memory"]["ratio_embeddings"],
        "hit_rate": mean("hit_rate"),
        "step_ms": mean("step_ms"),
        "embedding_ms": mean("embedding_ms"),
    }


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each setting.

    Parameters
    ----------
    runs : list of dict
        Results of trials, with the seeds in the same order for every setting. What is None, as a
        run was stopped before that, is left out of the means.

    Returns
    -------
    list of dict
        Rows in the order of the settings; differences are to the first.
    """
    by_setting: dict[str, list[dict[str, Any]]] = {}
    for one in runs:
        by_setting.setdefault(one["setting"], []).append(one)
    base = next(iter(by_setting.values()))
    return [_row(of_setting, base) for of_setting in by_setting.values()]
