"""The one list of names: what the header says is what Python and the manual know."""

from __future__ import annotations

import re
from typing import Any

import pytest
from folders import ROOT
from reference import FORMATS as REFERENCE_FORMATS

import mpembed as mpe
from mpembed import optim, registry
from mpembed._bindings import kernels

LISTS: dict[str, Any] = {
    "FORMATS": registry.FORMATS,
    "OPTIMIZERS": registry.OPTIMIZERS,
    "POLICIES": registry.POLICIES,
    "POOLINGS": registry.POOLINGS,
    "WEIGHT_DECAYS": registry.WEIGHT_DECAYS,
    "ROUNDINGS": registry.ROUNDINGS,
    "INITS": registry.INITS,
    "STATS": {name: i for i, name in enumerate(registry.STATS)},
    "NOISE_SUMS": {name: i for i, name in enumerate(registry.NOISE_SUMS)},
}
SELECTIONS = {
    "STATE_FORMATS": "FORMATS",
    "OUTPUT_FORMATS": "FORMATS",
}  # lists that repeat entries of another one


def in_header() -> dict[str, dict[str, int]]:
    """Return the lists of registry.h: name of the list -> name -> number."""
    text = (ROOT / "include" / "mpembed" / "registry.h").read_text()
    lists = re.findall(r"#define MPE_(\w+)\(X\)((?:.*\\\n)*.*\n)", text)
    return {
        name: {entry: int(number) for number, entry in re.findall(r"X\((\d+), (\w+)", body)}
        for name, body in lists
    }


def test_python_has_what_the_header_has() -> None:
    header = in_header()
    for name, whole in SELECTIONS.items():
        assert header.pop(name).items() <= header[whole].items()
    assert header == LISTS


@pytest.mark.parametrize("name", LISTS)
def test_ids_count_up_from_zero(name: str) -> None:
    """Arrays are indexed by them, and a list may only grow at its end."""
    assert list(LISTS[name].values()) == list(range(len(LISTS[name])))


def test_every_optimizer_has_a_class() -> None:
    assert set(optim.OPTIMIZERS) == set(registry.OPTIMIZERS)
    classes: dict[str, Any] = optim.OPTIMIZERS
    for name, cls in classes.items():
        assert cls(**({"momentum": 0.5} if name == "sgd_momentum" else {})).kind == name
    assert all(getattr(mpe, cls.__name__) is cls for cls in optim.OPTIMIZERS.values())


def test_info_lists_the_registered_names() -> None:
    info = mpe.info()
    assert info["formats"] == list(registry.FORMATS)
    assert info["optimizers"] == list(registry.OPTIMIZERS)
    assert info["policies"] == list(registry.POLICIES)
    assert info["threads"] == mpe.get_num_threads() >= 1
    assert info["simd"] in ("base", "avx2", "avx512")


@pytest.mark.parametrize("precision", registry.FORMATS)
def test_bytes_of_a_row(precision: str) -> None:
    known = REFERENCE_FORMATS[precision]
    for dim in (*range(1, 70), 1000, 2**20):
        assert registry.row_bytes(precision, dim) == known.row_bytes(dim)
        assert registry.code_bytes(precision, dim) == -(-known.bits * dim // 8)


@pytest.mark.parametrize("dim", [-3, 0, 2**20 + 1, 2**62, 2.5, "4", None, True])
def test_bad_dimensions_are_refused(dim: Any) -> None:
    for call in (registry.row_bytes, registry.code_bytes):
        with pytest.raises((ValueError, TypeError), match="embedding_dim must be"):
            call("int4", dim)


@pytest.mark.parametrize("name", ["int3", "INT4", "", None, 5, ["int4"], b"int4"])
def test_unknown_names_are_refused_with_the_known_ones(name: Any) -> None:
    for call in (registry.row_bytes, registry.code_bytes):
        with pytest.raises(ValueError, match=r"precision must be one of 'fp32'.*'int5', got"):
            call(name, 4)


def test_the_manual_names_every_format_and_optimizer() -> None:
    text = (ROOT / "docs" / "numerics.md").read_text()
    formats = text[text.index("## 2. Formats") : text.index("## 3. Initial rows")]
    assert re.findall(r"^\| `(\w+)` \|", formats, re.MULTILINE) == list(registry.FORMATS)
    states = text[text.index("### States") : text.index("### The update of a row")]
    for kind, number in registry.OPTIMIZERS.items():
        (row,) = (line for line in states.splitlines() if f"`{kind}`" in line.split(" | ")[0])
        for name, _, _ in kernels.optimizer_states(number):
            assert f"`{name}`" in row
    for name in (*registry.OPTIMIZERS, *registry.WEIGHT_DECAYS, *registry.POOLINGS):
        assert f"`{name}`" in text or name == "none"
