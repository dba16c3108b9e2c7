"""The environment variables that say whether and how the CUDA extension is built."""

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


def _one_of(environment: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    """Return the value of a variable; the first choice is the default."""
    value = environment.get(name) or choices[0]
    if value not in choices:
        listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise BuildError(f"{name} must be {listed}, got {value!r}")
    return value
