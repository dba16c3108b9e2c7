"""The environment variables that say how the package and its CUDA extension are built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mpembed_build.architectures import Architecture, parse


class BuildError(Exception):
    """A reason to stop the build; the message is for the person who builds."""


@dataclass(frozen=True)
class CudaSettings:
    """What the environment asks for.

    Parameters
    ----------
    mode : {"auto", "0", "1"}
        Build the CUDA extension where possible, never, or else fail.
    nvcc : str
        The compiler named by ``MPEMBED_NVCC`` (empty: search; ``pypi``: only the wheels).
    architectures : tuple of Architecture
        The architectures of ``MPEMBED_CUDA_ARCHS`` (empty: the default).
    runtime : {"static", "shared"}
        The CUDA runtime to link.
    """

    mode: str = "auto"
    nvcc: str = ""
    architectures: tuple[Architecture, ...] = ()
    runtime: str = "static"

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> CudaSettings:
        """Return the settings of an environment; an empty variable counts as not set."""
        try:
            architectures = parse(environment.get("MPEMBED_CUDA_ARCHS", ""))
        except ValueError as error:
            raise BuildError(f"MPEMBED_CUDA_ARCHS: {error}") from None
        return cls(
            mode=_one_of(environment, "MPEMBED_CUDA", ("auto", "0", "1")),
            nvcc=environment.get("MPEMBED_NVCC", ""),
            architectures=architectures,
            runtime=_one_of(environment, "MPEMBED_CUDART", ("static", "shared")),
        )


# What a sanitizer needs to name the line, and to run in bearable time.
SANITIZED = ["-O1", "-g", "-fno-omit-frame-pointer"]
SANITIZERS = ("address", "undefined", "thread")


def sanitizer_flags(environment: Mapping[str, str]) -> list[str]:
    """Return the flags that ``MPEMBED_SANITIZE`` asks for, to come after all others.

    Raises
    ------
    BuildError
        It names something else than sanitizers, or two that exclude each other.
    """
    text = environment.get("MPEMBED_SANITIZE", "")
    names = [name.strip() for name in text.split(",")] if text else []
    if not names:
        return []
    if not set(names) <= set(SANITIZERS):
        listed = ", ".join(SANITIZERS)
        raise BuildError(f"MPEMBED_SANITIZE takes {listed}, separated by commas, got {text!r}")
    if {"address", "thread"} <= set(names):
        raise BuildError("MPEMBED_SANITIZE: address and thread need a build each")
    chosen = ",".join(name for name in SANITIZERS if name in names)
    # A finding ends the process: nobody reads the output of a test that passes.
    return [*SANITIZED, f"-fsanitize={chosen}", "-fno-sanitize-recover=all"]


def _one_of(environment: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    """Return the value of a variable; the first choice is the default."""
    value = environment.get(name) or choices[0]
    if value not in choices:
        listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise BuildError(f"{name} must be {listed}, got {value!r}")
    return value
