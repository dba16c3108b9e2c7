"""The command line, called in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from mpembed import cli


def call(*arguments: str) -> tuple[int, str, str]:
    """Return the exit status and what was printed on both streams."""
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: str) -> str:
    """Give the one line on standard error of a call that must be refused."""
    code, out, err = call(*arguments)
    assert code == 2
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("mpembed: ")
    return line
