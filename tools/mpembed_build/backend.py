"""The build backend: setuptools, which also requires NVIDIA's compiler where it is needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

from mpembed_build import source_archive
from mpembed_build.requirements import compiler_wheels
from mpembed_build.settings import BuildError

Settings = dict[str, Any] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return the packages to install before a wheel is built."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_compiler()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """Return the packages to install before the package is built in place."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_compiler()]


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """Build the source archive; its bytes depend on the files and ``SOURCE_DATE_EPOCH`` alone."""
    try:
        epoch = source_archive.epoch(os.environ)
    except BuildError as error:
        raise SystemExit(f"error: {error}") from None
    name = build_meta.build_sdist(sdist_directory, config_settings)
    source_archive.normalise(Path(sdist_directory, name), epoch)
    return name


def _compiler() -> list[str]:
    try:
        return compiler_wheels(os.environ, Path.cwd())
    except BuildError as error:
        raise SystemExit(f"error: {error}") from None
