"""Checkpoints of optimizers of the user's own, which have their names and not their sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import collection, digest, train
from own_optimizers import LION, derived, lion, struct
from reference.pair import assert_same

import mpembed as mpe
import mpembed.cuda


def test_a_checkpoint_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    emb = collection(optimizer=lion(mode="l2", state_precision="bf16"))
    train(emb)
    emb.save(tmp_path / "there")
    other = mpe.EmbeddingBagCollection.load(tmp_path / "there")
    assert repr(other.optimizer) == repr(emb.optimizer)
    train(emb)
    train(other)
    assert digest(other) == digest(emb)


def test_another_optimizer_takes_over_the_states_that_fit(tmp_path: Path) -> None:
    emb = collection(optimizer=lion())
    train(emb)
    emb.save(tmp_path / "there")
    betas = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
    adam = derived("Adam", "adam", 0.1, parameters=betas)
    mine = mpe.EmbeddingBagCollection.load(tmp_path / "there", optimizer=adam)
    assert not mine.state_arrays()["table.a.exp_avg"].any()  # both or none
    again = mpe.EmbeddingBagCollection.load(tmp_path / "there", optimizer=lion(0.5, "decoupled"))
    name = "table.a.exp_avg"
    assert_same(again.state_arrays()[name], emb.state_arrays()[name], name)


LOAD = """
import sys
import mpembed as mpe
try:
    mpe.EmbeddingBagCollection.load(sys.argv[1])
except ValueError as error:
    print(error)
assert "cuda" not in sys.modules and "mpembed.cuda" not in sys.modules
import mpembed.cuda
mpe.cuda.Optimizer(open(sys.argv[2]).read(), "Lion", 1, parameters={"beta1": 0, "beta2": 0})
print(mpe.EmbeddingBagCollection.load(sys.argv[1]).optimizer)
"""


def test_another_process_must_make_it_first(tmp_path: Path) -> None:
    """The checkpoint has its settings and not its source, which would run there."""
    emb = collection(optimizer=lion())
    train(emb)
    emb.save(tmp_path / "there")
    assert b"struct" not in (tmp_path / "there").read_bytes()
    (tmp_path / "lion.h").write_text(LION)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "there", tmp_path / "lion.h"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"{tmp_path / 'there'}: there is no optimizer 'Lion' in this process: if it is one of your "
        "own, make it first, with mpembed.cuda.Optimizer(source, 'Lion', ...)",
        repr(emb.optimizer),
    ]


OTHER = """
import sys
import mpembed.cuda as own
import mpembed as mpe
path, header, parameters, old, new = sys.argv[1:]
source = open(header).read().replace(old, new)
own.Optimizer(source, "Lion", 1, parameters=dict.fromkeys(parameters.split(","), 0))
try:
    mpe.EmbeddingBagCollection.load(path)
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("parameters", "old", "new", "found"),
    [
        ("beta1,beta2", '"exp_avg"', '"average"', "table.a.average is missing"),
        ("beta1,gamma", '"beta2"', '"gamma"', "Lion has no parameter 'beta2'"),
    ],
)
def test_a_struct_that_was_another_is_named(
    tmp_path: Path, parameters: str, old: str, new: str, found: str
) -> None:
    emb = collection(optimizer=lion())
    emb.save(tmp_path / "there")
    (tmp_path / "lion.h").write_text(LION)
    arguments = [str(tmp_path / "there"), str(tmp_path / "lion.h"), parameters, old, new]
    done = subprocess.run(
        [sys.executable, "-c", OTHER, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stderr == ""
    assert done.stdout.startswith(f"{tmp_path / 'there'}: its manifest is not valid: {found}")
    assert done.stdout.endswith(
        "; or the struct of optimizer 'Lion' had other states or parameters when this was saved: "
        "make it from the source of then, in a new process\n"
    )


def test_groups_do_not_depend_on_the_order_of_registration(tmp_path: Path) -> None:
    """Their order is in the checkpoint: the package's optimizers before, frozen tables last."""
    names = ["Zebra", "Aardvark"]
    made = [mpe.cuda.Optimizer(struct(name), name, 0.1) for name in names]
    assert made[0].kernel_number() < made[1].kernel_number()
    tables = [
        mpe.TableConfig("frozen", 9, 4, trainable=False, placement="device"),
        *(mpe.TableConfig(one.kind, 9, 4, optimizer=one) for one in made),
        mpe.TableConfig("sgd", 9, 4, optimizer=mpe.SGD(0.1)),
    ]
    cache = mpe.CacheConfig(num_sets=1)
    emb = mpe.EmbeddingBagCollection(tables, cache=cache)
    parts = [name.split(".") for name in emb.state_arrays()]
    caches = dict.fromkeys(part[2] for part in parts if part[0] == "cache")
    assert list(caches) == ["sgd", "Aardvark", "Zebra"]
    emb.save(tmp_path / "there")
    assert digest(mpe.EmbeddingBagCollection.load(tmp_path / "there")) == digest(emb)
