"""What a type checker is told: every compiled module has a stub, and a user's program runs.

Whether the stubs are true and the program is typed needs mypy: `.ci/run` asks it.
"""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import scripts

import mpembed


def test_every_compiled_module_has_a_stub() -> None:
    package = Path(mpembed.__file__).parent
    bindings = package / "_bindings"
    compiled = {
        path.name.partition(".")[0]
        for path in bindings.iterdir()
        if path.name.endswith(tuple(EXTENSION_SUFFIXES))
    }
    assert {"kernels", "view", "tensor"} <= compiled
    stubs = {path.stem for path in bindings.glob("*.pyi")}
    assert compiled <= stubs
    assert (package / "py.typed").is_file()


def test_the_users_program_runs(tmp_path: Path) -> None:
    """So that what it is told about types is true of what it gets."""
    scripts.load(Path(__file__).with_name("user_program.py")).main(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tables.safetensors"]
