"""Options from a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pytest

pytest.importorskip("typer")

from mpembed import cli
from mpembed.train.config_file import read_config
from mpembed.train.data.options import OptionError

HINTS = {
    "dim": int,
    "lr": float | None,
    "setting": list[str] | None,
    "header": bool | None,
    "policy": str,
    "json": Path | None,
    "batch_size": int,
}


def read(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "train.toml"
    path.write_text(text)
    return read_config(path, HINTS)


def test_every_kind_of_option_is_read(tmp_path: Path) -> None:
    text = 'dim = 8\nlr = 1\nsetting = ["fp32", "int4"]\nheader = false\njson = "r.json"\n'
    found = read(tmp_path, f"{text}batch-size = 64\npolicy = 'lru' # words\n")
    assert found == {
        "dim": 8,
        "lr": 1.0,
        "setting": ["fp32", "int4"],
        "header": False,
        "json": "r.json",
        "batch_size": 64,
        "policy": "lru",
    }
    assert type(found["lr"]) is float
    assert read(tmp_path, "setting = 'fp32'\nbatch_size = 3") == {
        "setting": ["fp32"],
        "batch_size": 3,
    }
    assert read(tmp_path, "") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dmi = 8", "there is no option 'dmi'; did you mean 'dim'?"),
        ("batchsize = 8", "did you mean 'batch-size'?"),
        ("xyz = 8", "there is no option 'xyz'; see mpembed train --help"),
        ("[dim]\nx = 8", "dim is {'x': 8}; it must be a whole number"),
        ("dim = 1.5", "dim is 1.5; it must be a whole number"),
        ("dim = true", "dim is True; it must be a whole number"),
        ("dim = '8'", "dim is '8'; it must be a whole number"),
        ("lr = true", "lr is True; it must be a number"),
        ("header = 'no'", "header is 'no'; it must be true or false"),
        ("policy = ['lru']", "policy is ['lru']; it must be a text"),
        ("setting = ['fp32', 4]", "setting is 4; it must be a text"),
        ("json = 3", "json is 3; it must be a text"),
        ("batch-size = 1\nbatch_size = 2", "'batch_size' is there twice"),
        ("dim = ", "is not TOML: "),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as error:
        read(tmp_path, text)
    assert f"--config {tmp_path / 'train.toml'}: " in str(error.value)
    assert message in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no\.toml: cannot be read: No such file"):
        read_config(tmp_path / "no.toml", HINTS)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(OptionError, match="is not TOML"):
        read_config(tmp_path / "bytes", HINTS)


def test_every_option_of_train_can_be_in_a_file(tmp_path: Path) -> None:
    """One value of its type for each, as TOML has it."""
    hints = get_type_hints(cli.train)
    names = set(hints) - {"context", "config", "return"}
    values = {"int": "1", "float": "1.0", "str": "'x'", "bool": "true", "Path": "'x'"}
    lines = []
    for name in sorted(names):
        kind = str(hints[name])
        (value,) = {text for word, text in values.items() if word in kind.replace("'", "")} or {""}
        lines.append(f"{name.replace('_', '-')} = {value}")
    path = tmp_path / "all.toml"
    path.write_text("\n".join(lines))
    assert set(read_config(path, {name: hints[name] for name in names})) == names
