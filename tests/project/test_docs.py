"""The Python in the README and the manual runs, and does what it says beside it."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
from collections import Counter
from collections.abc import Iterable
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
    # Of its 15 steps a packed row may use 14, as its scale has 16 bits and is rounded up.
    held = mpe.ops.dequantize(names["rows"], "int4", 16)[[17]]
    differs = np.abs(held - emb.rows("item", np.array([17])))
    assert differs.any()
    assert differs.max() <= np.ptp(held) / 14 * 1.01


def test_the_page_on_checkpoints_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run("docs/checkpoints.md", names)
    assert names["grown"].tables[0].num_embeddings == 20_000
    ids = np.arange(10_000)
    rows = names["emb"].rows("item", ids)
    moved = np.abs(names["new"].rows("article", ids) - rows)
    assert (moved <= np.ptp(rows, axis=1, keepdims=True) / 15 * 1.01).all()
    emb, step = (
        names["emb"],
        (np.array([17, 42]), np.array([0, 2, 2]), np.ones((1, 32), np.float32)),
    )
    names["publish"](emb, [[step], [step, step]], tmp_path)
    served = names["follow"](tmp_path, 2)
    assert served.step == emb.step
    for name, array in emb.state_arrays().items():
        np.testing.assert_array_equal(served.state_arrays()[name], array)


def test_the_page_on_jax_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for Flax's part, where Flax is not installed."""
    pytest.importorskip("jax")
    pytest.importorskip("optax")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    steps = 21
    for block in blocks("docs/jax.md"):
        if "import flax" in block:
            if importlib.util.find_spec("flax") is None:
                break
            steps += 3
        exec(compile(block, "docs/jax.md", "exec"), names)
    assert names["emb"].collection(names["state"]).updates == steps
    assert [path.name for path in tmp_path.iterdir()] == ["tables.mpembed"]
    assert mpe.EmbeddingBagCollection.load("tables.mpembed").updates == 20


@pytest.mark.torch
def test_the_page_on_pytorch_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run("docs/torch.md", names)
    assert list(tmp_path.iterdir()) == []
    assert (
        "1 table(s) to int8: 26.0 MB of weights and RowwiseAdagrad's state ->"
        in capsys.readouterr().out
    )
    assert names["weights"].grad.shape == (4,)
    assert names["words"].tables.step == 2
    # Three steps, one from four backwards and four; set_rows counts as a write alone.
    assert names["model"][0].tables.state_arrays()["updates"] == 8
    assert 0 < names["tables"].param_groups[0]["lr"] < 0.02
    assert (names["items"].weight[0] == 0).all()
    assert names["items"].tables.state_arrays()["updates"] == 1


@pytest.mark.torch
def test_the_page_on_pytorch_lists_every_argument() -> None:
    pytest.importorskip("torch")
    from mpembed import torch as mt
    from mpembed.torch._options import ConvertOptions

    text = (ROOT / "docs/torch.md").read_text(encoding="utf-8")
    arguments = [*inspect.signature(mt.convert).parameters.values()][1:-1]
    assert len(arguments) >= 6
    for argument in arguments:
        default = repr(argument.default).replace("'", '"')
        assert f"| `{argument.name}={default}` |" in text
    (options,) = (line for line in text.splitlines() if line.startswith("| `device`, "))
    for name in ConvertOptions.__annotations__:
        assert f"`{name}`" in options
    for kind in (mt.EmbeddingBag, mt.Embedding, mt.EmbeddingBagCollection, mt.EmbeddingCollection):
        parameters = [
            argument.replace(annotation=inspect.Parameter.empty)
            for argument in inspect.signature(kind).parameters.values()
        ]
        shown = str(inspect.Signature(parameters)).replace("'", '"')
        assert f"| `{kind.__name__}{shown}` |" in text


@pytest.mark.torch
@pytest.mark.torchrec
@pytest.mark.filterwarnings("ignore")  # of TorchRec
def test_the_page_on_many_machines_runs() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("torchrec", reason="TorchRec is not installed", exc_type=ImportError)
    from torchrec.distributed.planner.types import PlannerError

    names: dict[str, Any] = {}
    run("docs/distributed.md", names)
    placed = names["plan"].plan[""]
    assert sorted(placed) == ["t0", "t1", "t2", "t3"]
    assert sorted({rank for one in placed.values() for rank in one.ranks}) == [0, 1]
    names["sharder"] = names["MpembedSharder"](mpe.RowwiseAdagrad(lr=0.02))
    with pytest.raises(PlannerError, match="insufficient storage"):  # "PlannerError for FP32 rows"
        names["planner"].plan(names["tables"], [names["sharder"]])


@pytest.mark.torch
def test_the_page_on_states_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run("docs/torch_state.md", names)
    bags, original, twin = names["bags"], names["original"], names["twin"]
    assert torch.equal(original(bags), twin(bags))
    assert type(twin[0]) is torch.nn.EmbeddingBag
    assert (names["step"], names["resumed"][0].tables) == (100, names["found"]["item"])
    assert {one.name for one in names["folder"].iterdir()} == {
        *("item-100", "rest-100", "latest", "item-base", "item-delta-1")
    }
    text = (ROOT / "docs/torch_state.md").read_text(encoding="utf-8")
    module = names["model"][0]
    adam = names["mpembed"].torch.Embedding(9, 4, optimizer=mpe.Adam())
    for entry in {*module.state_dict(), *adam.state_dict()}:
        name = re.sub(r"tables\.cache\..*", "tables.cache.LABEL.…", entry)
        assert f"`{name}`" in text


@pytest.mark.torch
def test_the_page_on_serving_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run("docs/serving.md", names)
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt2", "model.safetensors"}
    assert names["weights"].grad.shape == (8, 5)
    assert set(names["frozen"].state_dict()) == {"0.rows", "1.weight", "1.bias"}


@pytest.mark.torch
def test_the_tutorial_runs_and_its_tables_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    names: dict[str, Any] = {}
    try:
        run("docs/tutorial.md", names)
    finally:
        torch.set_num_threads(threads)
    (fp32_loss, fp32_auc), (int4_loss, int4_auc) = names["fp32"], names["int4"]
    assert fp32_auc > 0.68
    assert int4_auc > fp32_auc - 0.02
    assert int4_loss < fp32_loss * 1.02
    assert names["answer"]["mpembed"] is False
    with torch.no_grad():
        here = names["frozen"](torch.zeros(1, 13), torch.zeros(1, 26, dtype=torch.int32))
    assert names["answer"]["log_odds"] == pytest.approx(here.item(), rel=1e-5)


@pytest.mark.torch
def test_the_page_on_migrating_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    run("docs/migrating.md", names)
    ids = torch.arange(1_000)
    torch.testing.assert_close(names["ours"](ids), names["theirs"](ids), atol=0.03, rtol=0)
    assert names["tbe"].tables.state_arrays()["updates"] == 1


@pytest.mark.parametrize(
    "page", sorted(str(p.relative_to(ROOT)) for p in [*ROOT.glob("docs/*.md"), ROOT / "README.md"])
)
def test_links_lead_to_pages_and_headings(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), target


PAGES = [*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
#: Tables of data, whose first cells are not what a row is about.
OF_DATA = {"distributed.md", "gpu_model.md", "study.md", "study_changes.md"}


@pytest.mark.parametrize("page", sorted(str(path.relative_to(ROOT)) for path in PAGES))
def test_nothing_is_listed_twice(page: str) -> None:
    """Two rows of a table about one thing, or a point of a list twice, are one of them too many."""
    path = ROOT / page
    text = re.sub(
        r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    for block in re.split(r"\n\s*\n", text):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        first = [row if path.name in OF_DATA else row.split("|")[1].strip() for row in rows]
        assert doubled(cell for cell in first if cell) == []
    for block in re.split(
        r"\n(?![ \n]|[-*] |\d+\. )", text
    ):  # a list, with the lines of its points
        points = re.findall(
            r"^ *(?:[-*]|\d+\.) (.*(?:\n(?! *(?:[-*]|\d+\.) ).+)*)", block, re.MULTILINE
        )
        assert doubled(" ".join(point.split()) for point in points) == []


def doubled(texts: Iterable[str]) -> list[str]:
    """Return what comes more than once."""
    return [text for text, times in Counter(texts).items() if times > 1]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading).strip().lower() for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


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
