"""A sequence model: self-attention over the items so far predicts the next one.

All items are scored. The table of items is looked up three times a step (inputs, targets,
negatives) and updated once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from study import synthetic
from study.events import DataError, Events
from study.model import Advance, Model, Outcome, batches, collection_outcome, ranking, target_ranks
from study.readers import read_events
from study.settings import Setting
from study.tables import make_optimizer, make_tables
from torch import nn

import mpembed as mpe

I64 = npt.NDArray[np.int64]
LENGTH = 32  # inputs of a window
BATCH = 32  # windows a step
EPOCHS = 6
NEGATIVES = 128  # shared by a batch
TEST_SHARE = 0.15  # of each user's events, the last ones
DENSE_RATE = 1e-3
ITEM_EVENTS, USER_EVENTS = 5, 5


@dataclass
class Windows:
    """Windows of events of one user each, as (first, end) places; the test's score their end."""

    events: Events
    train: I64
    test: I64
    scored: I64  # of each test window: events at its end that are predicted


def make_windows(events: Events) -> Windows:
    """Cut each user's events into training windows, and test windows over their last part."""
    train: list[tuple[int, int]] = []
    test: list[tuple[int, int]] = []
    scored: list[int] = []
    starts = events.starts()
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        cut = end - max(1, int((end - start) * TEST_SHARE))
        for last in range(cut, start + 1, -LENGTH):
            train.append((max(start, last - LENGTH - 1), last))
        for first in range(cut, end, LENGTH // 2):
            stop = min(end, first + LENGTH // 2)
            test.append((max(start, stop - LENGTH - 1), stop))
            scored.append(stop - first)
    windows = [w for w in train if w[1] - w[0] > 1]
    if not windows:
        raise DataError(f"{events.name}: holds too few events a user; use a larger file")
    return Windows(events, np.array(windows), np.array(test), np.array(scored))


class Block(nn.Module):
    """Self-attention that looks back, and a perceptron."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.perceptron = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.before(x)).chunk(3, dim=-1)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen)
        result: torch.Tensor = x + self.perceptron(self.between(x))
        return result


class Attention(nn.Module):
    """Rows of items in, a vector to compare with rows of items out, at each position."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(LENGTH, dim) * 0.05)
        self.block, self.norm = Block(dim), nn.LayerNorm(dim)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(self.block(rows + self.position[: rows.shape[1]]))
        return result


class Sequence(Model):
    """Self-attention, next item."""

    name = "sequence"
    title = "Sequence model"
    metric = "ndcg@10"
    higher = True
    optimizer = "adagrad"
    rates: Mapping[str, float] = {"adagrad": 0.02, "rowwise_adagrad": 0.02, "adam": 0.001}
    several = True

    def load(self, path: Path | None, quick: bool) -> Windows:
        if path is None:
            events = synthetic.sessions(30_000 if quick else 60_000, 2_000, 80)
        else:
            events = read_events(path)
        return make_windows(events.frequent(ITEM_EVENTS, USER_EVENTS))

    def describe(self, data: Windows) -> dict[str, Any]:
        events = data.events
        counts = {"events": len(events), "users": events.num_users, "items": events.num_items}
        return {"name": events.name, **counts, "rows": events.num_items}

    def run(self, data: Windows, setting: Setting, seed: int, advance: Advance) -> Outcome:
        torch.manual_seed(seed)
        items, dim = data.events.num_items, setting.dim or self.dim
        optimizer = make_optimizer(setting, self.optimizer, self.rates)
        emb = make_tables({"item": items}, setting, optimizer, self.dim, 0.05, seed)
        net = Attention(dim)
        dense = torch.optim.Adam(net.parameters(), lr=DENSE_RATE)
        rng = np.random.default_rng(seed)
        losses = []
        size = BATCH * setting.batch
        for places in batches(len(data.train), size, EPOCHS, rng, advance):
            ids, mask = padded(data.events.item, data.train[places])
            negatives = rng.choice(items, min(NEGATIVES, items), replace=False)
            dense.zero_grad(set_to_none=True)
            losses.append(_step(emb, net, ids, mask, negatives, setting.per_lookup))
            dense.step()
        return collection_outcome(emb, _test(emb, net, data), losses)


def padded(item: I64, windows: I64) -> tuple[I64, npt.NDArray[np.bool_]]:
    """Return the items of windows, one more than the inputs, and which of the places hold one."""
    lengths = windows[:, 1] - windows[:, 0]
    mask = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
    at = windows[:, :1] + np.arange(mask.shape[1])[None, :]
    return item[np.where(mask, at, 0)], mask


class _Lookup:
    """Rows of a lookup as a leaf of PyTorch's graph, and its ticket."""

    def __init__(self, emb: mpe.EmbeddingBagCollection, ids: I64) -> None:
        offsets = np.array([0, len(ids)])
        made, self.ticket = emb.forward({"item": (ids, offsets)}, ticket=True)
        self.rows = torch.from_numpy(made["item"]).requires_grad_()

    def pair(self) -> tuple[Any, mpe.Ticket]:
        assert self.rows.grad is not None
        return {"item": self.rows.grad.contiguous().numpy()}, self.ticket


def _step(
    emb: mpe.EmbeddingBagCollection,
    net: Attention,
    ids: I64,
    mask: npt.NDArray[np.bool_],
    negatives: I64,
    per_lookup: bool,
) -> float:
    valid = mask[:, 1:]  # inputs that have a target
    inputs, targets = ids[:, :-1][valid], ids[:, 1:][valid]
    looked = _Lookup(emb, inputs), _Lookup(emb, targets), _Lookup(emb, negatives)
    hidden = _hidden(net, looked[0].rows, valid)
    right = (hidden * looked[1].rows).sum(1, keepdim=True)
    wrong = hidden @ looked[2].rows.T
    same = torch.from_numpy(targets[:, None] == negatives[None, :])
    logits = torch.cat([right, wrong.masked_fill(same, float("-inf"))], dim=1)
    loss = nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
    loss.backward()
    pairs = [lookup.pair() for lookup in looked]
    if per_lookup:
        for grad, ticket in pairs:
            emb.backward(grad, ticket)
    else:
        emb.backward(pairs)
    return float(loss.item())


def _hidden(net: Attention, rows: torch.Tensor, valid: npt.NDArray[np.bool_]) -> torch.Tensor:
    """Return the model's vectors at the valid places, in their order."""
    places = torch.from_numpy(np.flatnonzero(valid))
    filled = torch.zeros(valid.size, rows.shape[1]).index_copy(0, places, rows)
    found: torch.Tensor = net(filled.view(*valid.shape, -1)).flatten(0, 1)[places]
    return found


@torch.no_grad()
def _test(emb: mpe.EmbeddingBagCollection, net: Attention, data: Windows) -> dict[str, float]:
    items = data.events.num_items
    every = (np.arange(items), np.array([0, items]))
    table = torch.from_numpy(emb.forward({"item": every}, training=False)["item"])
    ranks = []
    for start in range(0, len(data.test), 64):
        windows, scored = data.test[start : start + 64], data.scored[start : start + 64]
        ids, mask = padded(data.events.item, windows)
        valid = mask[:, 1:]
        place = np.arange(valid.shape[1])[None, :]
        ends = valid.sum(1, keepdims=True)
        wanted = (valid & (place >= ends - scored[:, None]))[valid]
        hidden = _hidden(net, table[torch.from_numpy(ids[:, :-1][valid])], valid)
        scores = (hidden[torch.from_numpy(wanted)] @ table.T).numpy()
        ranks.append(target_ranks(scores, ids[:, 1:][valid][wanted]))
    found = ranking(np.concatenate(ranks))
    return {"ndcg@10": found["ndcg@10"], "hr@10": found["hr@10"]}
