"""The package's version, as installed; it is written in pyproject.toml only."""

from importlib.metadata import version

__version__ = version("mpembed")
