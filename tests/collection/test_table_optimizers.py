"""Tables of their own kind: an optimizer, a rate, or none at all."""

from __future__ import annotations

from typing import Any

import kinds
import numpy as np
import on_device
import pytest
from drive import FORMATS, POLICIES, make_cache, make_pair, train
from reference.pair import Batches, assert_same

import mpembed as mpe

pytestmark = pytest.mark.usefixtures("each_device")
each_policy = pytest.mark.parametrize("policy", POLICIES)


@pytest.mark.pairwise
@pytest.mark.parametrize("mode", ["none", "l2", "decoupled"])
@each_policy
def test_every_optimizer_side_by_side(policy: str | None, mode: str) -> None:
    """One table each, in groups of three dimensions, with rates that change at every step."""
    tables = [
        mpe.TableConfig(
            name, 12, (4, 9, 33)[i % 3], FORMATS[i % len(FORMATS)], optimizer=kinds.named(name)
        )
        for i, name in enumerate(kinds.NAMES)
    ]
    tables += [
        mpe.TableConfig("shared", 12, 4, "int4", "mean"),
        mpe.TableConfig("own_rate", 12, 4, "int4", lr=0.02),
        mpe.TableConfig("frozen", 12, 4, "int8", trainable=False),
    ]
    pair = make_pair(tables, make_cache(policy), kinds.make("adam", mode=mode), seed=5)
    batches = Batches(pair.ref, 1)
    for step in range(4):
        for i, table in enumerate(tables):
            pair.set_lr(table.name, 0.01 * (1 + (step + i) % 7))
        train(pair, batches, 1)


@each_policy
def test_tables_of_one_kind_share_a_cache_with_parameters_of_their_own(policy: str | None) -> None:
    tables = [
        mpe.TableConfig(f"t{i}", 20, 6, "int8", optimizer=mpe.Adam(lr=lr, eps=eps, betas=betas))
        for i, (lr, eps, betas) in enumerate(
            [(0.1, 1e-8, (0.9, 0.999)), (0.2, 1e-3, (0.0, 0.5)), (0.0, 1e-8, (0.5, 0.99))]
        )
    ]
    pair = make_pair(tables, make_cache(policy), None)
    train(pair, Batches(pair.ref, 2), 5)
    caches = {name.rpartition(".")[0] for name in pair.emb.state_arrays() if "cache" in name}
    assert caches == (set() if policy is None else {"cache.6.adam"})
    assert pair.emb.optimizer is None


def test_groups_are_of_dimension_kind_and_decay() -> None:
    l2 = mpe.SGD(0.1, weight_decay=0.1, weight_decay_mode="l2")
    tables = [
        mpe.TableConfig("a", 9, 6),
        mpe.TableConfig("b", 9, 6, optimizer=l2),
        mpe.TableConfig("c", 9, 6, optimizer=mpe.SGD(0.1, momentum=0.5)),
        mpe.TableConfig("d", 9, 7, optimizer=mpe.RowwiseAdam(0.1)),
        mpe.TableConfig("e", 9, 6, trainable=False),
    ]
    emb = on_device.make(tables, cache=make_cache("lru"), optimizer=mpe.SGD(0.1))
    arrays = emb.state_arrays()
    caches = sorted({key[6:].rpartition(".")[0] for key in arrays if key.startswith("cache.")})
    assert caches == ["6.sgd", "6.sgd.l2", "6.sgd_momentum", "7.rowwise_adam"]
    shapes = {key: arrays[key].shape for key in arrays if key.endswith((".rows", ".values"))}
    assert shapes["cache.6.sgd.rows"] == (1, 8, 6)
    assert shapes["cache.6.sgd_momentum.rows"] == (1, 8, 12)
    assert shapes["cache.7.rowwise_adam.rows"] == (1, 8, 14)
    assert shapes["cache.7.rowwise_adam.values"] == (1, 8, 1)
    assert "cache.6.sgd_momentum.values" not in shapes


def test_the_optimizers_of_a_collection_by_table() -> None:
    shared, own = mpe.SGD(0.1), mpe.Adam(0.2)
    tables = [
        mpe.TableConfig("a", 9, 6),
        mpe.TableConfig("b", 9, 6, lr=0.5),
        mpe.TableConfig("c", 9, 6, optimizer=own),
        mpe.TableConfig("d", 9, 6, trainable=False),
    ]
    emb = on_device.make(tables, optimizer=shared)
    assert emb.optimizer is shared
    assert list(emb.optimizers) == ["a", "b", "c", "d"]
    assert emb.optimizers["a"] is shared
    assert emb.optimizers["c"] is own
    assert emb.optimizers["d"] is None
    assert (emb.optimizers["b"].lr, emb.optimizers["b"].kind) == (0.5, "sgd")
    shared.lr = 0.25
    assert emb.optimizers["b"].lr == 0.5
    assert "z" not in emb.optimizers
    assert emb.optimizers.get("z") is None
    with pytest.raises(KeyError, match=r"no table 'z'; there are \['a', 'b', 'c', 'd'\]"):
        emb.optimizers["z"]


def test_a_schedule_over_the_set_of_optimizers_meets_each_once() -> None:
    tables = [mpe.TableConfig(name, 9, 6) for name in "abc"]
    tables += [mpe.TableConfig("d", 9, 6, lr=0.5), mpe.TableConfig("e", 9, 6, trainable=False)]
    emb = on_device.make(tables, optimizer=mpe.SGD(0.25))
    for one in set(emb.optimizers.values()) - {None}:
        one.lr *= 0.5
    rates = [one and one.lr for one in emb.optimizers.values()]
    assert rates == [0.125, 0.125, 0.125, 0.25, None]


def test_a_rate_of_a_table_has_the_range_of_a_rate() -> None:
    for rate in (-1.0, 1e39):
        with pytest.raises(ValueError, match=r"lr of table 'a' must be in 0 \.\. 3\.40282e\+38"):
            mpe.TableConfig("a", 9, 6, lr=rate)


def test_a_rate_that_the_optimizer_refuses_is_named_with_its_table() -> None:
    with pytest.raises(ValueError, match=r"lr must be positive.*'a'"):
        mpe.EmbeddingBagCollection([mpe.TableConfig("a", 4, 4, lr=0)], optimizer=mpe.Ftrl())


def test_a_table_needs_an_optimizer_or_to_be_frozen() -> None:
    with pytest.raises(ValueError, match=r"'a'.*optimizer"):
        on_device.make([mpe.TableConfig("a", 9, 6)], optimizer=None)
    with pytest.raises(ValueError, match=r"'a'.*optimizer"):
        on_device.make([mpe.TableConfig("a", 9, 6, lr=0.1)], optimizer=None)
    on_device.make([mpe.TableConfig("a", 9, 6, trainable=False)], optimizer=None)


@pytest.mark.parametrize("precision", FORMATS)
@each_policy
def test_a_frozen_table_is_read_and_never_written(precision: str, policy: str | None) -> None:
    tables = [
        mpe.TableConfig("frozen", 20, 6, precision, trainable=False),
        mpe.TableConfig("trained", 20, 6, precision),
    ]
    pair = make_pair(tables, make_cache(policy), mpe.Adagrad(0.1), seed=3)
    before = np.array(pair.emb.state_arrays()["table.frozen.rows"])
    batches = Batches(pair.ref, 3)
    train(pair, batches, 4)
    indices, offsets = np.arange(20), np.array([0, 3, 10, 10, 20])
    pair.ref.bounds = "raise"
    out = pair.forward(indices % 20, offsets, batches.weights(20), ticket=True)
    pair.backward(batches.grad(out[0]), out[1])
    after = pair.emb.state_arrays()
    assert_same(after["table.frozen.rows"], before, "rows of a frozen table")
    assert not [name for name in after if "frozen" in name and name != "table.frozen.rows"]
    pair.set_rows("frozen", np.array([3]), np.ones((1, 6), np.float32))  # by hand it may change


@each_policy
def test_a_frozen_table_counts_what_it_is_asked(policy: str | None) -> None:
    tables = [mpe.TableConfig("a", 20, 6, "int8", trainable=False)]
    emb = on_device.make(tables, cache=make_cache(policy), optimizer=None)
    out = emb.forward(np.array([1, 2, 2]), np.array([0, 2, 3]))
    emb.backward(np.ones_like(out))
    assert emb.stats()["a"]["accesses"] == 3
    assert emb.stats()["a"]["unique"] == 0  # it has no cache, with which rows would be looked up
    assert emb.stats()["a"]["nonfinite"] == 0


def test_gradients_that_are_not_finite_do_not_matter_to_a_frozen_table() -> None:
    emb: Any = on_device.make([mpe.TableConfig("a", 5, 3, trainable=False)], optimizer=None)
    out = emb.forward(np.array([1]), np.array([0, 1]))
    emb.backward(np.full_like(out, np.nan))


@pytest.mark.parametrize("lr_power", [-1.0, -0.7, -0.03, 0.0])
@each_policy
def test_powers_of_ftrl_over_the_whole_range(policy: str | None, lr_power: float) -> None:
    """Sums of squares from the smallest floats to the largest, other than by the square root."""
    ftrl = mpe.Ftrl(0.1, lr_power=lr_power, l1=1e-25)
    pair = make_pair([mpe.TableConfig("a", 40, 24)], make_cache(policy), ftrl)
    scale = np.exp(np.linspace(np.log(1e-23), np.log(1e18), 24)).astype(np.float32)
    batches = Batches(pair.ref, 8)
    for _ in range(4):
        out = pair.forward(*batches.inputs(5, 3))
        pair.backward(batches.grad(out) * scale)
