"""Log loss, area under the ROC curve and accuracy, exact, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def log_loss(labels: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """Mean binary cross entropy of logits, in nats.

    Parameters
    ----------
    labels : array_like
        Zeros and ones.
    logits : array_like
        Log odds, one a label.

    Returns
    -------
    float
        The mean of ``log(1 + exp(z)) - y z``, computed without overflow.
    """
    y, z = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    return float(np.mean(np.maximum(z, 0.0) - y * z + np.log1p(np.exp(-np.abs(z)))))


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Probability that a random positive scores above a random negative, ties counting one half.

    Parameters
    ----------
    labels : array_like
        Zeros and ones.
    scores : array_like
        Any scores, larger for the more likely click.

    Returns
    -------
    float
        The area under the ROC curve; NaN where the labels hold one class only.
    """
    positive = np.asarray(labels) > 0
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    _, group, sizes = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    mean_rank = ends - (sizes - 1) / 2.0  # ranks from 1; tied scores share their mean
    rank_sum = float(mean_rank[group.ravel()[positive]].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2.0) / (num_positive * num_negative)


def accuracy(labels: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """Share of the labels that the sign of the logit predicts.

    Parameters
    ----------
    labels : array_like
        Zeros and ones.
    logits : array_like
        Log odds, one a label; zero predicts no click.

    Returns
    -------
    float
        A number from 0 to 1.
    """
    return float(np.mean((np.asarray(logits) > 0) == (np.asarray(labels) > 0)))
