"""Random settings, calls and files: an error or a result, no crash, no changed state.

MPEMBED_FUZZ_EXAMPLES sets how many examples all fuzz tests run together (1,500 by default).
"""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import collection, train
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from strategies import ERRORS, ODD, fuzz, odd_arrays

import mpembed as mpe
from mpembed import registry

# ---- constructors and small functions ------------------------------------------------------------

SMALL: list[Any] = [registry.row_bytes, registry.code_bytes, registry.choose, mpe.set_num_threads]
SMALL += [mpe.SGD, mpe.Adagrad, mpe.RowwiseAdagrad, mpe.Ticket, mpe.EmbeddingBagCollection.load]
OPTIONS = ["seed", "rounding", "bounds", "on_nonfinite", "device", "cache", "optimizer"]


@fuzz(0.1)
@given(st.sampled_from(SMALL), st.lists(st.one_of(ODD, odd_arrays()), max_size=4))
def test_small_functions(function: Any, arguments: list[Any]) -> None:
    threads = mpe.get_num_threads()
    try:
        function(*arguments)
    except ERRORS as error:
        assert str(error)
    finally:
        mpe.set_num_threads(threads)


@fuzz(0.1)
@given(st.data())
def test_constructors(data: st.DataObject) -> None:
    """Settings are refused, or make a collection that works."""
    table: dict[str, Any] = {"name": "t", "num_embeddings": 9, "embedding_dim": 3, "init": None}
    table |= {"precision": "int4", "pooling": "sum"}
    cache: dict[str, Any] = {"num_sets": 2, "load_factor": None, "policy": "lfu", "ways": 8}
    options: dict[str, Any] = {"optimizer": mpe.SGD(0.1)}
    for chosen in (table, cache):
        for key in data.draw(st.lists(st.sampled_from(sorted(chosen)), max_size=2)):
            chosen[key] = data.draw(ODD)
    if data.draw(st.booleans()):
        options[data.draw(st.sampled_from(OPTIONS))] = data.draw(ODD)
    try:
        made, cached = mpe.TableConfig(**table), mpe.CacheConfig(**cache)
        if made.num_embeddings * made.embedding_dim > 10**6 or cached.sets_for(9) > 10**4:
            return
        emb = mpe.EmbeddingBagCollection([made], **{"cache": cached, **options})
    except ERRORS as error:
        assert str(error)
        return
    emb.forward(np.zeros(1, np.int64), np.array([0, 1]), training=False)
    emb.flush()
    emb.memory_report()


# ---- checkpoints ---------------------------------------------------------------------------------

_SAVED: list[bytes] = []


def saved() -> bytes:
    """Return a checkpoint's bytes, made once."""
    if not _SAVED:
        emb = collection()
        train(emb)
        with tempfile.TemporaryDirectory() as folder:
            emb.save(Path(folder) / "c")
            _SAVED.append((Path(folder) / "c").read_bytes())
    return _SAVED[0]


@fuzz(0.1)
@given(st.integers(0, 2**30), st.integers(0, 255), st.sampled_from(["set", "cut", "insert"]))
def test_load_of_changed_bytes(position: int, value: int, how: str) -> None:
    data = bytearray(saved())
    position %= len(data)
    if how == "set":
        data[position] = value
    elif how == "cut":
        del data[position:]
    else:
        data.insert(position, value)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c"
        path.write_bytes(bytes(data))
        if bytes(data) != saved():
            with pytest.raises((ValueError, OSError)):
                mpe.EmbeddingBagCollection.load(path)


def spoil(draw: Any, manifest: dict[str, Any]) -> None:
    """Replace or delete one value somewhere in the manifest."""
    inner: Any = manifest
    while True:
        key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        if not (isinstance(inner[key], dict | list) and inner[key] and draw(st.integers(0, 4))):
            break
        inner = inner[key]
    if isinstance(inner, dict) and draw(st.integers(0, 4)) == 0:
        del inner[key]
    else:
        inner[key] = draw(JSON)


# Sizes stay small or are far too large: nothing here shall really be allocated.
NUMBERS = st.integers(-5, 300) | st.integers(2**60, 2**70) | st.floats(-100, 100)
JSON: Any = (
    st.none() | st.booleans() | NUMBERS | st.text(max_size=4) | st.builds(list) | st.builds(dict)
)
JSON |= st.sampled_from([*registry.FORMATS, *registry.OPTIMIZERS, *registry.POLICIES, "none"])


@fuzz(0.1)
@given(st.data())
def test_forged_checkpoints(data: st.DataObject) -> None:
    """Right checksums around wrong contents: refused by name, or a collection that works."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c"
        path.write_bytes(saved())
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            manifest = json.loads(file.metadata()["mpembed"].partition(" ")[2])
        for name in data.draw(st.lists(st.sampled_from(sorted(arrays)), max_size=2)):
            flat = arrays[name].reshape(-1).view(np.uint8)
            flat[data.draw(st.integers(0, flat.size - 1))] ^= data.draw(st.integers(1, 255))
        manifest["crc32"] = {n: zlib.crc32(a.tobytes()) for n, a in arrays.items()}
        if data.draw(st.booleans()):
            spoil(data.draw, manifest)
        text = json.dumps(manifest)
        save_file(arrays, path, metadata={"mpembed": f"{zlib.crc32(text.encode()):08x} {text}"})
        try:
            emb = mpe.EmbeddingBagCollection.load(path)
        except (ValueError, OSError) as error:
            assert str(path) in str(error)
            return
        except MemoryError:
            return
    for operation in (lambda: train(emb, 2), emb.flush, emb.stats, emb.memory_report):
        try:
            operation()
        except FloatingPointError:
            pass
        except ERRORS as error:  # a write step at its end, a table of another name
            assert str(error)
