"""Settings: what is accepted, and which error names what."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import set_lr

import mpembed as mpe

TABLE = mpe.TableConfig("t", 5, 3)
SGD = mpe.SGD(lr=0.1)


def collection_of(cache: mpe.CacheConfig) -> mpe.EmbeddingBagCollection:
    return mpe.EmbeddingBagCollection([TABLE], cache=cache, optimizer=SGD)


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "name": (lambda: mpe.TableConfig("", 5, 3), ValueError, "name"),
    "rows": (lambda: mpe.TableConfig("t", -1, 3), ValueError, "num_embeddings of table 't'"),
    "rows type": (lambda: mpe.TableConfig("t", 5.0, 3), TypeError, "num_embeddings"),  # type: ignore[arg-type]
    "dim": (lambda: mpe.TableConfig("t", 5, 2**20 + 1), ValueError, "embedding_dim"),
    "precision": (lambda: mpe.TableConfig("t", 5, 3, "int3"), ValueError, "'int4', 'int2'"),
    "pooling": (lambda: mpe.TableConfig("t", 5, 3, pooling="max"), ValueError, "pooling"),
    "init": (lambda: mpe.TableConfig("t", 5, 3, init=("cauchy", 1.0)), ValueError, "init"),
    "init order": (
        lambda: mpe.TableConfig("t", 5, 3, init=("uniform", 1.0, 0.0)),
        ValueError,
        "lo",
    ),
    "init nan": (lambda: mpe.TableConfig("t", 5, 3, init=("normal", np.nan)), ValueError, "init"),
    "init number": (lambda: mpe.TableConfig("t", 5, 3, init=5), ValueError, "init of table 't'"),  # type: ignore[arg-type]
    "init empty": (lambda: mpe.TableConfig("t", 5, 3, init=()), ValueError, "init"),  # type: ignore[arg-type]
    "init odd": (lambda: mpe.TableConfig("t", 5, 3, init=([], 1.0)), ValueError, "init"),  # type: ignore[arg-type]
    "name surrogate": (lambda: mpe.TableConfig("\ud800", 5, 3), ValueError, "name"),
    "no size": (lambda: mpe.CacheConfig(), ValueError, "exactly one"),
    "two sizes": (lambda: mpe.CacheConfig(load_factor=0.1, num_sets=2), ValueError, "exactly one"),
    "load": (lambda: mpe.CacheConfig(load_factor=0), ValueError, "load_factor"),
    "sets": (lambda: mpe.CacheConfig(num_sets=0), ValueError, "num_sets"),
    "ways": (lambda: mpe.CacheConfig(num_sets=1, ways=4), ValueError, "ways"),
    "ways type": (lambda: mpe.CacheConfig(num_sets=1, ways=8.0), TypeError, "ways"),  # type: ignore[arg-type]
    "slots": (
        lambda: collection_of(mpe.CacheConfig(num_sets=1 << 26, ways=32)),
        ValueError,
        "exceeds 2147483647 slots",
    ),
    "tables": (lambda: mpe.EmbeddingBagCollection(5, optimizer=SGD), TypeError, "tables"),  # type: ignore[arg-type]
    "policy": (lambda: mpe.CacheConfig(num_sets=1, policy="mru"), ValueError, "'lru', 'lfu'"),
    "lr": (lambda: mpe.SGD(lr=float("inf")), ValueError, "lr"),
    "lr none": (lambda: mpe.SGD(lr=None), TypeError, "lr"),  # type: ignore[arg-type]
    "eps": (lambda: mpe.Adagrad(lr=0.1, eps=0), ValueError, "eps"),
    "decay": (lambda: mpe.SGD(lr=0.1, weight_decay=0.1), ValueError, "weight_decay_mode"),
    "state": (lambda: mpe.Adagrad(lr=0.1, state_precision="fp16"), ValueError, "state_precision"),
    "no tables": (lambda: mpe.EmbeddingBagCollection([], optimizer=SGD), TypeError, "tables"),
    "same name": (
        lambda: mpe.EmbeddingBagCollection([TABLE, TABLE], optimizer=SGD),
        ValueError,
        "unique",
    ),
    "optimizer": (
        lambda: mpe.EmbeddingBagCollection([TABLE], optimizer="sgd"),  # type: ignore[arg-type]
        TypeError,
        "optimizer",
    ),
    "device": (
        lambda: mpe.EmbeddingBagCollection([TABLE], optimizer=SGD, device="tpu"),
        ValueError,
        "device",
    ),
    "seed": (
        lambda: mpe.EmbeddingBagCollection([TABLE], optimizer=SGD, seed=-1),
        ValueError,
        "seed",
    ),
    "bounds": (
        lambda: mpe.EmbeddingBagCollection([TABLE], optimizer=SGD, bounds="warn"),
        ValueError,
        "bounds",
    ),
    "threads": (lambda: mpe.set_num_threads(0), ValueError, "threads"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_settings(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_initial_rows() -> None:
    def rows(init: Any) -> Any:
        table = mpe.TableConfig("t", 2000, 16, init=init)
        emb = mpe.EmbeddingBagCollection([table], optimizer=SGD, seed=4)
        return emb.rows("t", np.arange(2000)).astype(np.float64)

    assert not rows("zeros").any()
    default = rows(None)
    bound = 1 / np.sqrt(2000)
    assert np.abs(default).max() <= bound * (1 + 1e-6)
    # 32,000 draws: each bound below is more than six standard errors.
    assert abs(default.mean()) < 6 * bound / np.sqrt(3 * 32_000)
    assert abs(default.std() / (bound / np.sqrt(3)) - 1) < 0.02
    normal = rows(("normal", 0.01)) / 0.01
    assert abs(normal.mean()) < 6 / np.sqrt(32_000)
    assert abs(normal.std() - 1) < 0.03
    assert abs((normal**4).mean() - 3) < 0.5
    uniform = rows(("uniform", 2.0, 3.0))
    assert 2.0 <= uniform.min() < uniform.max() <= 3.0


def test_registry_ids_are_stable() -> None:
    """The ids are part of the C interface and of checkpoints."""
    registry = mpe.registry
    names = ["fp32", "fp16", "bf16", "int8", "int8_fp16", "int4", "int2", "int6", "int5"]
    assert {name: i for i, name in enumerate(names)} == registry.FORMATS
    names = ["sgd", "adagrad", "rowwise_adagrad", "sgd_momentum", "adam", "rowwise_adam", "lamb"]
    assert {name: i for i, name in enumerate([*names, "ftrl"])} == registry.OPTIMIZERS
    assert registry.POLICIES == {"lru": 0, "lfu": 1}
    assert registry.POOLINGS == {"sum": 0, "mean": 1, "none": 2}
    sizes = [registry.row_bytes(name, 5) for name in registry.FORMATS]
    assert sizes == [20, 10, 10, 13, 9, 7, 6, 8, 8]


def test_lr_may_change_at_every_step() -> None:
    emb = mpe.EmbeddingBagCollection([TABLE], optimizer=mpe.SGD(lr=1.0))
    start = emb.rows("t", np.arange(5))
    emb.forward(np.array([0]), np.array([0, 1]))
    set_lr(emb, 0.5)
    emb.backward(np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(emb.rows("t", np.array([0])), start[:1] - np.float32(0.5))


def test_numpy_numbers_are_settings_too(tmp_path: Path) -> None:
    """What the constructors take, a checkpoint can hold."""
    init = ("uniform", np.float32(-1), np.float64(1))
    table = mpe.TableConfig("t", np.int64(50), np.int32(3), "int4", init=init)  # type: ignore[arg-type]
    for cache in (
        mpe.CacheConfig(num_sets=np.int64(2), ways=np.uint8(8)),  # type: ignore[arg-type]
        mpe.CacheConfig(load_factor=np.float32(0.5), ways=8),  # type: ignore[arg-type]
        mpe.CacheConfig(load_factor=Fraction(1, 3), ways=8),  # type: ignore[arg-type]
    ):
        optimizer = mpe.Adagrad(np.float32(0.1), eps=np.float64(1e-6))  # type: ignore[arg-type]
        seed = np.uint64(2**64 - 1)
        emb = mpe.EmbeddingBagCollection([table], cache=cache, optimizer=optimizer, seed=seed)  # type: ignore[arg-type]
        emb.save(tmp_path / "c")
        assert mpe.EmbeddingBagCollection.load(tmp_path / "c").tables == (table,)
