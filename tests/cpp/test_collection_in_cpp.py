"""Collections of mpembed/collection.h have the bytes of Python's; they serve its checkpoints."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compilers
import cuda_backend
import numpy as np
import pytest
from checkpoint_files import rewritten
from folders import ROOT

import mpembed as mpe
from mpembed import registry
from mpembed._bindings import kernels
from mpembed.optim import OPTIMIZERS

SOURCE = Path(__file__).with_name("collection_driver.cpp")
LIBRARIES = Path(mpe.get_cmake_dir()).parent / "lib"
ROWS = {"a": 40, "b": 30, "c": 20, "d": 25}


def compile_driver(folder: Path, *more: object) -> Path:
    program = folder / "collection"
    command = [*compilers._GXX, *compilers.WARNINGS, "-std=c++17", "-O1", f"-I{ROOT / 'include'}"]
    link = [f"-L{LIBRARIES}", "-lmpembed", f"-Wl,-rpath,{LIBRARIES}"]
    compilers.run([*command, SOURCE, *more, *link, "-o", program])
    return program


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def device_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the emulated CUDA kernels."""
    if reason := cuda_backend._cannot_emulate():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("driver")
    library = cuda_backend.with_kernels([], folder / "libmpembed_cuda.so")
    return compile_driver(folder, "-DUSE_CUDA", library, f"-Wl,-rpath,{folder}")


def draws() -> Iterator[int]:
    """Yield the driver's numbers."""
    state = 5
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield state >> 33


def batch(numbers: Iterator[int]) -> tuple[Any, Any]:
    indices: list[int] = []
    offsets = [0]
    for rows in ROWS.values():
        for _ in range(2):
            indices += [next(numbers) % rows for _ in range(next(numbers) % 4)]
            offsets.append(len(indices))
    return np.array(indices, np.int64), np.array(offsets)


def collection(
    optimizer: mpe.optim.Optimizer, precision: str, policy: str | None
) -> mpe.EmbeddingBagCollection:
    shard: dict[str, Any] = {"table_id": 9, "first_row": 100, "total_rows": 1000}
    return mpe.EmbeddingBagCollection(
        [
            mpe.TableConfig("a", ROWS["a"], 8, precision),
            mpe.TableConfig("b", ROWS["b"], 8, precision, "mean", optimizer=mpe.SGD(lr=0.5)),
            mpe.TableConfig("c", ROWS["c"], 5, trainable=False),
            mpe.TableConfig("d", ROWS["d"], 5, precision, init=("normal", 0.5), **shard),
        ],
        cache=None if policy is None else mpe.CacheConfig(num_sets=1, policy=policy, ways=32),
        optimizer=optimizer,
        seed=3,
    )


def trained(emb: mpe.EmbeddingBagCollection) -> bytes:
    """What the driver writes, by Python."""
    numbers = draws()
    written = b""
    for step in range(20):
        if step == 7:
            emb.set_rows("a", np.array([3, 1]), np.full((2, 8), 0.75, np.float32))
        if step == 11:  # that of tables "a" and "d"
            used = emb.optimizers["a"]
            assert used is not None
            used.lr = 0.02
        first, second = batch(numbers), batch(numbers)
        emb.prefetch(*first)
        y, two = emb.forward(*second, ticket=True)
        x, one = emb.forward(*first, ticket=True)
        gradients = x - np.float32(1), y - np.float32(1)
        if step % 3 == 0:
            emb.backward([(gradients[1], two), (gradients[0], one)])
        else:
            emb.backward(gradients[0], one)
            emb.backward(gradients[1], two)
        written += bytes(x.tobytes() + y.tobytes())
    written += emb.rows("d", np.array([0, 24, 3])).tobytes()
    emb.flush()
    state, stats = emb.state_arrays(), emb.stats()
    for name, noise in zip(ROWS, state["noise"], strict=True):
        counted = np.array([stats[name][key] for key in registry.STATS], np.int64)
        written += state[f"table.{name}.rows"].tobytes() + counted.tobytes() + noise.tobytes()
    return bytes(written)


def arguments(optimizer: mpe.optim.Optimizer, precision: str, policy: str | None) -> list[str]:
    kind = registry.OPTIMIZERS[optimizer.kind]
    words: list[object] = [kind, registry.WEIGHT_DECAYS[optimizer.weight_decay_mode]]
    words += [registry.FORMATS[optimizer.states[0].precision] if optimizer.states else 0]
    words += [registry.FORMATS[precision], -1 if policy is None else registry.POLICIES[policy]]
    named = zip(kernels.parameter_names(kind), optimizer.parameters(), strict=True)
    words += [f"{name}={value!r}" for name, value in named]
    words += [f"initial:{state.name}={state.initial!r}" for state in optimizer.states]
    return [str(word) for word in words]


def optimizers() -> dict[str, mpe.optim.Optimizer]:
    """One of each kind; some with decay, BF16 states or another start."""
    classes: list[Any] = list(OPTIMIZERS.values())
    made = {one.__name__: one() for one in classes}
    made["momentum"] = mpe.SGD(lr=0.05, momentum=0.9, state_precision="bf16")
    made["l2"] = mpe.Adam(weight_decay=0.01, weight_decay_mode="l2", state_precision="bf16")
    made["decoupled"] = mpe.Lamb(weight_decay=0.01, weight_decay_mode="decoupled")
    made["start"] = mpe.Adagrad(initial_accumulator_value=0.1, state_precision="bf16")
    made["row start"] = mpe.RowwiseAdagrad(initial_accumulator_value=0.1)
    return made


def check(driver: Path, folder: Path, optimizer: mpe.optim.Optimizer, *how: str | None) -> None:
    precision, policy = how
    compilers.run([driver, folder / "bytes", *arguments(optimizer, str(precision), policy)])
    expected = trained(collection(optimizer, str(precision), policy))
    assert (folder / "bytes").read_bytes() == expected


@pytest.mark.parametrize("policy", [None, "lru", "lfu"])
@pytest.mark.parametrize("name", optimizers())
def test_training_has_pythons_bytes(
    driver: Path, name: str, policy: str | None, tmp_path: Path
) -> None:
    check(driver, tmp_path, optimizers()[name], "int4", policy)


@pytest.mark.parametrize("precision", list(registry.FORMATS))
def test_of_every_format(driver: Path, precision: str, tmp_path: Path) -> None:
    check(driver, tmp_path, mpe.RowwiseAdagrad(), precision, "lfu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", optimizers())
def test_training_on_a_device(device_driver: Path, name: str, tmp_path: Path) -> None:
    check(device_driver, tmp_path, optimizers()[name], "int8", "lru")


def served(emb: mpe.EmbeddingBagCollection) -> bytes:
    numbers = draws()
    return b"".join(emb.forward(*batch(numbers), training=False).tobytes() for _ in range(5))


@pytest.mark.parametrize("policy", [None, "lru", "lfu"])
@pytest.mark.parametrize("name", optimizers())
def test_a_checkpoint_is_served(
    driver: Path, name: str, policy: str | None, tmp_path: Path
) -> None:
    """Rows of the cache differ from those of their tables, and are served too.

    The driver also sees that a backward is refused.
    """
    emb = collection(optimizers()[name], "int8", policy)
    numbers = draws()
    for _ in range(5):
        emb.backward(emb.forward(*batch(numbers)) - np.float32(1))
    emb.save(tmp_path / "model")
    compilers.run([driver, tmp_path / "bytes", tmp_path / "model"])
    assert (tmp_path / "bytes").read_bytes() == served(emb)


def test_a_checkpoint_of_version_2_is_served(driver: Path, tmp_path: Path) -> None:
    emb = collection(mpe.Adam(), "int4", "lfu")
    emb.backward(emb.forward(*batch(draws())))
    emb.save(tmp_path / "model")

    def change(manifest: dict[str, Any], arrays: dict[str, Any]) -> None:
        manifest["version"] = 2
        del arrays["noise"]

    model = rewritten(tmp_path / "model", tmp_path / "2", change)
    compilers.run([driver, tmp_path / "bytes", model])
    assert (tmp_path / "bytes").read_bytes() == served(emb)
    rewritten(tmp_path / "model", model, lambda manifest, _: manifest.update(version=4))
    done = subprocess.run([driver, tmp_path / "bytes", model], capture_output=True, text=True)
    assert "checkpoint version 4; this library reads 2 to 3" in done.stderr


@pytest.mark.gpu
def test_a_checkpoint_is_served_on_a_device(device_driver: Path, tmp_path: Path) -> None:
    emb = collection(mpe.Adam(), "int4", "lru")
    emb.backward(emb.forward(*batch(draws())))
    emb.save(tmp_path / "model")
    compilers.run([device_driver, tmp_path / "bytes", tmp_path / "model"])
    assert (tmp_path / "bytes").read_bytes() == served(emb)


def test_a_delta_is_refused_with_the_way_out(driver: Path, tmp_path: Path) -> None:
    emb = collection(mpe.Adam(), "int4", "lru")
    emb.save(tmp_path / "model", track=True)
    emb.save(tmp_path / "delta", since=emb.step)
    command = [driver, tmp_path / "bytes", tmp_path / "delta"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path / 'delta'}: is a delta")
    assert "deltas=" in done.stderr


def test_what_is_wrong_with_a_checkpoint_is_said(driver: Path, tmp_path: Path) -> None:
    emb = collection(mpe.Adam(), "int4", "lru")
    emb.save(tmp_path / "model")
    whole = (tmp_path / "model").read_bytes()

    def said(content: bytes) -> str:
        (tmp_path / "other").write_bytes(content)
        done = subprocess.run(
            [driver, tmp_path / "bytes", tmp_path / "other"], capture_output=True, text=True
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"{tmp_path / 'other'}: ")
        return done.stderr

    assert "too short" in said(b"")
    assert "the length of its header" in said(b"\xff" * 8 + whole[8:])
    assert "not valid JSON" in said(whole[:8] + b"[" + whole[9:])
    assert "description is damaged" in said(whole[:-1])
    assert "damaged (checksum)" in said(whole.replace(b'\\"seed\\": 3', b'\\"seed\\": 4'))
    last = bytearray(whole)
    start = 8 + int.from_bytes(whole[:8], "little")
    for at in range(start, len(whole), 977):  # every array is served, except states
        last[at] ^= 1
    assert "damaged (checksum)" in said(bytes(last))
