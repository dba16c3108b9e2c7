"""Optimizers of the user's own on a device: graphs, what is compiled when, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import graphs
import pytest
import scripts
from folders import ROOT
from helpers import batch, collection, digest, set_lr, train
from on_device import fetch, send, use
from own_optimizers import cuda_compiler, derived, lion
from twins import Twins, mixed

import mpembed as mpe
import mpembed.cuda
from mpembed.cuda import _nvrtc

__all__ = ["cuda_compiler"]

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda_compiler")]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, cuda_compiler: str) -> list[str]:
    """Return what is compiled for devices from now on."""
    units: list[str] = []
    build = _nvrtc.build

    def counted(source: Any, unit: str, arch: str) -> bytes:
        units.append(unit)
        return build(source, unit, arch)

    monkeypatch.setattr(_nvrtc, "build", counted)
    return units


@pytest.mark.parametrize("policy", [None, "lru"])
def test_a_graph_counts_updates_and_follows_the_rate(policy: str | None) -> None:
    """The bias correction is computed in the graph, and the parameters are read there."""

    def adam(lr: float) -> mpe.cuda.Optimizer:
        parameters = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
        return derived("Adam", "adam", lr, parameters=parameters)

    cache = None if policy is None else mpe.CacheConfig(num_sets=1, policy=policy, ways=8)
    with graphs.runtime() as runtime:
        twins = Twins(runtime, mixed()[:4], optimizer=adam, cache=cache)
        graph = twins.captured()
        for rate in (0.1, 0.1, 0.025, 0.5):
            set_lr(twins.there, rate)
            set_lr(twins.here, rate)
            twins.draw()
            graph.launch(twins.stream)
            twins.step_here()
            twins.assert_equal()


def test_the_example_prints_the_same(
    cuda_compiler: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    example = scripts.load(ROOT / "examples" / "own_optimizer.py")
    monkeypatch.setattr(example, "STEPS", 20)
    monkeypatch.setattr(example, "WINDOW", 5)
    example.main()
    here = capsys.readouterr().out
    example.main(cuda_compiler)
    assert capsys.readouterr().out == here
    assert len(here.splitlines()) == 4


def test_a_device_goes_on_where_the_cpu_was(cuda_compiler: str, tmp_path: Path) -> None:
    emb = collection(optimizer=lion(mode="decoupled"))
    train(emb)
    emb.save(tmp_path / "there")
    there = mpe.EmbeddingBagCollection.load(tmp_path / "there", device=cuda_compiler)
    train(emb)
    use(cuda_compiler)
    try:
        for _ in range(3):
            out = there.forward(*send(batch()))
            there.backward(send(fetch(out) * 0 + 1))
    finally:
        use("cpu")
    there.save(tmp_path / "back")
    assert digest(mpe.EmbeddingBagCollection.load(tmp_path / "back", device="cpu")) == digest(emb)


def test_kernels_are_compiled_once_for_formats_and_sizes(
    cuda_compiler: str, compiled: list[str]
) -> None:
    one = derived("SgdMomentum", "sgd_momentum", 0.1, parameters={"momentum": 0.5})

    def made(*dims: int, precision: str = "int8", **options: Any) -> int:
        tables = [mpe.TableConfig(f"t{dim}", 9, dim, precision) for dim in dims]
        mpe.EmbeddingBagCollection(
            tables, optimizer=one.with_lr(0.2), device=cuda_compiler, **options
        )
        return len(compiled)

    assert made(4) == 1
    assert made(4, 8, 256) == 1
    assert made(257) == 2
    assert made(4, precision="int4") == 3
    assert made(4, 300, cache=mpe.CacheConfig(num_sets=1)) == 3
    assert "X(3, int8, Int8)" in compiled[0]
    assert "MPE_OWN_LONG 1" in compiled[1]
    assert "X(5, int4, Int4)" in compiled[2]


def test_what_does_not_compile_for_a_device_changes_nothing(cuda_compiler: str) -> None:
    source = """
#include "mpembed/optim/sgd.h"
struct HostOnly : mpembed::Sgd {
  template <class X>
  static MPE_HD void apply(const float* c, X s, X& w, X& g, X* states) {
    static_assert(sizeof(X) > sizeof(float), "vectors only");
    mpembed::Sgd::apply(c, s, w, g, states);
  }
};
"""
    one = mpe.cuda.Optimizer(source, "HostOnly", 0.1)
    with pytest.raises(mpe.cuda.CompileError, match="HostOnly.*vectors only"):
        collection(optimizer=one, device=cuda_compiler)
    if mpe.info()["simd"] != "base":
        train(collection(optimizer=one))
