"""Drive a collection and the reference with the same calls and compare every byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .collection import RefCollection


def assert_same(got: Any, expected: Any, what: str) -> None:
    """Equal type, shape and bytes; any NaN equals any other."""
    if isinstance(expected, dict):
        assert sorted(got) == sorted(expected), what
        for key in expected:
            assert_same(got[key], expected[key], f"{what}[{key}]")
        return
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype, f"{what}: {got.dtype}, expected {expected.dtype}"
    assert got.shape == expected.shape, f"{what}: {got.shape}, expected {expected.shape}"
    if _plain(got) == _plain(expected):
        return
    at = tuple(np.argwhere(_comparable(got) != _comparable(expected))[0].tolist())
    raise AssertionError(f"{what} differs first at {at}: {got[at]!r}, expected {expected[at]!r}")


def _comparable(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if a.dtype.kind != "f":
        return a
    # The sign and payload of a NaN are nobody's promise.
    a = np.where(np.isnan(a), a.dtype.type(np.nan), a)
    return np.ascontiguousarray(a).view(f"u{a.dtype.itemsize}").reshape(a.shape)


def _plain(a: npt.NDArray[Any]) -> bytes:
    return _comparable(a).tobytes()


class Pair:
    """A collection under test and the reference; each call goes to both."""

    def __init__(self, emb: Any, ref: RefCollection) -> None:
        self.emb, self.ref = emb, ref
        self.check("construction")

    def check(self, what: str) -> None:
        """Compare the whole state."""
        assert_same(self.emb.state_arrays(), self.ref.state_arrays(), what)

    def forward(self, indices: Any, offsets: Any, weights: Any = None, **options: Any) -> Any:
        """Compare the outputs; returns them, or with `ticket=True` (outputs, two tickets)."""
        got = self.emb.forward(indices, offsets, weights, **options)
        expected = self.ref.forward(indices, offsets, weights, **options)
        tickets = None
        if options.get("ticket"):
            tickets = got[1], expected[1]
            got, expected = got[0], expected[0]
        assert_same(got, expected, "forward")
        self.check("state after forward")
        return (expected, tickets) if tickets else expected

    def backward(self, grad: Any, tickets: Any = (None, None)) -> None:
        """Compare the gradients of the weights, or that both refuse a non-finite row."""
        calls = [
            lambda who=who, ticket=ticket: [who.backward(grad, ticket)]
            for who, ticket in zip((self.emb, self.ref), tickets, strict=True)
        ]
        self._updated(calls)

    def backward_of(self, pairs: list[tuple[Any, Any]]) -> None:
        """Compare one update of several batches; each pair is a gradient and two tickets."""
        calls = [
            lambda who=who, i=i: who.backward([(grad, tickets[i]) for grad, tickets in pairs])
            for i, who in enumerate((self.emb, self.ref))
        ]
        self._updated(calls)

    def _updated(self, calls: Any) -> None:
        """Compare two backwards that return a list of gradients of weights."""
        results: list[Any] = []
        for call in calls:
            try:
                results.append(call())
            except FloatingPointError:
                results.append(None)
        self.check("state after backward")
        assert (results[0] is None) == (results[1] is None), "one refuses a row, one does not"
        for got, expected in zip(results[0] or [], results[1] or [], strict=True):
            assert (got is None) == (expected is None)
            if expected is not None:
                assert_same(got, expected, "gradient of per_sample_weights")

    def set_lr(self, name: str, lr: float) -> None:
        """Set the rate of the optimizer of a table, which others may share, if it has one."""
        for who in (self.emb, self.ref):
            optimizer = who.optimizers[name]
            if optimizer is not None:  # FTRL divides by its rate
                optimizer.lr = lr or (0.125 if hasattr(optimizer, "lr_power") else 0.0)

    def prefetch(self, indices: Any, offsets: Any) -> Any:
        """Returns the two tickets."""
        tickets = self.emb.prefetch(indices, offsets), self.ref.prefetch(indices, offsets)
        self.check("state after prefetch")
        return tickets

    def drop(self, tickets: Any) -> None:
        """Drop both tickets."""
        for ticket in tickets:
            ticket.drop()
        self.check("state after drop")

    def flush(self) -> None:
        """Flush both."""
        self.emb.flush()
        self.ref.flush()
        self.check("state after flush")

    def rows(self, name: str, ids: Any) -> None:
        """Compare the current values of rows."""
        assert_same(self.emb.rows(name, ids), self.ref.rows(name, ids), "rows")
        self.check("state after rows")

    def set_rows(self, name: str, ids: Any, values: Any) -> None:
        """Give rows new values in both."""
        self.emb.set_rows(name, ids, values)
        self.ref.set_rows(name, ids, values)
        self.check("state after set_rows")


class Batches:
    """Random table-major batches with duplicates, empty bags and, if asked, bad indices."""

    def __init__(self, ref: RefCollection, seed: int, index_type: Any = np.int64) -> None:
        self.ref, self.rng, self.index_type = ref, np.random.default_rng(seed), index_type

    def inputs(self, batch: int, longest: int, bad: float = 0.0) -> tuple[Any, Any]:
        """`(indices, offsets)` with a few rows much hotter than the others."""
        lengths, indices = [], []
        for table in self.ref.tables:
            n = self.rng.integers(0, longest + 1, batch)
            n *= table.num_embeddings > 0 or bad > 0
            ids = self.rng.integers(0, max(1, table.num_embeddings), n.sum())
            hot = self.rng.random(len(ids)) < 0.3
            ids = np.where(hot, ids // 4, ids)
            wrong = self.rng.choice([-1, table.num_embeddings, 2**31 - 1], len(ids))
            wrongly = (self.rng.random(len(ids)) < bad) | (table.num_embeddings == 0)
            indices.append(np.where(wrongly, wrong, ids))
            lengths.append(n)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        return (
            np.concatenate(indices).astype(self.index_type),
            offsets.astype(self.index_type),
        )

    def weights(self, count: int) -> npt.NDArray[np.float32]:
        """Per-sample weights."""
        return self.rng.standard_normal(count).astype(np.float32)

    def grad(self, out: Any, nonfinite: float = 0.0) -> Any:
        """A gradient in the shape of an output."""
        if isinstance(out, dict):
            return {name: self.grad(part, nonfinite) for name, part in out.items()}
        grad = self.rng.standard_normal(out.shape).astype(np.float32)
        bad = self.rng.choice(np.array([np.nan, np.inf, -np.inf, 3e38], np.float32), out.shape)
        return np.where(self.rng.random(out.shape) < nonfinite, bad, grad).astype(np.float32)
