"""Random sequences of calls with several tickets open at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from .pair import Batches, Pair

OPERATIONS = ["train", "train", "forward", "backward", "open", "open", "close", "close", "drop"]
OPERATIONS += ["prefetch", "consume", "consume", "evaluate", "flush", "rows", "set_rows", "lr"]
OPERATIONS += ["accumulate"]


class Scenario:
    """Operations in any order, with several tickets open at once."""

    def __init__(self, pair: Pair, batches: Batches, options: dict[str, Any]) -> None:
        self.pair, self.batches, self.options = pair, batches, options
        self.implicit: Any = None
        self.open: list[Any] = []
        self.prefetched: list[Any] = []
        self.rng = batches.rng

    def run(self, operation: str) -> None:
        getattr(self, f"do_{operation}")()

    def inputs(self) -> tuple[Any, Any]:
        return self.batches.inputs(**self.options)

    def forward(self, inputs: tuple[Any, Any], ticket: bool) -> Any:
        self.implicit = None  # Any training forward drops the implicit ticket.
        weights = self.batches.weights(len(inputs[0])) if self.rng.random() < 0.5 else None
        return self.pair.forward(*inputs, weights, ticket=ticket)

    def grad(self, out: Any) -> Any:
        return self.batches.grad(out, 0.01 if self.rng.random() < 0.2 else 0.0)

    def do_train(self) -> None:
        self.do_forward()
        self.do_backward()

    def do_forward(self) -> None:
        self.implicit = self.forward(self.inputs(), ticket=False)

    def do_backward(self) -> None:
        if self.implicit is not None:
            self.pair.backward(self.grad(self.implicit))
            self.implicit = None

    def do_open(self) -> None:
        self.open.append(self.forward(self.inputs(), ticket=True))

    def do_close(self) -> None:
        if self.open:
            out, tickets = self.open.pop(int(self.rng.integers(len(self.open))))
            self.pair.backward(self.grad(out), tickets)

    def do_accumulate(self) -> None:
        """One update of some of the open batches, in any order."""
        count = int(self.rng.integers(1, 4))
        order = self.rng.permutation(len(self.open))[:count]
        if len(order):
            pairs = [(self.grad(self.open[i][0]), self.open[i][1]) for i in order]
            self.open = [one for i, one in enumerate(self.open) if i not in order]
            self.pair.backward_of(pairs)

    def do_drop(self) -> None:
        if self.prefetched and self.rng.random() < 0.3:
            _, tickets = self.prefetched.pop(int(self.rng.integers(len(self.prefetched))))
            self.pair.drop(tickets)
        elif self.open:
            _, tickets = self.open.pop(int(self.rng.integers(len(self.open))))
            self.pair.drop(tickets)

    def do_prefetch(self) -> None:
        inputs = self.inputs()
        # Equal batches would be consumed oldest first; keep the scenario's own books simple.
        key = self.key(inputs)
        if all(key != self.key(other) for other, _ in self.prefetched):
            self.prefetched.append((inputs, self.pair.prefetch(*inputs)))

    def key(self, inputs: tuple[Any, Any]) -> Any:
        """What makes two batches one to a prefetch: rows after dropping, and offsets."""
        return self.pair.ref._parse(*inputs).key

    def do_consume(self) -> None:
        if not self.prefetched:
            return
        inputs, _ = self.prefetched.pop(int(self.rng.integers(len(self.prefetched))))
        if self.rng.random() < 0.5:
            self.open.append(self.forward(self.respelled(inputs), ticket=True))
        else:
            self.implicit = self.forward(self.respelled(inputs), ticket=False)

    def respelled(self, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
        """The same batch in other words: another integer type, other indices out of range."""
        indices = inputs[0].copy()
        parts = self.pair.ref._parse(*inputs).tables
        dropped = np.concatenate([part.rows for part in parts]) < 0
        indices[dropped] = self.rng.choice([-7, 2**31 - 2], int(dropped.sum()))
        return indices.astype(np.int32 if self.rng.random() < 0.5 else np.int64), inputs[1]

    def do_evaluate(self) -> None:
        self.pair.forward(*self.inputs(), training=False)

    def do_flush(self) -> None:
        self.pair.flush()

    def table(self) -> Any:
        return self.pair.ref.tables[int(self.rng.integers(len(self.pair.ref.tables)))]

    def do_rows(self) -> None:
        table = self.table()
        if table.num_embeddings == 0:
            return
        self.pair.rows(table.name, self.rng.integers(0, table.num_embeddings, 5))

    def do_set_rows(self) -> None:
        table = self.table()
        ids = self.rng.permutation(table.num_embeddings)[: self.rng.integers(1, 6)]
        values = self.rng.standard_normal((len(ids), table.embedding_dim))
        self.pair.set_rows(table.name, ids, values.astype(np.float32))

    def do_lr(self) -> None:
        """Another rate for the tables that share one of the optimizers."""
        self.pair.set_lr(self.table().name, float(self.rng.choice([0.0, 0.001, 0.5, 2.0])))
