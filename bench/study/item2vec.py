"""Item2vec: skip-gram with negative samples over sessions, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from study import synthetic
from study.events import DataError, Events
from study.model import Advance, Model, Outcome, batches, collection_outcome, ranking, target_ranks
from study.readers import read_events
from study.settings import Setting
from study.tables import make_optimizer, make_tables

import mpembed as mpe

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
WINDOW = 2  # items after the centre that are its contexts
NEGATIVES = 5
NEGATIVE_POWER = 0.75
BATCH = 512
EPOCHS = 4
TEST_SHARE = 0.1
TEST_PAIRS = 20_000
ITEM_EVENTS, USER_EVENTS = 5, 2  # rarer items and shorter sessions are left out


@dataclass
class Pairs:
    """Pairs of items: for training (centre, context), for the test (last item, next item)."""

    events: Events
    train: I64
    test: I64
    negatives: npt.NDArray[np.float64]  # cumulative shares of the items


def make_pairs(events: Events) -> Pairs:
    """Split the sessions by the time of their last event and make pairs."""
    starts = events.starts()
    last = np.lexsort((np.arange(len(starts) - 1), events.time[starts[1:] - 1]))
    test_users = np.zeros(len(starts) - 1, bool)
    test_users[last[len(last) - max(1, int(len(last) * TEST_SHARE)) :]] = True
    tested = test_users[events.user]
    train = [_apart(events, step, ~tested) for step in range(1, WINDOW + 1)]
    test = _apart(events, 1, tested)
    if not len(test) or not sum(map(len, train)):
        raise DataError(f"{events.name}: holds too few sessions; use a larger file")
    if len(test) > TEST_PAIRS:
        test = test[np.random.default_rng(0).permutation(len(test))[:TEST_PAIRS]]
    counts = np.bincount(events.item[~tested], minlength=events.num_items)
    shares = np.cumsum(counts**NEGATIVE_POWER)
    return Pairs(events, np.concatenate(train), test, shares / shares[-1])


def _apart(events: Events, step: int, chosen: npt.NDArray[np.bool_]) -> I64:
    """Return the pairs of items that are `step` events apart in a session."""
    same = (events.user[step:] == events.user[:-step]) & chosen[step:]
    return np.stack([events.item[:-step][same], events.item[step:][same]], axis=1)


class Item2vec(Model):
    """An item's vector predicts the context vectors of the items that follow it."""

    name = "item2vec"
    title = "Item2vec"
    metric = "hr@20"
    higher = True
    optimizer = "adagrad"
    rates: Mapping[str, float] = {"adagrad": 0.05, "rowwise_adagrad": 0.05, "adam": 0.002}
    several = True

    def load(self, path: Path | None, quick: bool) -> Pairs:
        if path is None:
            events = synthetic.sessions(60_000 if quick else 100_000, 3_000, 8)
        else:
            events = read_events(path)
        return make_pairs(events.frequent(ITEM_EVENTS, USER_EVENTS))

    def describe(self, data: Pairs) -> dict[str, Any]:
        events = data.events
        counts = {"events": len(events), "sessions": events.num_users, "items": events.num_items}
        return {"name": events.name, **counts, "rows": 2 * events.num_items}

    def run(self, data: Pairs, setting: Setting, seed: int, advance: Advance) -> Outcome:
        items = data.events.num_items
        optimizer = make_optimizer(setting, self.optimizer, self.rates)
        emb = make_tables(
            {"item": items, "context": items}, setting, optimizer, self.dim, 0.02, seed
        )
        rng = np.random.default_rng(seed)
        losses = []
        size = BATCH * setting.batch
        for places in batches(len(data.train), size, EPOCHS, rng, advance):
            draws = rng.random((len(places), NEGATIVES))
            drawn = np.searchsorted(data.negatives, draws, side="right")
            drawn = np.minimum(drawn, items - 1)
            step = _step_per_lookup if setting.per_lookup else _step
            losses.append(step(emb, data.train[places], drawn))
        return collection_outcome(emb, _test(emb, data, items), losses)


def _step(emb: mpe.EmbeddingBagCollection, pairs: I64, negatives: I64) -> float:
    centres = np.ascontiguousarray(pairs[:, 0])
    contexts = np.concatenate([pairs[:, 1:], negatives], axis=1)
    count, width = contexts.shape
    rows = emb.forward(
        {
            "item": (centres, np.arange(count + 1)),
            "context": (contexts.reshape(-1), np.arange(0, count * width + 1, width)),
        }
    )
    context = rows["context"].reshape(count, width, -1)
    loss, item_grad, context_grad = _gradients(rows["item"], context)
    emb.backward({"item": item_grad, "context": context_grad.reshape(count * width, -1)})
    return loss


def _step_per_lookup(emb: mpe.EmbeddingBagCollection, pairs: I64, negatives: I64) -> float:
    """Look up the contexts and the negatives each on their own, and update after each."""
    count, width = negatives.shape
    ones = np.arange(count + 1)
    positive, first = emb.forward(
        {"item": (pairs[:, 0].copy(), ones), "context": (pairs[:, 1].copy(), ones)}, ticket=True
    )
    negative, second = emb.forward(
        {
            "item": (pairs[:0, 0].copy(), np.zeros(count + 1, np.int64)),
            "context": (negatives.reshape(-1), np.arange(0, count * width + 1, width)),
        },
        ticket=True,
    )
    wrong = negative["context"].reshape(count, width, -1)
    context = np.concatenate([positive["context"][:, None], wrong], axis=1)
    loss, item_grad, context_grad = _gradients(positive["item"], context)
    emb.backward({"item": item_grad, "context": context_grad[:, 0].copy()}, first)
    wrong_grad = context_grad[:, 1:].reshape(count * width, -1)
    emb.backward({"item": item_grad[:0], "context": wrong_grad}, second)
    return loss


def _gradients(item: F32, context: F32) -> tuple[float, F32, F32]:
    """Return the mean loss, and its gradients summed over the batch.

    Parameters
    ----------
    item : (n, D) array of float32
        Rows of the centres.
    context : (n, w, D) array of float32
        Rows of each centre's context, then of its negatives.
    """
    logits = np.einsum("nd,nwd->nw", item, context)
    logits[:, 1:] *= -1.0
    wrong = 1.0 / (1.0 + np.exp(logits))  # the probability of the wrong answer
    error = np.where(np.arange(context.shape[1]) == 0, -wrong, wrong).astype(np.float32)
    loss = float(np.logaddexp(0.0, -logits).sum(1).mean())
    return loss, np.einsum("nw,nwd->nd", error, context), error[:, :, None] * item[:, None, :]


def _test(emb: mpe.EmbeddingBagCollection, data: Pairs, items: int) -> dict[str, float]:
    every = (np.arange(items), np.array([0, items]))
    rows = emb.forward({"item": every, "context": every}, training=False)
    ranks = []
    for start in range(0, len(data.test), 1_000):
        pairs = data.test[start : start + 1_000]
        scores = rows["item"][pairs[:, 0]] @ rows["context"].T
        scores[np.arange(len(pairs)), pairs[:, 0]] = -np.inf  # the last item is no next item
        ranks.append(target_ranks(scores, pairs[:, 1]))
    found = ranking(np.concatenate(ranks))
    return {"hr@20": found["hr@20"], "ndcg@10": found["ndcg@10"]}
