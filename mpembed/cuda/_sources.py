"""What is compiled: the user's source between the package's headers."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mpembed import registry
from mpembed.paths import get_include, kernel_headers


class CompileError(ValueError):
    """The source of an optimizer does not compile; the message is the compiler's."""


@dataclass(frozen=True)
class Source:
    """An optimizer's C++.

    Attributes
    ----------
    name : str
        Of its struct, and of the file that messages name.
    text : str
        The struct.
    """

    name: str
    text: str

    def for_cpu(self) -> str:
        """Return the translation unit for the host's compiler."""
        return self._unit("cpu/own_step.h")

    def for_cuda(self, precisions: frozenset[str], long_rows: bool) -> str:
        """Return the translation unit of the kernels, for tables with these formats."""
        types = [f"X({registry.FORMATS[name]}, {name}, {_type(name)})" for name in precisions]
        return self._unit(
            "cuda/own_kernels.cuh",
            f"#define MPE_USED_FORMATS(X) {' '.join(sorted(types))}\n"
            f"#define MPE_OWN_LONG {int(long_rows)}\n",
        )

    def to_describe(self) -> str:
        """Return what NVRTC compiles where the host has no compiler to say what is declared."""
        return self._unit("own_description.h")

    def _unit(self, header: str, before: str = "") -> str:
        # The struct is found before the headers are there, which have others of such names. It may
        # be outside of all namespaces, or in the package's.
        found = (
            "namespace mpembed {}\n"
            f"namespace mpe_own {{ using namespace mpembed; using Optimizer = {self.name}; }}\n"
        )
        return (
            f'{before}#line 1 "{self.name}"\n{self.text}\n#line 1 "mpembed"\n'
            f'{found}#include "{header}"\n'
        )


def _type(precision: str) -> str:
    """Return the type of a format, as registry.h has it: Int8Fp16 for ``"int8_fp16"``."""
    return precision.title().replace("_", "")


def failed(source: Source, compiler: str, messages: str) -> CompileError:
    """Return the error of a compilation."""
    return CompileError(
        f"the source of optimizer {source.name!r} does not compile with {compiler}:\n"
        f"{messages.strip()}"
    )


def include_paths() -> list[str]:
    """Return the folders of the headers."""
    return [get_include(), kernel_headers()]


@cache
def headers_digest() -> str:
    """Return what changes with any of the headers."""
    digest = hashlib.sha256()
    for folder in map(Path, include_paths()):
        for pattern in ("*.h", "*.cuh"):
            for path in sorted(folder.rglob(pattern)):
                digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
