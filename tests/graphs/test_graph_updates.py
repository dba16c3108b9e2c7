"""Captured updates: of several batches, of tables with rates of their own and frozen ones."""

from __future__ import annotations

from typing import Any

import kinds
import numpy as np
import pytest
from helpers import set_lr
from twins import Twins, mixed

import mpembed as mpe

pytestmark = pytest.mark.gpu


def cache_of(policy: str | None) -> Any:
    return None if policy is None else mpe.CacheConfig(num_sets=1, policy=policy, ways=8)


@pytest.mark.parametrize("policy", ["lru", None])
@pytest.mark.parametrize("name", ["sgd", "adam_mixed", "rowwise_adagrad"])
def test_one_update_of_three_forwards(name: str, policy: str | None, runtime: Any) -> None:
    """Each launch sums the gradients of all three; the number of updates grows by one."""
    twins = Twins(
        runtime, mixed(), cache=cache_of(policy), optimizer=lambda lr: kinds.named(name, lr)
    )
    with runtime.capture(twins.stream) as made:
        tickets = [twins.forward(ticket=True)[1] for _ in range(3)]
        twins.there.backward([(twins.grad, ticket) for ticket in tickets], stream=twins.stream)
    for _ in range(3):
        twins.draw()
        made[0].launch(twins.stream)
        indices, offsets, _, grad = twins.batch
        here = [twins.here.forward(indices, offsets, ticket=True)[1] for _ in range(3)]
        twins.here.backward([(grad, ticket) for ticket in here])
    twins.assert_equal()
    assert twins.there.state_arrays()["updates"].numpy().tolist() == [3]


@pytest.mark.parametrize("policy", ["lfu", None])
def test_rates_of_single_tables_reach_the_graph(policy: str | None, runtime: Any) -> None:
    tables = [
        mpe.TableConfig("shared", 13, 5, "int4"),
        mpe.TableConfig("own rate", 13, 5, "int8", lr=0.5),
        mpe.TableConfig("own", 13, 5, "int8", optimizer=mpe.Adam(0.5)),
        mpe.TableConfig("frozen", 13, 8, "fp16", trainable=False),
    ]
    twins = Twins(runtime, tables, cache=cache_of(policy))
    # The optimizer of a configuration is one object for both collections.
    graph = twins.captured()
    for i in range(1, 5):
        twins.draw()
        if i > 2:
            set_lr(twins.there, 0.3 / i)
            set_lr(twins.here, 0.3 / i)
            for emb in (twins.there, twins.here):
                for name in ("own rate", "own"):
                    optimizer = emb.optimizers[name]
                    assert optimizer is not None
                    optimizer.lr = 0.7 / i
        graph.launch(twins.stream)
        out, _ = twins.step_here()
        np.testing.assert_array_equal(twins.out.numpy(), out)
    twins.assert_equal()
