"""A user's program: mypy checks it with every strict option, and the tests run it.

What `assert_type` says is what the package's types tell a user. Each line of `refused` must be an
error: an ignore that nothing needs is one itself.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import mpembed as mpe
import mpembed.cuda
from mpembed import ops


def collection() -> mpe.EmbeddingBagCollection:
    """Make one with everything that can be set."""
    tables = [
        mpe.TableConfig("item", num_embeddings=50, embedding_dim=8, precision="int4"),
        mpe.TableConfig("user", 20, 8, "int8", pooling="mean", init=("uniform", -0.1, 0.1)),
        mpe.TableConfig("hour", 24, 8, init="zeros", placement="device", lr=0.1),
    ]
    return mpe.EmbeddingBagCollection(
        tables,
        cache=mpe.CacheConfig(load_factor=0.1, policy="lfu", ways=8),
        optimizer=mpe.RowwiseAdagrad(lr=0.02, eps=1e-6, weight_decay=0.1, weight_decay_mode="l2"),
        device="cpu",
        seed=3,
        rounding="nearest",
        bounds="drop",
        on_nonfinite="skip",
    )


def own_optimizer(source: str) -> mpe.cuda.Optimizer:
    """Make one of one's own."""
    made = mpe.cuda.Optimizer(source, "Lion", 0.1, parameters={"beta1": 0.9, "beta2": 0.99})
    assert_type(made.own_parameters, dict[str, float])
    assert_type(made.with_lr(0.2), mpe.cuda.Optimizer)
    return made


def train(emb: mpe.EmbeddingBagCollection) -> npt.NDArray[np.float32]:
    """Train with arrays, dicts, weights and tickets."""
    indices, offsets = np.array([1, 2, 3]), np.arange(4)
    out: npt.NDArray[np.float32] = emb.forward(indices, offsets)
    assert_type(emb.backward(np.ones_like(out)), Any)
    named = {name: (np.array([0], np.int32), np.array([0, 1])) for name in ("item", "user", "hour")}
    pooled, ticket = emb.forward(named, ticket=True)
    emb.backward(pooled, ticket)
    pairs = [emb.forward(named, ticket=True) for _ in range(2)]
    emb.backward(pairs)
    weights = np.ones(3, np.float32)
    emb.forward(indices, offsets, weights, out=out)
    emb.backward(out, out=weights)
    prefetched = emb.prefetch(indices, offsets)
    assert_type(prefetched, mpe.Ticket)
    prefetched.drop()
    assert_type(emb.drop_prefetched(), int)
    emb.optimizer.lr *= 0.5
    for optimizer in emb.optimizers.values():
        if optimizer is not None:
            optimizer.lr = 0.01
    emb.check()
    emb.flush()
    return out


def look(emb: mpe.EmbeddingBagCollection) -> None:
    """Ask for all that a collection tells."""
    assert_type(emb.tables, tuple[mpe.TableConfig, ...])
    assert_type(emb.tables[0].num_embeddings, int)
    assert_type(emb.optimizer, Any)  # an Optimizer, or None
    emb.optimizers["item"].lr = 0.1
    assert_type(emb.optimizers, Mapping[str, Any])  # an Optimizer each, or None
    assert_type(emb.export("item", "torch"), Any)
    assert_type(emb.device, str)
    assert_type(emb.step, int)
    assert_type(emb.stats()["item"]["hits"], int)
    assert_type(emb.memory_report(), dict[str, Any])
    assert_type(emb.state_arrays(), dict[str, Any])
    emb.set_rows("item", np.array([4]), emb.rows("item", np.array([4])))


def kernels(x: npt.NDArray[np.float32]) -> None:
    """Call kernels without a collection."""
    rows = ops.quantize(x, "int4", rounding="stochastic", seed=1, step=2)
    ops.dequantize(rows, "int4", x.shape[1], out=x)
    ops.embedding_bag(rows, "int4", x.shape[1], np.array([0]), np.array([0, 1]), pooling="mean")
    unique, starts, positions = ops.unique_rows(np.array([2, 2]))
    assert_type(ops.unique_rows(unique), tuple[Any, Any, Any])
    state = np.zeros(len(x), np.float32)
    assert_type(ops.rowwise_adagrad_(x, unique[:0], x[:0], state, lr=0.1, eps=1e-8), int)
    moments = np.zeros_like(x), np.zeros_like(x)
    assert_type(ops.adam_(x, unique[:0], x[:0], *moments, lr=0.1, updates=1, seed=2), int)
    assert len(starts) == len(unique) + 1
    assert len(positions) == 2


def about() -> None:
    """Ask for what there is."""
    assert_type(mpe.__version__, str)
    assert_type(mpe.STATS, tuple[str, ...])
    assert_type(mpe.registry.FORMATS, dict[str, int])
    assert_type(mpe.registry.row_bytes("int4", 8), int)
    assert_type(mpe.info(), dict[str, Any])
    mpe.set_num_threads(mpe.get_num_threads())


def errors(emb: mpe.EmbeddingBagCollection) -> None:
    """Catch what is raised by its type."""
    try:
        emb.backward(np.ones((1, 24), np.float32))
    except mpe.NonFiniteUpdateError as error:
        assert_type(error.rows, int)
    except RuntimeError:
        pass


def on_a_device(emb: mpe.EmbeddingBagCollection, x: mpe.Tensor) -> None:
    """Use a tensor; never run, for want of a device."""
    assert_type(x.shape, tuple[int, ...])
    assert_type(x.device, str)
    assert_type(x.numpy(), npt.NDArray[Any])
    assert_type(x.__dlpack_device__(), tuple[int, int])
    emb.forward(x, x, stream=0)


def main(folder: Path) -> None:
    """Do all of it that needs no device."""
    emb = collection()
    kernels(train(emb).reshape(3, 8))
    look(emb)
    errors(emb)
    about()
    emb.save(folder / "tables.safetensors")
    loaded = mpe.EmbeddingBagCollection.load(folder / "tables.safetensors", device="cpu")
    assert_type(loaded, mpe.EmbeddingBagCollection)
    assert loaded.step == emb.step


def refused(emb: mpe.EmbeddingBagCollection, ticket: mpe.Ticket) -> None:
    """Hold what must be an error; never run."""
    mpe.TableConfig("item", num_embeddings="many", embedding_dim=8)  # type: ignore[arg-type]
    mpe.TableConfig("item", 50)  # type: ignore[call-arg]
    mpe.TableConfig("item", 50, 8, init=("uniform", 0.0, 1.0, 2.0))  # type: ignore[arg-type]
    mpe.CacheConfig(size=0.1)  # type: ignore[call-arg]
    mpe.SGD(lr=0.1, eps=1e-8)  # type: ignore[call-arg]
    mpe.Adagrad("fast")  # type: ignore[arg-type]
    mpe.Adam(lr=0.1, betas=0.9)  # type: ignore[arg-type]
    mpe.TableConfig("item", 50, 8, optimizer="adam")  # type: ignore[arg-type]
    mpe.EmbeddingBagCollection(emb.tables, optimizer="sgd")  # type: ignore[arg-type]
    emb.forward()  # type: ignore[call-arg]
    emb.forward(np.array([1]), training="no")  # type: ignore[arg-type]
    emb.backward(np.ones(1), "latest")  # type: ignore[arg-type]
    emb.backward(np.ones(1), ticket, None)  # type: ignore[call-arg]
    optimizer = mpe.Adagrad()
    optimizer.eps = 1e-6  # type: ignore[misc]
    optimizer.learning_rate = 0.1  # type: ignore[attr-defined]
    emb.tables = ()  # type: ignore[misc]
    emb.stats()["item"]["hits"].upper()  # type: ignore[attr-defined]
    emb.load(3)  # type: ignore[arg-type]
    ops.quantize(np.ones((1, 8)))  # type: ignore[call-arg]
    ops.embedding(np.ones((1, 8)))  # type: ignore[attr-defined]
    mpe.set_num_threads("2")  # type: ignore[arg-type]
    mpe.EmbeddingBag  # type: ignore[attr-defined]  # noqa: B018


def subclassed() -> None:
    """Derive from a type that has no room for it; never run."""

    class Mine(mpe.Tensor):  # type: ignore[misc]
        pass
