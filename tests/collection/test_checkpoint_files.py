"""Checkpoints as files: permissions, links, names, threads, and how much memory a load takes."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

import mpembed as mpe
import mpembed.checkpoint as checkpoint_module
from mpembed._collection import storage
from mpembed._collection.tensor_file import Writer


def make(seed: int = 0, num_rows: int = 50) -> mpe.EmbeddingBagCollection:
    return mpe.EmbeddingBagCollection(
        [mpe.TableConfig("t", num_rows, 8, "int8")],
        cache=mpe.CacheConfig(num_sets=2, ways=8),
        optimizer=mpe.Adagrad(0.1, initial_accumulator_value=0.5),
        seed=seed,
    )


def rows(emb: mpe.EmbeddingBagCollection) -> bytes:
    return np.asarray(emb.rows("t", np.arange(emb.tables[0].num_embeddings))).tobytes()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Any:
    old = os.umask(0o027)
    yield
    os.umask(old)


@pytest.mark.usefixtures("umask")
def test_a_new_checkpoint_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    make().save(tmp_path / "new")
    assert mode(tmp_path / "new") == 0o640


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("kept", [0o666, 0o600, 0o444])
def test_saving_again_keeps_the_permissions(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "again"
    for seed in range(2):
        make(seed).save(path)
        path.chmod(kept)
    assert mode(path) == kept
    make(2).save(path)
    assert mode(path) == kept


def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder / "file")
    for seed in (1, 2):  # first the file that it leads to does not exist
        make(seed).save(link)
        assert link.is_symlink()
        loaded = mpe.EmbeddingBagCollection.load(folder / "file")
        assert rows(loaded) == rows(make(seed))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder", "link"]


def test_the_longest_file_name(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    make().save(path)
    assert mpe.EmbeddingBagCollection.load(path).tables == make().tables
    with pytest.raises(OSError, match="File name too long"):
        make().save(tmp_path / ("x" * 256))
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is not a regular file"):
        make().save(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_folder_that_is_not_there_is_named_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        make().save(tmp_path / "no" / "file")
    assert error.value.filename == str(tmp_path / "no" / "file")


def test_threads_save_to_one_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own temporary file, also if all are written before any is renamed."""
    path, count = tmp_path / "shared", 4
    written = threading.Barrier(count, timeout=60)
    finish = Writer.finish

    def wait(self: Writer, metadata: dict[str, str]) -> None:
        finish(self, metadata)
        written.wait()

    monkeypatch.setattr(Writer, "finish", wait)
    errors: list[BaseException] = []

    def save(seed: int) -> None:
        try:
            make(seed).save(path)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert rows(mpe.EmbeddingBagCollection.load(path)) in [rows(make(n)) for n in range(count)]
    assert list(tmp_path.iterdir()) == [path]


def test_a_rate_may_change_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schedulers do not wait for a save on another thread; the file has the rate of its begin."""
    emb = make()
    optimizer = emb.optimizer
    assert optimizer is not None

    def write(*arguments: Any) -> int:
        optimizer.lr = 0.012345678901234567
        return original(*arguments)

    original = Writer.write
    monkeypatch.setattr(Writer, "write", write)
    emb.save(tmp_path / "ck")
    loaded = mpe.EmbeddingBagCollection.load(tmp_path / "ck").optimizers["t"]
    assert loaded is not None
    assert loaded.lr == 0.1


def test_a_file_replaced_while_it_is_opened_is_loaded_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    make(1, num_rows=50).save(path)
    safe_open = safetensors.safe_open
    replaced: list[bool] = []

    def replace_first(*arguments: Any, **named: Any) -> Any:
        if not replaced:
            replaced.append(True)
            make(2, num_rows=60).save(path)
        return safe_open(*arguments, **named)

    monkeypatch.setattr(checkpoint_module, "safe_open", replace_first)
    loaded = mpe.EmbeddingBagCollection.load(path)
    want = make(2, num_rows=60)
    assert loaded.tables == want.tables
    assert rows(loaded) == rows(want)


def change_manifest(path: Path, change: Any) -> None:
    """Write a checkpoint again with another manifest and its right checksum."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    text = change(header["__metadata__"]["mpembed"].partition(" ")[2])
    header["__metadata__"]["mpembed"] = f"{zlib.crc32(text.encode()):08x} {text}"
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + size :])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"num_embeddings": 50', f'"num_embeddings": {2**40}'),
        ('"num_embeddings": 50', f'"num_embeddings": {2**47}'),
        ('"embedding_dim": 8', f'"embedding_dim": {2**20}'),
        ('"num_sets": 2', f'"num_sets": {2**25}'),
        ('"load_factor": null, "num_sets": 2', '"load_factor": 1000000.0, "num_sets": null'),
        ('"seed": 0', '"seed": ' + "9" * 5000),
        ('"seed": 0', '"seed": ' + "[" * 100_000),
        ('"seed": 0', '"seed": '),
        ('"updates": 0', '"updates": 1'),  # and no step
    ],
)
def test_a_manifest_that_asks_for_too_much_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    path = tmp_path / "big"
    make().save(path)
    change_manifest(path, lambda text: text)
    mpe.EmbeddingBagCollection.load(path)

    def replace(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    def refuse(*_: Any) -> None:
        raise AssertionError("memory is allocated before the sizes are compared")

    change_manifest(path, replace)
    monkeypatch.setattr(storage, "allocate", refuse)
    with pytest.raises(ValueError, match="manifest is not valid") as error:
        mpe.EmbeddingBagCollection.load(path)
    assert str(path) in str(error.value)


MEASURE = """
import sys, mpembed as mpe
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
before = peak()
emb = mpe.EmbeddingBagCollection.load(sys.argv[1])
print((peak() - before) * 1024 / emb.memory_report()["total"])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_loading_takes_the_memory_of_the_collection_once(tmp_path: Path) -> None:
    path = tmp_path / "large"
    tables = [mpe.TableConfig(name, 100_000, 64) for name in ("a", "b")]
    mpe.EmbeddingBagCollection(tables, optimizer=mpe.SGD(0.1)).save(path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 1.3
