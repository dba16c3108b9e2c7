"""Interactions with something to learn, the same on every machine: the default data.

Items have a skewed popularity and latent factors. Sessions are Markov chains over similar items;
ratings come from a product of latent factors and biases.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from study.events import Events

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
SKEW = 0.9  # exponent of Zipf's law
LATENT = 8
SUCCESSORS = 24  # items that an item leads to
JUMP = 0.15  # share of events that ignore the last item
LOOK_BACK = 0.3  # share of events that follow the item before the last one


def popularity(items: int) -> F64:
    """Return the share of events of each item, by Zipf's law."""
    weights = 1.0 / np.arange(1, items + 1, dtype=np.float64) ** SKEW
    shares: F64 = weights / weights.sum()
    return shares


def _draw(cumulative: F64, draws: F64) -> I64:
    found = np.searchsorted(cumulative, draws * cumulative[-1], side="right")
    places: I64 = np.minimum(found, len(cumulative) - 1).astype(np.int64)
    return places


def _successors(rng: np.random.Generator, items: int, share: F64) -> tuple[I64, F64]:
    """Return each item's successors and their cumulative shares: similar and popular ones."""
    vectors = rng.standard_normal((items, LATENT))
    targets = vectors @ rng.standard_normal((LATENT, LATENT)) / np.sqrt(LATENT)
    following = np.empty((items, SUCCESSORS), np.int64)
    cumulative = np.empty((items, SUCCESSORS))
    for at in range(items):
        score = 1.2 * (targets @ vectors[at]) / np.sqrt(LATENT) + 0.5 * np.log(share)
        best = np.argpartition(-score, SUCCESSORS)[:SUCCESSORS]
        best = best[np.lexsort((best, -score[best]))]
        weights = np.exp(score[best] - score[best].max())
        following[at], cumulative[at] = best, np.cumsum(weights / weights.sum())
    return following, cumulative


def sessions(events: int, items: int, length: int, seed: int = 0) -> Events:
    """Make sessions of a mean length.

    Parameters
    ----------
    events, items, length : int
        About how many events, how many items at most, and events a session.
    seed : int
        Another seed is another world.
    """
    rng = np.random.default_rng(seed)
    share = popularity(items)
    following, cumulative = _successors(rng, items, share)
    count = max(1, events // length)
    lengths = rng.integers(max(2, length // 2), length + length // 2 + 1, count)
    steps = int(lengths.max())
    whole = np.cumsum(share)
    chain = np.empty((steps, count), np.int64)
    chain[0] = _draw(whole, rng.random(count))
    for step in range(1, steps):
        back = rng.random(count) < LOOK_BACK
        last = np.where(back, chain[max(0, step - 2)], chain[step - 1])
        place = (rng.random(count)[:, None] > cumulative[last]).sum(1)
        chosen = following[last, np.minimum(place, SUCCESSORS - 1)]
        jumps = rng.random(count) < JUMP
        chain[step] = np.where(jumps, _draw(whole, rng.random(count)), chosen)
    user = np.repeat(np.arange(count), lengths)
    at = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    made = Events("synthetic", user, chain[at, user], at.astype(np.float64))
    return made.renumbered()


def ratings(events: int, users: int, items: int, seed: int = 0) -> Events:
    """Make ratings of 5 (liked) and 1, no pair of user and item twice."""
    rng = np.random.default_rng(seed)
    share = np.cumsum(popularity(items))
    activity = np.cumsum(rng.gamma(1.0, 1.0, users) + 0.1)
    drawn = 2 * events
    pairs = _draw(activity, rng.random(drawn)) * items + _draw(share, rng.random(drawn))
    first = np.sort(np.unique(pairs, return_index=True)[1])[:events]
    user, item = np.divmod(pairs[first], items)
    p = rng.standard_normal((users, LATENT))
    q = rng.standard_normal((items, LATENT))
    liking = rng.standard_normal(users) * 0.6
    quality = rng.standard_normal(items) * 0.7
    odds = 0.3 + liking[user] + quality[item]
    odds += 1.8 * (p[user] * q[item]).sum(1) / np.sqrt(LATENT)
    liked = rng.random(len(user)) < 1.0 / (1.0 + np.exp(-odds))
    rating = np.where(liked, 5.0, 1.0).astype(np.float32)
    made = Events("synthetic", user, item, np.arange(len(user), dtype=np.float64), rating)
    return made.renumbered()
