"""bench/instructions.py: what is counted, with what it is compared, and when that is an error."""

from __future__ import annotations

import json
from typing import Any

import instructions
import pytest

KEPT = {"compiler": "g++ 12", "level": "avx2", "instructions": {"a": 1000, "b": 2000}}


def test_growth_beyond_a_twentieth_is_an_error() -> None:
    assert instructions.compare(KEPT, "g++ 12", {"a": 1050, "b": 1}) == []
    (wrong,) = instructions.compare(KEPT, "g++ 12", {"a": 1051, "b": 2000})
    assert wrong == "a: 1,000 -> 1,051, +5.1% instructions"


def test_a_kernel_without_a_kept_count_is_an_error() -> None:
    assert instructions.compare(KEPT, "g++ 12", {"c": 1}) == ["c: no count is kept"]


def test_another_compiler_is_named_and_not_compared() -> None:
    with pytest.raises(instructions.NothingToCountError, match="g\\+\\+ 12's, this is g\\+\\+ 13"):
        instructions.compare(KEPT, "g++ 13", {"a": 10**6})


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("g++ (Debian 12.2.0-14+deb12u1) 12.2.0\nCopyright", "g++ 12"),
        ("x86_64-linux-gnu-g++-13 (Ubuntu 13.3.0-6ubuntu2) 13.3.0", "g++ 13"),
        ("Ubuntu clang version 18.1.3 (1ubuntu1)\nTarget", "clang 18"),
    ],
)
def test_the_compiler_is_known_by_its_major_release(version: str, name: str) -> None:
    assert instructions.release(version) == name


def test_the_sum_is_read_from_callgrinds_file() -> None:
    assert instructions.total("version: 1\nevents: Ir\nfn=x\n1 5\nsummary: 1234\n") == 1234
    with pytest.raises(RuntimeError, match="counted nothing"):
        instructions.total("totals: 0\n")


def test_objects_of_other_levels_are_left_out() -> None:
    levels: dict[str, Any] = {"base": [], "avx2": [], "avx512": []}
    stems = ["kernels-cpu-lookup-avx2", "kernels-cpu-lookup-avx512", "kernels-cpu-shared-parallel"]
    assert [instructions.wanted(stem, levels) for stem in stems] == [True, False, True]


def test_counts_of_all_kernels_are_kept() -> None:
    kept = json.loads(instructions.KEPT.read_text())
    assert sorted(kept["instructions"]) == sorted(instructions.KERNELS)
    assert kept["level"] == instructions.LEVEL


def test_without_valgrind_nothing_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)  # main goes to the project's root
    monkeypatch.setattr("sys.argv", ["instructions.py"])
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert instructions.main() == 0
    assert "valgrind is not installed" in capsys.readouterr().out
