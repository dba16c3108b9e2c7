"""The files that the build writes for C++ programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpembed_build import sdk


@pytest.mark.parametrize(
    ("version", "release", "minor"),
    [("0.1.0", "0.1.0", "0.1"), ("1.2.3rc1", "1.2.3", "1.2"), ("2.dev5", "2", "2.0")],
)
def test_cmake_knows_the_release_alone(version: str, release: str, minor: str) -> None:
    text = sdk.cmake_version(version)
    assert f'set(PACKAGE_VERSION "{release}")' in text
    assert f'STREQUAL "{minor}"' in text


def test_a_version_without_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="'dev' does not begin with numbers"):
        sdk.cmake_version("dev")


def test_pkgconfig_has_cuda_only_where_the_library_is(tmp_path: Path) -> None:
    sdk.describe(tmp_path, "0.3.1", "../include")
    names = {path.name for path in (tmp_path / "pkgconfig").iterdir()}
    assert names == {"mpembed.pc", "mpembed-headers.pc"}
    assert "includedir=${prefix}/../include\n" in (tmp_path / "pkgconfig/mpembed.pc").read_text()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / sdk.file_name(sdk.CUDA_LIBRARY)).touch()
    sdk.describe(tmp_path, "0.3.1", "include")
    text = (tmp_path / "pkgconfig" / "mpembed-cuda.pc").read_text()
    assert "Requires: mpembed\nLibs: -L${libdir} -lmpembed_cuda\n" in text
    assert "Version: 0.3.1\n" in text
    (tmp_path / "lib" / sdk.file_name(sdk.CUDA_LIBRARY)).unlink()
    sdk.describe(tmp_path, "0.3.1", "include")
    assert not (tmp_path / "pkgconfig" / "mpembed-cuda.pc").exists()


def test_headers_of_an_earlier_build_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("include/mpembed/a.h", "built/include/mpembed/old.h"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text(name)
    sdk.copy_headers(Path("built"))
    assert [str(path) for path in Path("built").rglob("*.h")] == ["built/include/mpembed/a.h"]
