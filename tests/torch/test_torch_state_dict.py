"""Entries of a state_dict: tensors alone, all or none of a table, or the original's weights."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from torch_modules import CACHE, bag, batch, collection, state, train

import mpembed as mpe
from mpembed import torch as mt

pytestmark = pytest.mark.torch


def model(**options: Any) -> Any:
    return nn.Sequential(bag(**options), nn.Linear(6, 1))


def trained(**options: Any) -> Any:
    made = model(**options)
    train(made[0])
    return made


def original() -> Any:
    return nn.EmbeddingBag(50, 6, mode="sum")


def rows(module: Any, name: str = "table") -> torch.Tensor:
    (count,) = (t.num_embeddings for t in module.tables.tables if t.name == name)
    return torch.from_numpy(module.tables.rows(name, np.arange(count)))


class Tied(nn.Module):
    """Two names for one module, or two modules with the same tables."""

    def __init__(self, *, modules: int, names: tuple[str, str] = ("a", "b")) -> None:
        super().__init__()
        first = bag()
        second = mt.EmbeddingBag.from_collection(first.tables) if modules == 2 else first
        self.add_module(names[0], first)
        self.add_module(names[1], second)


# ---- what is written ---------------------------------------------------------------------------


def test_a_state_has_tensors_alone_under_names_that_do_not_depend_on_the_tables() -> None:
    kept = model(name="of one table").state_dict()
    assert all(type(value) is torch.Tensor for value in kept.values())
    own, cache = "0.tables.", "0.tables.cache.6.rowwise_adagrad."
    assert set(kept) == {
        *(own + name for name in ("settings", "seed", "0.records")),
        *(cache + name for name in ("tags", "meta", "rows", "values", "counters", "sketch")),
        *(own + name for name in ("stats", "noise", "step", "updates")),
        *("1.weight", "1.bias"),
    }
    assert all(value.is_contiguous() for value in kept.values())


def test_parameters_of_a_subclass_are_in_its_state() -> None:
    class Scaled(mt.EmbeddingBag):
        def __init__(self) -> None:
            super().__init__(50, 6, optimizer=mpe.SGD(0.1))
            self.step = nn.Parameter(torch.full((1,), 3.0))

    kept, other = Scaled().state_dict(keep_vars=True), Scaled()
    assert kept["step"].requires_grad
    with torch.no_grad():
        other.step.zero_()
    other.load_state_dict(kept)
    assert other.step.item() == 3.0
    with pytest.raises(RuntimeError, match=r'Missing key.*"step"'):
        other.load_state_dict({k: v for k, v in kept.items() if k != "step"})


def test_prefixes_and_hooks_see_the_entries() -> None:
    module = bag()

    def leave_out(_: Any, kept: Any, prefix: str, __: Any) -> None:
        del kept[prefix + "tables.noise"]

    module.register_state_dict_post_hook(leave_out)  # type: ignore[no-untyped-call]
    kept = module.state_dict(prefix="emb.")
    assert "emb.tables.0.records" in kept
    assert "emb.tables.noise" not in kept
    other = bag()

    def rename(_: Any, state_dict: Any, prefix: str, *__: Any) -> None:
        state_dict[prefix + "weight"] = state_dict.pop(prefix + "old_name")

    other.register_load_state_dict_pre_hook(rename)  # type: ignore[no-untyped-call]
    weight = torch.zeros(50, 6)
    other.load_state_dict({"old_name": weight})
    assert torch.equal(rows(other), weight)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_state_that_was_taken_in_inference_is_that_of_training(mode: Any) -> None:
    module, other = trained()[0], bag()
    with mode():
        kept = module.state_dict()
    other.load_state_dict(kept)
    assert state(other) == state(module)
    assert not kept["tables.0.records"].is_inference()


# ---- files -------------------------------------------------------------------------------------


def of_save_file(source: nn.Module, target: nn.Module, path: Path) -> None:
    save_file(source.state_dict(), path)
    target.load_state_dict(load_file(path))


def of_save_model(source: nn.Module, target: nn.Module, path: Path) -> None:
    save_model(source, str(path))
    assert not any(load_model(target, path))


def of_torch_save(source: nn.Module, target: nn.Module, path: Path) -> None:
    torch.save(source.state_dict(), path)
    target.load_state_dict(torch.load(path, weights_only=True), assign=True)


def of_memory_map(source: nn.Module, target: nn.Module, path: Path) -> None:
    torch.save(source.state_dict(), path)
    target.load_state_dict(torch.load(path, weights_only=True, mmap=True), strict=False)


@pytest.mark.parametrize("way", [of_save_file, of_save_model, of_torch_save, of_memory_map])
@pytest.mark.parametrize("cache", [None, CACHE])
def test_a_file_resumes_bit_for_bit(way: Any, cache: Any, tmp_path: Path) -> None:
    source, target = trained(cache=cache, seed=2**64 - 1), trained(cache=cache, seed=5)
    way(source, target, tmp_path / "file")
    assert state(target[0]) == state(source[0])
    assert train(target[0], seed=9) == train(source[0], seed=9)
    assert torch.equal(target[1].weight, source[1].weight)


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning:torch")
def test_distributed_checkpoints_resume_bit_for_bit(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    source = trained()
    ways: list[Any] = [nn.Module.state_dict, get_model_state_dict]
    for number, take in enumerate(ways):
        place, target = tmp_path / str(number), trained(seed=9)
        save({"model": take(source)}, checkpoint_id=place, no_dist=True)
        kept = {"model": take(target)}
        load(kept, checkpoint_id=place, no_dist=True)  # in place
        set_model_state_dict(target, kept["model"])
        assert state(target[0]) == state(source[0])
        assert train(target[0], seed=9) == train(copy.deepcopy(source)[0], seed=9)


@pytest.mark.parametrize("modules", [1, 2])
def test_safetensors_stores_shared_tables_once(modules: int, tmp_path: Path) -> None:
    source, target, file = Tied(modules=modules), Tied(modules=modules), tmp_path / "file"
    train(source.a)  # type: ignore[arg-type]
    save_model(source, str(file))
    assert not any(name.startswith("b.") for name in load_file(file))
    assert not any(load_model(target, file))  # and it does not warn
    assert state(target.a) == state(source.a)


def test_shared_tables_are_loaded_in_any_order(tmp_path: Path) -> None:
    names, file = ("b", "a"), tmp_path / "file"
    source, target = Tied(modules=2, names=names), Tied(modules=2, names=names)
    train(source.a)  # type: ignore[arg-type]
    save_model(source, str(file))
    with pytest.warns(UserWarning, match="b: the state has nothing"):  # a, which has it, is later
        assert not any(load_model(target, file))
    assert state(target.b) == state(source.b)


def test_a_state_of_shared_tables_has_them_under_each_name() -> None:
    source, target = Tied(modules=2), Tied(modules=1)
    train(source.a)  # type: ignore[arg-type]
    target.load_state_dict(source.state_dict())
    assert state(target.a) == state(source.a)


# ---- what does not fit --------------------------------------------------------------------------


def test_a_table_that_a_state_leaves_out_is_named() -> None:
    module = trained()
    before = state(module[0])
    kept = {k: v for k, v in module.state_dict().items() if not k.startswith("0.")}
    with pytest.warns(UserWarning, match="0: the state has nothing for its rows, which stay"):
        result = module.load_state_dict(kept, strict=False)
    assert set(result.missing_keys) == {"0." + name for name in module[0].state_dict()}
    assert result.unexpected_keys == []
    with (
        pytest.warns(UserWarning, match="0: the state has nothing"),
        pytest.raises(RuntimeError, match=r'Missing key.*"0.tables.settings", "0.tables.seed"'),
    ):
        module.load_state_dict(kept)
    assert state(module[0]) == before


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", ["settings", "0.records", "noise", "step", "seed"])
def test_some_entries_of_a_table_are_refused(name: str, strict: bool) -> None:
    module, kept = trained(), trained(seed=9).state_dict()
    before = state(module[0])
    del kept["0.tables." + name]
    with pytest.raises(RuntimeError, match=f"0: .*these tables, but tables.{name} not: take all"):
        module.load_state_dict(kept, strict=strict)
    assert state(module[0]) == before


def test_unexpected_keys_are_reported() -> None:
    module = bag()
    kept = {**module.state_dict(), "tables.1.records": torch.ones(2), "bias": torch.ones(2)}
    unexpected = {"tables.1.records", "bias"}
    assert set(module.load_state_dict(kept, strict=False).unexpected_keys) == unexpected
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module.load_state_dict(kept)


def test_the_parameter_that_stands_for_the_tables_is_neither_saved_nor_loaded() -> None:
    module = bag()
    kept = module.state_dict()
    assert "anchor" not in kept
    module.load_state_dict({**kept, "anchor": torch.ones(2)})
    assert not any(parameter.any() for parameter in module.parameters())


def test_errors_of_all_modules_come_together() -> None:
    pair = nn.ModuleList([bag(), bag(precision="int8")])
    kept = nn.ModuleList([bag(mode="mean"), bag()]).state_dict()
    with pytest.raises(RuntimeError, match=r"(?s)0: the state has tables.*1: the state has tables"):
        pair.load_state_dict(kept)


# ---- weights of the original --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_the_original_model_become_the_rows(dtype: torch.dtype) -> None:
    source, module = original().to(dtype), bag(precision="fp32")
    train(module)  # some rows are cached
    assert module.load_state_dict(source.state_dict()).missing_keys == []
    assert torch.equal(rows(module), source.weight.detach().float())


def test_weights_are_rounded_and_the_optimizer_state_stays() -> None:
    source, module = original(), bag()
    train(module)
    before = module.tables.state_arrays()["table.table.sum"].copy()
    module.load_state_dict(source.state_dict())
    cached = (rows(module) == source.weight).all(dim=1)
    step = (source.weight.amax(1) - source.weight.amin(1)) / 15
    assert 0 < int(cached.sum()) < 50
    assert ((rows(module) - source.weight).abs() <= 1.01 * step[:, None]).all()
    assert np.array_equal(module.tables.state_arrays()["table.table.sum"], before)


def test_a_converted_model_loads_the_checkpoint_of_before() -> None:
    first = nn.Sequential(original(), nn.Linear(6, 1))
    kept = copy.deepcopy(first.state_dict())
    second = nn.Sequential(original(), nn.Linear(6, 1))
    mt.convert(second, precision="fp32", cache=CACHE, verbose=False)
    second.load_state_dict(kept)
    assert torch.equal(second(batch()[0][None]), first(batch()[0][None]))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[:-1], r"size mismatch for 0.weight: its shape is torch.Size\(\[49, 6\]\)"),
        (lambda w: w.clone().index_fill_(0, torch.tensor(7), torch.inf), "row 7 is not finite"),
        (lambda w: w * 1e6, "row 0 is not finite or exceeds the range of int4"),
        (lambda w: w.long(), "0.weight must be a tensor of a floating type, got torch.int64"),
        (lambda w: w.tolist(), "0.weight must be a tensor of a floating type, got list"),
        (lambda w: w.to("meta"), "0.weight is on the meta device"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change: Any, message: str, strict: bool) -> None:
    module = trained()
    before = state(module[0])
    kept = nn.Sequential(original(), nn.Linear(6, 1)).state_dict()
    kept["0.weight"] = change(kept["0.weight"])
    with pytest.raises(RuntimeError, match=f"0: .*{message}"):
        module.load_state_dict(kept, strict=strict)
    assert state(module[0]) == before


def test_a_weight_beside_the_entries_is_refused() -> None:
    module = bag()
    with pytest.raises(RuntimeError, match="has weight of the original module, and .* of the conv"):
        module.load_state_dict({**module.state_dict(), "weight": torch.zeros(50, 6)})


@pytest.mark.parametrize("kind", ["embedding_bags", "embeddings"])
def test_a_collection_loads_the_weights_of_torchrecs(kind: str) -> None:
    module = collection()
    kept = {
        f"{kind}.{table.name}.weight": torch.ones(table.num_embeddings, table.embedding_dim)
        for table in module.tables.tables
    }
    assert module.load_state_dict(kept).missing_keys == []
    for table in module.tables.tables:
        assert torch.equal(rows(module, table.name), kept[f"{kind}.{table.name}.weight"])
    del kept[f"{kind}.t1.weight"]
    with pytest.warns(UserWarning, match="the state has nothing for the rows of 't1', which stay"):
        result = module.load_state_dict(kept, strict=False)
    assert result.missing_keys == ["embedding_bags.t1.weight"]
    before = state(module)
    kept[f"{kind}.t2.weight"] = torch.ones(1, 1)
    with pytest.raises(RuntimeError, match=f"size mismatch for {kind}.t2.weight"):
        module.load_state_dict(kept, strict=False)
    assert state(module) == before


# ---- writes in place ---------------------------------------------------------------------------


def average(target: nn.Module, source: nn.Module) -> None:
    """Do what averages of every value of a state_dict do."""
    with torch.no_grad():
        for mine, other in zip(
            target.state_dict().values(), source.state_dict().values(), strict=True
        ):
            mine.copy_(0.9 * mine + 0.1 * other)


def test_averaging_the_entries_is_found_out() -> None:
    source, twin = trained(cache=None), trained(cache=None, seed=9)
    average(twin, source)
    with pytest.warns(UserWarning, match="state_dict.* were written in place.*AveragedModel"):
        average(twin, source)
    with pytest.warns(UserWarning, match="written in place"):
        twin.state_dict()
    twin.state_dict()
    average(twin, source)
    twin.load_state_dict(source.state_dict())
    assert state(twin[0]) == state(source[0])
    twin.state_dict()


def test_writes_in_place_are_in_no_delta(tmp_path: Path) -> None:
    """Nothing marks them: a delta is refused, and so is one to the collection itself."""
    module, server = trained(cache=None)[0], trained(cache=None)[0]
    emb = module.tables
    for one in (emb, server.tables):
        one.save(tmp_path / "base", track=True)
    start = emb.step
    emb.save(tmp_path / "empty", since=start)
    entry = "tables.0.records"
    module.state_dict()[entry].zero_()
    with pytest.raises(ValueError, match="were written in place since that save.*track=True"):
        emb.save(tmp_path / "delta", since=start)
    with pytest.raises(ValueError, match="no save at this step is known.*track=True"):
        emb.save(tmp_path / "delta", since=start)
    with pytest.warns(UserWarning, match="written in place"):
        module.state_dict()
    emb.save(tmp_path / "anew", track=True)
    train(module)
    emb.save(tmp_path / "delta", since=start)
    followed = mpe.EmbeddingBagCollection.load(tmp_path / "anew", deltas=[tmp_path / "delta"])
    assert (followed.rows("table", np.arange(50)) == emb.rows("table", np.arange(50))).all()
    server.tables.apply_delta(tmp_path / "empty")
    server.state_dict()[entry].zero_()
    with pytest.raises(ValueError, match="at no save: it was neither saved nor loaded as it was"):
        server.tables.apply_delta(tmp_path / "empty")


def test_a_cache_that_was_damaged_in_place_is_refused() -> None:
    module, source = trained(), trained(seed=9)
    module.state_dict()["0.tables.cache.6.rowwise_adagrad.tags"].fill_(50)
    with pytest.raises(RuntimeError, match="written in place, which has damaged the tables"):
        module.state_dict()
    module.load_state_dict(source.state_dict())
    assert state(module[0]) == state(source[0])


def test_reading_entries_in_place_and_then_loading_them_is_no_damage() -> None:
    source, target = trained(), model()
    kept = target.state_dict()
    for name, value in source.state_dict().items():  # as torch.distributed.checkpoint does
        kept[name].copy_(value)
    target.load_state_dict(kept)
    assert state(target[0]) == state(source[0])
    assert state(copy.deepcopy(target)[0]) == state(source[0])
    target.state_dict()


def test_entries_that_went_to_another_process_are_not_handed_out_again() -> None:
    module = bag()
    sent = module.state_dict()
    sent["tables.0.records"].share_memory_()  # moves them out of the table
    train(module)
    other = bag()
    other.load_state_dict(module.state_dict())
    assert state(other) == state(module)


def test_nothing_warns_where_everything_fits() -> None:
    module = trained()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save(module.state_dict(), file)
        file.seek(0)
        module.load_state_dict(torch.load(file, weights_only=True))
