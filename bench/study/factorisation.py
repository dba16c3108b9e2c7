"""Biased matrix factorisation of liked and not liked items, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from study import synthetic
from study.events import DataError, Events
from study.model import Advance, Model, Outcome, batches, collection_outcome
from study.readers import read_events
from study.settings import Setting
from study.tables import make_optimizer, make_tables

import mpembed as mpe
from mpembed.train.metrics import auc, log_loss

LIKED = 4.0  # the least rating of a liked item
TEST_SHARE = 0.15
BATCH = 256
EPOCHS = 4
BIAS_RATE = 0.05


@dataclass
class Ratings:
    """Ratings, split at random into a training and a test part."""

    events: Events
    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    liked: npt.NDArray[np.float32]


class Factorisation(Model):
    """Log odds = user . item + user bias + item bias + a constant."""

    name = "factorisation"
    title = "Matrix factorisation"
    metric = "log loss"
    higher = False
    optimizer = "rowwise_adagrad"
    rates: Mapping[str, float] = {"rowwise_adagrad": 0.04, "adagrad": 0.04, "adam": 0.003}

    def load(self, path: Path | None, quick: bool) -> Ratings:
        if path is None:
            events = synthetic.ratings(60_000 if quick else 120_000, 2_000, 1_500)
        else:
            events = read_events(path)
        if events.rating is None:
            raise DataError(
                f"{path}: has no ratings; give --data factorisation= a file that has, or leave "
                "factorisation out of --models"
            )
        order = np.random.default_rng(0).permutation(len(events))
        cut = int(len(events) * TEST_SHARE)
        liked = (events.rating >= LIKED).astype(np.float32)
        return Ratings(events, order[cut:], order[:cut], liked)

    def describe(self, data: Ratings) -> dict[str, Any]:
        events = data.events
        counts = {"events": len(events), "users": events.num_users, "items": events.num_items}
        return {"name": events.name, **counts, "rows": events.num_users + events.num_items}

    def run(self, data: Ratings, setting: Setting, seed: int, advance: Advance) -> Outcome:
        events = data.events
        counts = {"user": events.num_users, "item": events.num_items}
        optimizer = make_optimizer(setting, self.optimizer, self.rates)
        emb = make_tables(counts, setting, optimizer, self.dim, 0.1, seed)
        biases = mpe.EmbeddingBagCollection(
            [mpe.TableConfig(name, count, 1, init="zeros") for name, count in counts.items()],
            optimizer=mpe.RowwiseAdagrad(lr=BIAS_RATE),
            seed=seed,
        )
        rate = float(data.liked[data.train].mean())
        constant = np.float32(np.log(rate / (1.0 - rate)))
        losses = []
        rng = np.random.default_rng(seed)
        size = BATCH * setting.batch
        for places in batches(len(data.train), size, EPOCHS, rng, advance):
            at = data.train[places]
            losses.append(_step(emb, biases, constant, events, at, data.liked[at]))
        logits = _predict(emb, biases, constant, events, data.test)
        liked = data.liked[data.test]
        metrics = {"log loss": log_loss(liked, logits), "auc": auc(liked, logits)}
        return collection_outcome(emb, metrics, losses)


def _batch(events: Events, at: npt.NDArray[np.int64]) -> dict[str, Any]:
    ones = np.arange(len(at) + 1)
    return {"user": (events.user[at], ones), "item": (events.item[at], ones)}


def _step(
    emb: mpe.EmbeddingBagCollection,
    biases: mpe.EmbeddingBagCollection,
    constant: np.float32,
    events: Events,
    at: npt.NDArray[np.int64],
    liked: npt.NDArray[np.float32],
) -> float:
    batch = _batch(events, at)
    rows, bias = emb.forward(batch), biases.forward(batch)
    logits = (rows["user"] * rows["item"]).sum(1) + bias.sum(1) + constant
    error = ((1.0 / (1.0 + np.exp(-logits)) - liked) / len(at))[:, None].astype(np.float32)
    emb.backward({"user": error * rows["item"], "item": error * rows["user"]})
    biases.backward(np.repeat(error, 2, axis=1))
    return log_loss(liked, logits)


def _predict(
    emb: mpe.EmbeddingBagCollection,
    biases: mpe.EmbeddingBagCollection,
    constant: np.float32,
    events: Events,
    at: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    batch = _batch(events, at)
    rows = emb.forward(batch, training=False)
    bias = biases.forward(batch, training=False)
    logits: npt.NDArray[np.float32] = (rows["user"] * rows["item"]).sum(1) + bias.sum(1) + constant
    return logits
