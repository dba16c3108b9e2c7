"""A damaged checkpoint gives an error in C++, and nothing else: no access out of bounds."""

from __future__ import annotations

import sys
from pathlib import Path

import compilers
import numpy as np
import pytest
from folders import ROOT

import mpembed as mpe

READER = [ROOT / "kernels" / "step" / f"{name}.cpp" for name in ("json", "manifest")]
READER += [ROOT / "kernels" / "step" / f"checkpoint{name}.cpp" for name in ("", "_file")]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a sanitizer's runtime")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader with sanitizers; the library answers its questions about formats."""
    program = tmp_path_factory.mktemp("fuzz") / "driver"
    libraries = Path(mpe.get_cmake_dir()).parent / "lib"
    flags = ["-std=c++17", "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
    flags += [f"-I{ROOT / 'include'}", f"-I{ROOT / 'kernels'}"]
    link = [f"-L{libraries}", "-lmpembed", f"-Wl,-rpath,{libraries}"]
    source = Path(__file__).with_name("checkpoint_driver.cpp")
    compilers.run([*compilers._GXX, *flags, source, *READER, *link, "-o", program])
    return program


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(2, 20))]
)
def test_damaged_checkpoints(driver: Path, seed: int, tmp_path: Path) -> None:
    emb = mpe.EmbeddingBagCollection(
        [mpe.TableConfig('a\u00e9"\\', 20, 4, "int4"), mpe.TableConfig("b", 0, 4)],
        cache=mpe.CacheConfig(num_sets=1, ways=8, policy="lfu"),
        optimizer=mpe.Adam(),
    )
    emb.backward(emb.forward(np.array([1, 3]), np.array([0, 2, 2])))
    emb.save(tmp_path / "model")
    count = 1500
    shown = compilers.run([driver, tmp_path / "model", tmp_path / "scratch", count, seed])
    assert 20 < int(shown) < count // 2  # some damage is harmless, such as another seed
