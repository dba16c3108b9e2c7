"""mpembed.torch.convert: the memory that it prints, before and after."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import mpembed as mpe
from mpembed import torch as mt
from mpembed.torch._convert_report import state_bytes

pytestmark = pytest.mark.torch


def model() -> Any:
    torch.manual_seed(1)
    return nn.ModuleDict(
        {"words": nn.Embedding(3000, 16), "bags": nn.EmbeddingBag(20_000, 16, mode="sum")}
    )


def text_of(one: nn.Module, capsys: pytest.CaptureFixture[str], *rest: Any, **options: Any) -> str:
    mt.convert(one, *rest, **options)
    return capsys.readouterr().out


def total(module: Any) -> int:
    return int(module.tables.memory_report()["total"])


def test_it_counts_weights_and_states_on_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    ours = model()
    text = text_of(ours, capsys, "int4", 0.05)
    after = total(ours["words"]) + total(ours["bags"])
    before = 23_000 * (16 + 1) * 4
    assert text.splitlines()[0] == (
        f"2 table(s) to int4: {before / 1e6:.1f} MB of weights and RowwiseAdagrad's state -> "
        f"{after / 1e3:.1f} kB with cache, {before / after:.2f}x"
    )
    bags = 20_000 * 17 * 4
    assert text.splitlines()[1] == (
        f"  bags: 20,000 x 16 in int4, {bags / 1e6:.1f} MB -> {total(ours['bags']) / 1e3:.1f} kB, "
        f"{bags / total(ours['bags']):.2f}x"
    )
    assert len(text.splitlines()) == 3


@pytest.mark.parametrize(
    ("optimizer", "values", "says"),
    [
        (mpe.SGD(), 16, "weights and no optimizer state ->"),
        (mpe.SGD(momentum=0.5), 32, "SGD's state"),
        (mpe.Adagrad(), 32, "Adagrad's state"),
        (mpe.Adam(state_precision="bf16"), 48, "Adam's state"),
        (mpe.RowwiseAdam(), 33, "RowwiseAdam's state"),
    ],
)
def test_before_is_what_pytorch_would_keep_in_fp32(
    optimizer: Any, values: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = text_of(model(), capsys, "int8", optimizer=optimizer)
    assert says in text
    assert f"{23_000 * values * 4 / 1e6:.1f} MB of weights" in text
    assert state_bytes(optimizer, 7, 16) == 7 * 4 * (values - 16)


def test_torch_keeps_the_states_that_are_counted() -> None:
    weight = nn.Parameter(torch.zeros(7, 16))
    weight.grad = torch.ones(7, 16)
    theirs = torch.optim.Adam([weight])
    theirs.step()
    kept = [one for one in theirs.state[weight].values() if one.numel() > 1]
    assert sum(one.numel() * one.element_size() for one in kept) == state_bytes(mpe.Adam(), 7, 16)


def test_a_weight_that_is_not_trained_has_no_state(capsys: pytest.CaptureFixture[str]) -> None:
    ours = model().requires_grad_(False)
    assert f"{23_000 * 64 / 1e6:.1f} MB of weights" in text_of(ours, capsys, optimizer=mpe.Adam())


def test_weights_in_bf16_count_two_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    text = text_of(model().bfloat16(), capsys, optimizer=mpe.SGD())
    assert f"{23_000 * 32 / 1e3:.1f} kB of weights" in text


def test_the_largest_tables_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    many = nn.Sequential(*(nn.Embedding(1000 * (i + 1), 8) for i in range(12)))
    lines = text_of(many, capsys, {"1": "fp16", "*": "int4"}).splitlines()
    assert lines[0].startswith("12 table(s) to fp16, int4: ")
    assert lines[1].startswith("  11: 12,000 x 8 in int4, ")
    assert lines[8].startswith("  4: ")
    assert lines[9:] == ["  ... 4 more"]


def test_it_names_what_gains_nothing_and_what_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = model()
    ours["linear"] = nn.Embedding(5000, 1)
    ours["small"] = nn.Embedding(9, 4)
    ours["tiny"] = nn.Embedding(3, 4)
    lines = text_of(ours, capsys, cache=0.05, exclude="words", min_rows=5).splitlines()
    assert lines[-3:] == [
        '  in fp32 these rows would be smaller, and exact: linear (precision={"name": "fp32"})',
        "  too small to gain memory: small (exclude= or min_rows= leaves them out)",
        "  left as they are: words (exclude), tiny (3 rows)",
    ]


def test_the_advice_for_narrow_tables_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    narrow, advised = nn.Sequential(nn.Embedding(5000, 1)), nn.Sequential(nn.Embedding(5000, 1))
    assert "these rows would be smaller" in text_of(narrow, capsys)
    assert "these rows would be smaller" not in text_of(advised, capsys, {"0": "fp32"})
    assert total(advised[0]) < total(narrow[0])


def test_a_table_without_rows_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(r"0: 0 x 4 in int8, 0 B -> \d+ B", text_of(
        nn.Sequential(nn.Embedding(0, 4)), capsys
    ))  # fmt: skip


def test_it_is_silent_where_it_should(capsys: pytest.CaptureFixture[str]) -> None:
    assert text_of(model(), capsys, verbose=False) == ""
