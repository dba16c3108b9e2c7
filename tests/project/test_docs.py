"""The Python in the README and the guide runs, and does what it says beside it."""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import ROOT

import mpembed as mpe


def blocks(page: str) -> list[str]:
    """Return a page's Python blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(page: str, names: dict[str, Any]) -> None:
    """Run a page's blocks one after the other, as a reader would type them."""
    for number, block in enumerate(blocks(page), 1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def test_the_readme_prints_and_writes_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run("README.md", names)
    text = "".join(blocks("README.md"))
    assert capsys.readouterr().out.splitlines() == re.findall(r"# prints: (.*)", text)
    assert names["out"].shape == (2, 128)
    (written,) = tmp_path.iterdir()
    assert f"a file of {round(written.stat().st_size / 1e6)} MB" in text
    ids = np.arange(100)
    loaded = mpe.EmbeddingBagCollection.load(written)
    np.testing.assert_array_equal(loaded.rows("item", ids), names["emb"].rows("item", ids))


@pytest.mark.torch
def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run("docs/guide.md", names)
    assert list(tmp_path.iterdir()) == []
    emb = names["emb"]
    np.testing.assert_allclose(names["by_torch"].numpy(), names["by_ops"], rtol=1e-5, atol=1e-6)
    assert [names[name].tolist() for name in ("unique", "starts", "positions")] == [
        [3, 7],
        [0, 1, 3],
        [1, 0, 2],
    ]
    assert (names["slots"] >= 0).all()  # both rows are trained above
    assert names["packed"].shape == (3, 12)
    assert names["skipped"] == 0
    assert names["optimizer"].lr == 0.01
    # "For a cached row they differ from the packed row by that row's rounding", one step at most.
    held = mpe.ops.dequantize(names["rows"], "int4", 16)[[17]]
    differs = np.abs(held - emb.rows("item", np.array([17])))
    assert differs.any()
    assert differs.max() <= np.ptp(held) / 15 * 1.01


@pytest.mark.torch
def test_the_page_on_pytorch_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run("docs/torch.md", names)
    assert list(tmp_path.iterdir()) == []
    assert "1 table(s) to int4: 25.6 MB of weights ->" in capsys.readouterr().out
    assert names["weights"].grad.shape == (4,)
    assert names["words"].tables.step == 2
    assert (
        names["model"][0].tables.step == 100_000 * 64 // 2**22 + 1 + 2 * 5
    )  # set_rows, then steps
    assert 0 < names["fused"].param_groups[0]["lr"] < 0.02
    ids = torch.arange(10_000)
    assert (names["twin"].tables.rows("table", ids) == names["bag"].tables.rows("table", ids)).all()


def test_the_guide_lists_every_array_of_the_state() -> None:
    text = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    tables = [mpe.TableConfig("item", 9, 4)]
    classes: dict[str, Any] = mpe.optim.OPTIMIZERS
    for optimizer in (mpe.SGD(momentum=0.5), *(kind() for kind in classes.values())):
        states = {state.name for state in optimizer.states}
        for policy in mpe.registry.POLICIES:
            cache = mpe.CacheConfig(num_sets=1, policy=policy)
            emb = mpe.EmbeddingBagCollection(tables, cache=cache, optimizer=optimizer)
            for key in emb.state_arrays():
                name = key.replace(".item.", ".NAME.").replace(f"4.{optimizer.kind}", "LABEL")
                state = name.removeprefix("table.NAME.")
                if state in states:
                    assert f"`{state}`" in text
                    name = "table.NAME.STATE"
                assert f"`{name}`" in text


def test_the_guide_says_what_states_cost() -> None:
    text = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    begin = text.index("| | FP32 states | ratio |")
    rows = [
        line.strip("| ").split(" | ") for line in text[begin:].split("\n\n")[0].splitlines()[2:]
    ]
    told = {name: cells for names, *cells in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(told) == {kind.__name__ for kind in mpe.optim.OPTIMIZERS.values()}
    made: dict[str, Any] = {kind.__name__: kind for kind in mpe.optim.OPTIMIZERS.values()}
    made["SGD"] = functools.partial(mpe.SGD, momentum=0.9)  # its second line
    tables = [mpe.TableConfig("t", 100_000, 64, "int4", init="zeros")]
    for name, make in made.items():
        measured = []
        for precision in ("fp32", "bf16"):
            optimizer, cache = make(state_precision=precision), mpe.CacheConfig(load_factor=0.05)
            report = mpe.EmbeddingBagCollection(
                tables, cache=cache, optimizer=optimizer
            ).memory_report()
            state = report["tables"]["t"]["optimizer_state"] / 100_000
            measured += [f"{state:g}", f"{report['ratio']:.1f}"]
        assert told[name] == measured


@pytest.mark.parametrize("kind", {kind.__name__: kind for kind in mpe.optim.OPTIMIZERS.values()})
def test_the_guide_lists_every_optimizer_with_its_defaults(kind: str) -> None:
    text = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith(f"| `mpe.{kind}` |"))
    for_all = text[text.index("All of them take:") : text.index("### Tables that are trained")]
    arguments = [*inspect.signature(getattr(mpe, kind)).parameters.values()][1:]
    assert {"weight_decay", "weight_decay_mode", "state_precision"} < {a.name for a in arguments}
    for argument in arguments:
        value = re.sub("e-0", "e-", repr(argument.default)).replace("'", '"')
        assert f"`{argument.name}={value}`" in row + for_all


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_path_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    folders = "mpembed|include|kernels|tests|bench|tools|docs|examples"
    paths = set(re.findall(rf"(?<![\w/.-])((?:\.ci|{folders})/[\w./*-]*\w)", text))
    assert len(paths) > 20
    named = [p for p in paths if "NAME" not in p and not p.startswith("mpembed/lib")]
    missing = [p for p in named if not any(ROOT.glob(p))]
    assert sorted(missing) == []
