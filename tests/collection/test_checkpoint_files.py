"""Checkpoints as files: permissions, links, names, threads, and how much memory a load takes."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import CheckpointFile, written
from file_facts import mode

import mpembed as mpe
from mpembed._checkpoint import loading
from mpembed._checkpoint.manifest import read_manifest
from mpembed._checkpoint.tensor_file import Writer
from mpembed._collection import storage


def make(seed: int = 0, num_rows: int = 50) -> mpe.EmbeddingBagCollection:
    return mpe.EmbeddingBagCollection(
        [mpe.TableConfig("t", num_rows, 8, "int8")],
        cache=mpe.CacheConfig(num_sets=2, ways=8),
        optimizer=mpe.Adagrad(0.1, initial_accumulator_value=0.5),
        seed=seed,
    )


def rows(emb: mpe.EmbeddingBagCollection) -> bytes:
    return np.asarray(emb.rows("t", np.arange(emb.tables[0].num_embeddings))).tobytes()


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


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("leads_to", ["a file", "nothing"])
def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path: Path, leads_to: str) -> None:
    """Whoever may write to the folder could otherwise choose which file a save destroys."""
    precious, link = tmp_path / "folder" / "precious", tmp_path / "link"
    precious.parent.mkdir()
    if leads_to == "a file":
        precious.write_text("kept")
        precious.chmod(0o666)
    link.symlink_to(precious)
    before = mode(precious) if precious.exists() else None
    make(1).save(link)
    assert not link.is_symlink()
    assert rows(mpe.EmbeddingBagCollection.load(link)) == rows(make(1))
    assert not mode(link) & 0o022  # the permissions of the file behind a link are not taken
    if before is None:
        assert not precious.exists()
    else:
        assert precious.read_text() == "kept"
        assert mode(precious) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "link"]


def test_a_folder_that_is_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    make(1).save(tmp_path / "link" / "file")
    assert rows(mpe.EmbeddingBagCollection.load(tmp_path / "folder" / "file")) == rows(make(1))


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


def test_a_path_that_ends_as_a_folder_is_refused(tmp_path: Path) -> None:
    emb = make()
    with pytest.raises(IsADirectoryError, match="ends as a folder does"):
        emb.save(f"{tmp_path}/new/")
    with pytest.raises(IsADirectoryError, match="ends as a folder does"):
        emb.save(f"{tmp_path}/new/", background=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_pytorch_is_called_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "zip", "w") as file:
        file.writestr("archive/data.pkl", bytes(99))
    (tmp_path / "old").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + bytes(99))
    for name in ("zip", "old"):
        for read in (mpe.EmbeddingBagCollection.load, make().apply_delta):
            with pytest.raises(ValueError, match=r"not a checkpoint: it is .* torch.load reads"):
                read(tmp_path / name)


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


def test_a_file_replaced_while_it_is_read_is_loaded_as_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    make(1, num_rows=50).save(path)

    def replace_first(*arguments: Any) -> Any:
        make(2, num_rows=60).save(path)
        return read_manifest(*arguments)

    monkeypatch.setattr(loading, "read_manifest", replace_first)
    loaded = mpe.EmbeddingBagCollection.load(path)
    assert loaded.tables == make(1).tables
    assert rows(loaded) == rows(make(1))


def change_manifest(path: Path, change: Callable[[str], str]) -> None:
    """Write a checkpoint again with another manifest and its right checksum."""
    parts = CheckpointFile(path.read_bytes())
    written(path, parts.content(change(json.dumps(parts.whole_manifest()))))


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
