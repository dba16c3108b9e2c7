"""Random sequences of calls on a collection, tickets and state included: no crash, no change."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Array, digest
from hypothesis import given
from hypothesis import strategies as st
from strategies import ERRORS, ODD, bag_offsets, floats, fuzz, odd_arrays, row_numbers

import mpembed as mpe
from mpembed import registry


@st.composite
def collections(draw: st.DrawFn) -> mpe.EmbeddingBagCollection:
    """Return a collection of one to three small tables of any kind."""
    inits = [None, "zeros", ("normal", 0.1), ("uniform", -1e4, 1e4)]
    tables = [
        mpe.TableConfig(
            name,
            draw(st.sampled_from([1, 2, 9, 40, 300])),
            draw(st.sampled_from([1, 3, 8, 33])),
            draw(st.sampled_from(sorted(registry.FORMATS))),
            draw(st.sampled_from(["sum", "sum", "mean", "none"])),
            draw(st.sampled_from(inits)),
        )
        for name in ("a", "b", "c")[: draw(st.integers(1, 3))]
    ]
    make = draw(st.sampled_from([mpe.SGD, mpe.Adagrad, mpe.RowwiseAdagrad]))
    settings: dict[str, Any] = {"lr": draw(st.sampled_from([0.0, 0.1, 1e30]))}
    if draw(st.booleans()):
        settings |= {"weight_decay": 0.1, "weight_decay_mode": "l2"}
    if make is mpe.Adagrad:
        settings["state_precision"] = draw(st.sampled_from(["fp32", "bf16"]))
    cache = None
    if draw(st.booleans()):
        policy, sets = draw(st.sampled_from(["lru", "lfu"])), draw(st.integers(1, 3))
        cache = mpe.CacheConfig(num_sets=sets, policy=policy, ways=8)
    return mpe.EmbeddingBagCollection(
        tables,
        cache=cache,
        optimizer=make(**settings),
        seed=draw(st.integers(0, 2**64 - 1)),
        rounding=draw(st.sampled_from(list(mpe.registry.ROUNDINGS))),
        bounds=draw(st.sampled_from(["raise", "drop"])),
        on_nonfinite=draw(st.sampled_from(["raise", "skip"])),
    )


class Session:
    """Calls on a collection, mostly right, with several batches open at once."""

    def __init__(self, emb: mpe.EmbeddingBagCollection, draw: Any) -> None:
        self.emb, self.draw = emb, draw
        self.batches: list[Any] = []
        self.open: list[tuple[Any, Any]] = []
        self.prefetched: list[mpe.Ticket] = []

    def batch(self) -> tuple[Array, Array]:
        """Return a new batch, or an old one, which a prefetch may have admitted."""
        if self.batches and self.draw(st.booleans()):
            return self.draw(st.sampled_from(self.batches))  # type: ignore[no-any-return]
        bags = self.draw(st.integers(0, 4)) * len(self.emb.tables)
        count = self.draw(st.integers(0, 30)) if bags else 0
        ends = self.draw(bag_offsets(bags, count)) if bags else np.zeros(1, np.int64)
        ids = self.draw(row_numbers(count, self.draw(st.sampled_from([1, 9, 40]))))
        self.batches.append((ids, ends))
        return ids, ends

    def forward(self) -> None:
        indices, offsets = self.batch()
        weights = self.draw(floats((len(indices),))) if self.draw(st.booleans()) else None
        options: dict[str, Any] = {}
        if self.draw(st.integers(0, 5)) == 0:
            options[self.draw(st.sampled_from(["out", "stream", "training"]))] = self.draw(ODD)
        if self.draw(st.booleans()):
            self.open.append(self.emb.forward(indices, offsets, weights, ticket=True, **options))
        else:
            self.open.append((self.emb.forward(indices, offsets, weights, **options), None))

    def backward(self) -> None:
        out, ticket = self.open.pop() if self.open else (None, self.draw(ODD))
        self.emb.backward(self.gradient(out), ticket)

    def weight_grad(self) -> None:
        """It changes nothing, and nothing is trained by it."""
        out, ticket = self.open[-1] if self.open else (None, self.draw(ODD))
        before = digest(self.emb)
        try:
            self.emb.weight_grad(self.gradient(out), ticket)
        finally:
            assert digest(self.emb) == before

    def gradient(self, out: Any) -> Any:
        """Return a gradient of an output, mostly."""
        if out is None or self.draw(st.integers(0, 4)) == 0:
            return self.draw(st.one_of(ODD, odd_arrays()))
        if isinstance(out, dict):
            return {name: self.draw(floats(part.shape)) for name, part in out.items()}
        return self.draw(floats(out.shape))

    def prefetch(self) -> None:
        self.prefetched.append(self.emb.prefetch(*self.batch()))
        self.open.append((None, self.prefetched[-1]))

    def drop(self) -> None:
        _, ticket = self.open.pop(0) if self.open else (None, None)
        if ticket is not None:
            ticket.drop()

    def evaluate(self) -> None:
        before = digest(self.emb)
        self.emb.forward(*self.batch(), training=False)
        assert digest(self.emb) == before

    def set_rows(self) -> None:
        table = self.draw(st.sampled_from(self.emb.tables))
        ids = self.draw(row_numbers(self.draw(st.integers(0, 6)), table.num_embeddings))
        ids = np.unique(ids) if self.draw(st.booleans()) else ids
        values = self.draw(st.one_of(floats((len(ids), table.embedding_dim)), odd_arrays()))
        self.emb.set_rows(table.name if self.draw(st.booleans()) else self.draw(ODD), ids, values)

    def rows(self) -> None:
        self.emb.rows(self.draw(st.sampled_from(["a", "b", 1])), self.draw(row_numbers(3, 40)))

    def state(self) -> None:
        table = self.draw(st.sampled_from(self.emb.tables))
        states = self.emb.state(table.name, self.draw(row_numbers(3, table.num_embeddings)))
        assert list(states) == [one.name for one in self.emb.optimizer.states]

    def set_state(self) -> None:
        table = self.draw(st.sampled_from(self.emb.tables))
        ids = self.draw(row_numbers(self.draw(st.integers(0, 6)), table.num_embeddings))
        ids = np.unique(ids) if self.draw(st.booleans()) else ids
        states = {}
        for one in self.emb.optimizer.states:
            row = () if one.shape == registry.STATE_ROW else (table.embedding_dim,)
            states[one.name] = self.draw(st.one_of(floats((len(ids), *row)), odd_arrays()))
        self.emb.set_state(table.name, ids, states if self.draw(st.booleans()) else self.draw(ODD))

    def set_updates(self) -> None:
        self.emb.set_updates(self.draw(ODD | st.integers(0, 2**39)))

    def export(self) -> None:
        """Packed rows are what a flush writes now, whatever else they are asked for as."""
        table = self.draw(st.sampled_from(self.emb.tables))
        name: Any = table.name if self.draw(st.integers(0, 4)) else self.draw(ODD)
        layout: Any = self.draw(st.sampled_from(["packed", "torch", "fbgemm"]) | ODD)
        before = digest(self.emb)
        rows = self.emb.export(name, layout)
        assert digest(self.emb) == before
        width = registry.row_bytes(table.precision, table.embedding_dim)
        assert (rows.shape, rows.dtype) == ((table.num_embeddings, width), np.uint8)
        if layout == "packed":
            self.emb.flush()
            assert rows.tobytes() == self.emb.state_arrays()[f"table.{name}.rows"].tobytes()

    def flush(self) -> None:
        self.emb.flush()

    def check(self) -> None:
        self.emb.check()

    def rate(self) -> None:
        optimizer: Any = self.emb.optimizer
        optimizer.lr = self.draw(ODD)

    def drop_prefetched(self) -> None:
        waiting = sum(ticket.open for ticket in self.prefetched)
        assert self.emb.drop_prefetched() <= waiting  # some wait for a backward

    def memory_report(self) -> None:
        assert self.emb.memory_report()["total"] > 0

    def stats(self) -> None:
        assert list(self.emb.stats()) == [table.name for table in self.emb.tables]

    def rounding_report(self) -> None:
        assert list(self.emb.rounding_report()) == [table.name for table in self.emb.tables]

    def save(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.emb.save(Path(folder) / "c")
            assert mpe.EmbeddingBagCollection.load(Path(folder) / "c").stats() == self.emb.stats()

    def load(self) -> None:
        """With other settings the values stay, where nothing is rounded."""
        sizes = self.draw(st.dictionaries(st.sampled_from("abc"), st.integers(0, 60)))
        caches = st.builds(
            mpe.CacheConfig,
            num_sets=st.integers(1, 9),
            policy=st.sampled_from(list(registry.POLICIES)),
            ways=st.sampled_from([8, 16, 32]),
        )
        changes: dict[str, Any] = {"num_embeddings": sizes, "precision": "fp32"}
        if self.draw(st.booleans()):
            changes["cache"] = self.draw(st.none() | caches)
        if self.draw(st.integers(0, 3)) == 0:
            changes[self.draw(st.sampled_from(sorted(changes)))] = self.draw(ODD)
        with tempfile.TemporaryDirectory() as folder:
            self.emb.save(Path(folder) / "c")
            loaded = mpe.EmbeddingBagCollection.load(Path(folder) / "c", **changes)
        for old, new in zip(self.emb.tables, loaded.tables, strict=True):
            if new.precision == "fp32":
                ids = np.arange(min(old.num_embeddings, new.num_embeddings))
                before, now = (one.rows(new.name, ids).tobytes() for one in (self.emb, loaded))
                assert now == before

    def state_arrays(self) -> None:
        """Whatever is written to the state is refused."""
        name, array = self.draw(st.sampled_from(sorted(self.emb.state_arrays().items())))
        value = self.draw(st.one_of(ODD, odd_arrays()))
        with pytest.raises((ValueError, TypeError)):
            array[...] = value
        assert array.tobytes() == self.emb.state_arrays()[name].tobytes()
        if array.dtype == np.float32 and self.open:  # nor may a gradient lie in it
            self.emb.backward(array.reshape(-1, array.shape[-1]), self.open[-1][1])
            raise AssertionError(f"{name} was taken as a gradient")

    def poke(self) -> None:
        """What is set on a ticket is refused, or changes nothing that counts."""
        tickets = [ticket for _, ticket in self.open if ticket is not None]
        if not tickets:
            return
        ticket = self.draw(st.sampled_from(tickets))
        public = [name for name in dir(ticket) if not name.startswith("_")]
        before = [repr(ticket), *(getattr(ticket, name) for name in public if name != "drop")]
        for name in public:
            with pytest.raises(AttributeError):
                setattr(ticket, name, self.draw(ODD))
        after = [repr(ticket), *(getattr(ticket, name) for name in public if name != "drop")]
        assert before == after


OPERATIONS = ["forward", "forward", "forward", "backward", "backward", "backward", "prefetch"]
OPERATIONS += ["drop", "evaluate", "set_rows", "rows", "flush", "rate", "drop_prefetched", "poke"]
OPERATIONS += [
    "memory_report",
    "stats",
    "rounding_report",
    "save",
    "state_arrays",
    "check",
    "export",
    "weight_grad",
    "state",
    "set_state",
    "set_updates",
    "load",
]


def test_every_method_is_fuzzed() -> None:
    members = vars(mpe.EmbeddingBagCollection).items()
    methods = {name for name, value in members if callable(value) and name[0] != "_"}
    assert methods <= set(OPERATIONS)


def test_the_parts_of_the_fuzz_add_up() -> None:
    parts = []
    for file in Path(__file__).parent.glob("test_fuzz*.py"):
        text = file.read_text()
        parts += [float(part) for part in re.findall(r"^@fuzz\(([0-9.]+)\)$", text, re.MULTILINE)]
    assert len(parts) > 5
    assert sum(parts) == pytest.approx(1)


@fuzz(0.2)
@given(collections(), st.data())
def test_any_sequence_of_calls(emb: mpe.EmbeddingBagCollection, data: st.DataObject) -> None:
    """What fails changes nothing; all that is kept stays finite and, at the end, unpinned."""
    session = Session(emb, data.draw)
    for operation in data.draw(st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=9)):
        before = digest(emb)
        try:
            getattr(session, operation)()
        except FloatingPointError:
            assert operation == "backward"
        except ERRORS as error:
            assert str(error)
            assert digest(emb) == before
    for ticket in [*session.prefetched, *(ticket for _, ticket in session.open if ticket)]:
        ticket.drop()
    emb.forward(np.zeros(0, np.int64), np.zeros(1, np.int64), ticket=True)[1].drop()
    for name, array in emb.state_arrays().items():
        assert not name.endswith(".tags") or not (array & np.uint64(0x7F << 56)).any()
    for table in emb.tables:
        assert np.isfinite(emb.rows(table.name, np.arange(table.num_embeddings))).all()
