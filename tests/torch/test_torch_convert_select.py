"""mpembed.torch.convert: which modules it replaces, in which precision."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from torch import nn

from mpembed import torch as mt
from mpembed.torch._convert_select import DEFAULT_PRECISION, paste, select

pytestmark = pytest.mark.torch


class Model(nn.Module):
    """A model with names at several depths."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(2000, 8)
        self.item = nn.Embedding(300, 8)
        self.linear = nn.ModuleDict({"user": nn.EmbeddingBag(2000, 1), "item": nn.Embedding(9, 1)})
        self.tower = nn.Sequential(nn.Embedding(40, 4), nn.Linear(4, 1))
        self.alias = self.item


ALL = ["user", "item", "linear.user", "linear.item", "tower.0"]


def chosen(model: nn.Module, exclude: Any = (), min_rows: int = 0) -> list[str]:
    return list(select(model, "int8", exclude, min_rows).chosen)


def test_all_embeddings_are_chosen_once() -> None:
    model = Model()
    selection = select(model, "int8", (), 0)
    assert list(selection.chosen) == ALL
    assert selection.chosen["item"] is model.alias
    assert selection.left_out == {}
    assert list(select(nn.Embedding(3, 2), "int8", (), 0).chosen) == ["embedding"]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("user", ["user"]),
        ("alias", ["item"]),
        (["item", "user"], ["user", "item"]),
        ("linear", ["linear.user", "linear.item"]),
        ("linear.*", ["linear.user", "linear.item"]),
        ({"*user"}, ["user", "linear.user"]),
        ("[iu]*", ["user", "item"]),
        ((one for one in ("tower.0", "item")), ["item", "tower.0"]),
    ],
)
def test_names_and_patterns_leave_modules_out(exclude: Any, left: list[str]) -> None:
    selection = select(Model(), "int8", exclude, 0)
    assert list(selection.left_out) == left
    assert list(selection.chosen) == [name for name in ALL if name not in left]


def test_a_module_leaves_out_all_in_it() -> None:
    model = Model()
    assert chosen(model, model.tower) == ALL[:-1]
    assert chosen(model, [model.alias, model.linear]) == ["user", "tower.0"]


def test_tables_with_fewer_rows_are_left_out() -> None:
    selection = select(Model(), "int8", "user", 300)
    assert list(selection.chosen) == ["item", "linear.user"]
    assert selection.left_out == {
        "user": "exclude",
        "linear.item": "9 rows",
        "tower.0": "40 rows",
    }


def test_the_first_pattern_that_matches_gives_the_precision() -> None:
    precision = {"linear.user": "bf16", "linear": "fp32", "alias": "int4"}
    assert select(Model(), precision, (), 0).precisions == {
        "user": DEFAULT_PRECISION,
        "item": "int4",
        "linear.user": "bf16",
        "linear.item": "fp32",
        "tower.0": DEFAULT_PRECISION,
    }
    # A pattern of what is left out is no mistake: sizes differ from data set to data set.
    assert select(Model(), {"linear.item": "fp32"}, (), 100).precisions["user"] == DEFAULT_PRECISION


REFUSED: list[tuple[str, type[Exception], dict[str, Any]]] = [
    ("exclude: 'users' matches no embedding of the model, which has user, item, ", ValueError, {
        "exclude": ["item", "users"]
    }),
    ("exclude: the module Linear matches no embedding", ValueError, {"exclude": nn.Linear(1, 1)}),
    ("exclude: 'tower.1' matches no", ValueError, {"exclude": "tower.1"}),
    ("exclude must hold names, patterns and modules, got int", TypeError, {"exclude": ["user", 3]}),
    ("exclude must be names, .* got int", TypeError, {"exclude": 3}),
    (r"exclude and min_rows=0 leave nothing to convert: user \(exclude\)", ValueError, {
        "exclude": "*"
    }),
    (r"min_rows=3000 leave nothing to convert: user \(2000 rows\)", ValueError, {"min_rows": 3000}),
    ("min_rows must be in 0", ValueError, {"min_rows": -1}),
    ("min_rows must be an integer, got float", TypeError, {"min_rows": 0.5}),
    ("precision must be one of 'fp32', ", ValueError, {"precision": "int3"}),
    ("precision must be one of 'fp32', ", ValueError, {"precision": None}),
    (r"precision\['user'\] must be one of 'fp32'", ValueError, {"precision": {"user": "int3"}}),
    ("precision must map names or patterns to formats, got the key 3", TypeError, {
        "precision": {3: "int8"}
    }),
    (r"precision\['users'\] matches no embedding of the model, which has user", ValueError, {
        "precision": {"users": "int8"}
    }),
    (r"precision\['user'\] is never used: patterns before it match first", ValueError, {
        "precision": {"*": "int8", "user": "fp32"}
    }),
]  # fmt: skip


@pytest.mark.parametrize(("message", "kind", "arguments"), REFUSED)
def test_arguments_without_use_are_refused(
    message: str, kind: type[Exception], arguments: dict[str, Any]
) -> None:
    model = Model()
    before = list(model.modules())
    with pytest.raises(kind, match=message):
        mt.convert(model, **arguments)
    assert list(model.modules()) == before


def test_the_model_itself_is_not_left_out() -> None:
    model = Model()
    with pytest.raises(ValueError, match="exclude holds the model itself"):
        chosen(model, model)


def test_a_model_without_embeddings_is_refused() -> None:
    with pytest.raises(ValueError, match="no nn.EmbeddingBag and no nn.Embedding"):
        chosen(nn.Linear(1, 1))
    wrong: Any = None
    with pytest.raises(TypeError, match="must be a torch.nn.Module, got NoneType"):
        chosen(wrong)


def test_a_model_in_distributed_data_parallel_is_refused() -> None:
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = Model()
    with pytest.raises(ValueError, match="convert the model first, then wrap it"):
        chosen(wrapped)
    with pytest.raises(ValueError, match="convert the model first, then wrap it"):
        chosen(nn.Sequential(wrapped))


def test_many_names_are_not_all_listed() -> None:
    model = nn.Sequential(*(nn.Embedding(2, 2) for _ in range(30)))
    with pytest.raises(ValueError, match=r"which has 0, 1, .*19 and 10 more$"):
        chosen(model, "user")


def test_the_argument_to_paste_leaves_the_modules_out() -> None:
    names = ["user", "linear.item"]
    given: dict[str, Any] = {}
    exec(f"given = dict({paste(names)})", {}, given)
    assert given["given"] == {"exclude": names}
    assert chosen(Model(), **given["given"]) == ["item", "linear.user", "tower.0"]
