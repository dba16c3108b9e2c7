"""One update of several batches: each row's gradient summed over all of them, in list order."""

from __future__ import annotations

from typing import Any

import kinds
import numpy as np
import on_device
import pytest
from drive import FORMATS, POLICIES, make_cache, make_pair
from helpers import digest
from reference.pair import Batches, Pair, assert_same

import mpembed as mpe

pytestmark = pytest.mark.usefixtures("each_device")
each_policy = pytest.mark.parametrize("policy", POLICIES)
SHAPES = {"pooled": ("sum", "mean", "sum"), "unpooled": ("sum", "none", "mean")}


def opened(pair: Pair, batches: Batches, count: int, longest: int = 4, bad: float = 0.0) -> Any:
    """Open batches with their gradients; every other one has weights."""
    found = []
    for i in range(count):
        inputs = batches.inputs(3, longest, bad)
        weights = batches.weights(len(inputs[0])) if i % 2 else None
        out, tickets = pair.forward(*inputs, weights, ticket=True)
        found.append((batches.grad(out), tickets))
    return found


def tables(poolings: Any = SHAPES["pooled"], precision: str = "int4") -> list[Any]:
    return [
        mpe.TableConfig("a", 30, 6, precision, poolings[0]),
        mpe.TableConfig("b", 9, 6, "int8", poolings[1]),
        mpe.TableConfig("c", 30, 11, "bf16", poolings[2], trainable=False),
    ]


@pytest.mark.pairwise
@pytest.mark.parametrize("count", [1, 2, 16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("optimizer", kinds.ONE_EACH)
def test_several_batches_are_one_update(
    optimizer: str, policy: str | None, shape: str, count: int
) -> None:
    precision = FORMATS[(kinds.ONE_EACH.index(optimizer) + count) % len(FORMATS)]
    pair = make_pair(tables(SHAPES[shape], precision), make_cache(policy), kinds.named(optimizer))
    batches = Batches(pair.ref, 1)
    for _ in range(3):
        pair.backward_of(opened(pair, batches, count))
    assert pair.emb.state_arrays()["updates"].tolist() == [3]


@each_policy
def test_batches_of_different_sizes_and_empty_ones(policy: str | None) -> None:
    pair = make_pair(tables(), make_cache(policy), kinds.make("adam"), bounds="drop")
    batches = Batches(pair.ref, 2)
    for _ in range(2):
        pairs = opened(pair, batches, 2, bad=0.2) + opened(pair, batches, 1, longest=0)
        inputs = batches.inputs(0, 0)
        out, tickets = pair.forward(*inputs, ticket=True)
        pairs += [(batches.grad(out), tickets), *opened(pair, batches, 1, longest=9)]
        pair.backward_of(pairs)
    nothing = pair.forward(*batches.inputs(0, 0), ticket=True)
    pair.backward_of([(nothing[0], nothing[1])])


@pytest.mark.pairwise
@pytest.mark.parametrize("optimizer", ["sgd", "adam_mixed", "rowwise_adagrad"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("counts", [(63, 1), (64, 64), (40, 40, 40), (1, 200, 1), (129, 0, 3)])
def test_blocks_run_over_the_borders_of_batches(
    counts: Any, policy: str | None, optimizer: str
) -> None:
    """A row's lookups are cut into blocks of 64 over all batches, wherever a batch ends."""
    table = [mpe.TableConfig("a", 300, 10, "fp32", "mean")]
    pair = make_pair(table, make_cache(policy, 2), kinds.named(optimizer))
    batches = Batches(pair.ref, 4)
    pairs = []
    for count in counts:
        indices = np.concatenate([np.full(count, 7), batches.rng.integers(0, 300, 20)])
        batches.rng.shuffle(indices)
        offsets = np.array([0, count // 3, count // 3, len(indices)])
        out, tickets = pair.forward(indices, offsets, batches.weights(len(indices)), ticket=True)
        pairs.append((batches.grad(out), tickets))
    pair.backward_of(pairs)


@each_policy
def test_several_batches_are_the_bytes_of_one_long_batch(policy: str | None) -> None:
    """A model that looks a table up several times trains as if it were one lookup."""
    embs = [
        on_device.make([mpe.TableConfig("a", 50, 7)], cache=make_cache(policy, 8),
                       optimizer=kinds.make("adagrad"))
        for _ in range(2)
    ]  # fmt: skip
    rng = np.random.default_rng(3)
    for _ in range(4):
        lengths = [rng.integers(0, 90, 2) for _ in range(3)]
        indices = [rng.integers(0, 9, n.sum()) for n in lengths]
        offsets = [np.concatenate([[0], np.cumsum(n)]) for n in lengths]
        grads = [rng.standard_normal((2, 7), np.float32) for _ in lengths]
        pairs = []
        for ids, ends, grad in zip(indices, offsets, grads, strict=True):
            pairs.append((grad, embs[0].forward(ids, ends, ticket=True)[1]))
        assert embs[0].backward(pairs) == [None, None, None]
        ends = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        embs[1].forward(np.concatenate(indices), ends)
        embs[1].backward(np.concatenate(grads))
        for emb in embs:
            emb.flush()
        for name in ("table.a.rows", "table.a.sum"):
            assert_same(embs[0].state_arrays()[name], embs[1].state_arrays()[name], name)


@each_policy
def test_the_gradient_of_weights_is_a_list(policy: str | None) -> None:
    pair = make_pair(tables(), make_cache(policy), kinds.make("adam"))
    batches = Batches(pair.ref, 5)
    found = opened(pair, batches, 3)
    got = pair.emb.backward([(grad, mine) for grad, (mine, _) in found])
    assert isinstance(got, list)
    assert [one is None for one in got] == [True, False, True]


@each_policy
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_of_weights_may_be_had_ahead_of_the_update(
    shape: str, policy: str | None
) -> None:
    pair = make_pair(tables(SHAPES[shape]), make_cache(policy), kinds.make("adam"))
    batches = Batches(pair.ref, 8)
    for _ in range(3):
        found = opened(pair, batches, 4)
        expected = pair.ref.backward([(grad, reference) for grad, (_, reference) in found])
        before = digest(pair.emb)
        for number in (3, 1):
            grad, (ticket, _) = found[number]
            assert_same(pair.emb.weight_grad(grad, ticket), expected[number], "ahead")
        assert digest(pair.emb) == before
        pairs = [(grad, ticket) for grad, (ticket, _) in found]
        assert pair.emb.backward(pairs, weight_grad=False) == [None, None, None, None]
        pair.check("state after backward")


def test_a_gradient_of_weights_that_is_not_to_be_had_is_refused() -> None:
    emb = mpe.EmbeddingBagCollection(tables(), optimizer=kinds.make("adam"))
    grad = np.ones((1, 23), np.float32)
    batch = np.array([1, 2, 3]), np.arange(4)
    with pytest.raises(RuntimeError, match="without a training forward"):
        emb.weight_grad(grad)
    emb.forward(*batch)
    with pytest.raises(ValueError, match="had no per_sample_weights"):
        emb.weight_grad(grad)
    weights = np.ones(3, np.float32)
    _, ticket = emb.forward(*batch, weights, ticket=True)
    before = digest(emb)
    with pytest.raises(ValueError, match="grad"):
        emb.weight_grad(grad[:, :5], ticket)
    with pytest.raises(ValueError, match="out"):
        emb.weight_grad(grad, ticket, out=np.empty(2, np.float32))
    out = np.empty(3, np.float32)
    assert emb.weight_grad(grad, ticket, out=out) is out
    np.testing.assert_array_equal(emb.weight_grad(grad, ticket), out)
    with pytest.raises(ValueError, match="out must be None where weight_grad is False"):
        emb.backward(grad, ticket, out=out, weight_grad=False)
    with pytest.raises(TypeError, match="weight_grad must be"):
        emb.backward(grad, ticket, weight_grad=0)  # type: ignore[arg-type]
    assert digest(emb) == before
    assert emb.backward(grad, ticket, weight_grad=False) is None
    with pytest.raises(RuntimeError, match="used already"):
        emb.weight_grad(grad, ticket)


def test_a_gradient_of_named_weights_ahead_is_a_dict() -> None:
    emb = mpe.EmbeddingBagCollection(tables()[:1], optimizer=kinds.make("adam"))
    named, weights = {"a": (np.array([1, 2]), np.array([0, 2]))}, {"a": np.ones(2, np.float32)}
    emb.forward(named, per_sample_weights=weights)
    found = emb.weight_grad(np.ones((1, 6), np.float32))
    assert {name: len(part) for name, part in found.items()} == {"a": 2}
    assert emb.backward(np.ones((1, 6), np.float32), weight_grad=False) is None


@each_policy
def test_rows_that_would_not_be_finite_are_left_out_of_the_one_update(policy: str | None) -> None:
    pair = make_pair(tables(), make_cache(policy), kinds.named("adam_bf16"), on_nonfinite="raise")
    batches = Batches(pair.ref, 6)
    pairs = opened(pair, batches, 3)
    spoiled = pairs[1][0].copy()
    spoiled[0] = np.nan
    pairs[1] = spoiled, pairs[1][1]
    before = np.array(pair.emb.rows("a", np.arange(30)))
    pair.backward_of(pairs)
    assert pair.emb.stats()["a"]["nonfinite"] > 0
    assert not np.isnan(pair.emb.rows("a", np.arange(30))).any()
    assert (pair.emb.rows("a", np.arange(30)) != before).any()


@each_policy
def test_large_gradients_may_cancel_across_batches(policy: str | None) -> None:
    """The sum is over all batches: what one of them says alone would not be finite."""
    pair = make_pair([mpe.TableConfig("a", 5, 4)], make_cache(policy), kinds.make("sgd"))
    found = [pair.forward(np.array([1]), np.array([0, 1]), ticket=True) for _ in range(2)]
    pair.backward_of([(np.full((1, 4), sign * 3e38, np.float32), tickets)
                      for sign, (_, tickets) in zip((1, -1), found, strict=True)])  # fmt: skip
    assert pair.emb.stats()["a"]["nonfinite"] == 0


@each_policy
def test_a_row_in_the_cache_of_one_batch_and_not_of_another(policy: str | None) -> None:
    """Conflict misses of a batch, which a later one finds cached or not at all."""
    pair = make_pair([mpe.TableConfig("a", 90, 6, "int8")], make_cache(policy), kinds.make("adam"))
    batches = Batches(pair.ref, 7)
    for _ in range(3):
        pairs = opened(pair, batches, 4, longest=8)
        pair.backward_of(pairs[::-1])


# ---- refusals ------------------------------------------------------------------------------------


def refused(emb: Any, pairs: Any, error: Any, message: str) -> None:
    before = digest(emb)
    with pytest.raises(error, match=message):
        emb.backward(pairs)
    assert digest(emb) == before


@each_policy
def test_what_cannot_be_one_update_changes_nothing(policy: str | None) -> None:
    def make() -> Any:
        return on_device.make(tables(), cache=make_cache(policy), optimizer=kinds.make("adam"))

    emb, other = make(), make()
    offsets = np.arange(4)
    grad = np.ones((1, 23), np.float32)
    first, second = (emb.forward(np.array([i, i, i]), offsets, ticket=True)[1] for i in (1, 2))
    foreign = other.forward(np.array([1, 1, 1]), offsets, ticket=True)[1]
    wanted = r"a list of \(gradient, ticket\) pairs, with the tickets of forward\(ticket=True\)"
    refused(emb, [], ValueError, "1 .. 16")
    refused(emb, [(grad, first), (grad, first)], ValueError, "twice")
    refused(emb, [(grad, first), (grad, foreign)], (RuntimeError, ValueError), "collection")
    refused(emb, [(grad, first), (grad[:, :5], second)], ValueError, "grad")
    refused(emb, [(grad, first), (grad.astype(np.float64), second)], TypeError, "grad")
    refused(
        emb,
        [(grad, first), (grad, None)],
        TypeError,
        rf"{wanted}; grad\[1\] is \((ndarray|Tensor), None",
    )
    refused(emb, [(grad, first), grad], TypeError, rf"{wanted}; grad\[1\] is (ndarray|Tensor)")
    refused(emb, ((grad, first), (grad, second)), TypeError, f"{wanted}; got a tuple")
    many = [(grad, emb.forward(np.array([3, 3, 3]), offsets, ticket=True)[1]) for _ in range(17)]
    refused(emb, many, ValueError, "16")
    for _, ticket in many:
        ticket.drop()
    refused(emb, [(grad, first), many[0]], RuntimeError, "dropped|used")
    emb.backward([(grad, second), (grad, first)])
    refused(emb, [(grad, first)], RuntimeError, "used")
    other.backward([(grad, foreign)])


def test_a_ticket_beside_a_list_is_refused() -> None:
    emb = on_device.make(tables(), optimizer=kinds.make("adam"))
    grad = np.ones((1, 23), np.float32)
    ticket = emb.forward(np.array([1, 1, 1]), np.arange(4), ticket=True)[1]
    with pytest.raises(TypeError, match="ticket"):
        emb.backward([(grad, ticket)], ticket)
    emb.backward([(grad, ticket)])


def test_results_of_a_list_are_named_by_their_places() -> None:
    emb = mpe.EmbeddingBagCollection([mpe.TableConfig("a", 9, 4)], optimizer=mpe.SGD(0.1))
    grad, weights, room = np.ones((3, 4), np.float32), np.ones(3, np.float32), np.zeros(6, "f4")
    weighted, other, plain = (
        emb.forward(np.arange(3), np.arange(4), given, ticket=True)[1]
        for given in (weights, weights, None)
    )
    with pytest.raises(ValueError, match=r"out\[1\] must be None"):
        emb.backward([(grad, weighted), (grad, plain)], out=[room[:3], room[3:]])
    with pytest.raises(ValueError, match=r"out\[1\].*shares memory with out\[0\]"):
        emb.backward([(grad, weighted), (grad, other)], out=[room[:3], room[2:5]])
    emb.backward([(grad, weighted), (grad, plain)], out=[room[:3], None])
    assert room[:3].any()
