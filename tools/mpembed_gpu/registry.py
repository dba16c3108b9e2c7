"""The lists of ``include/mpembed/registry.h``, and what the headers of their entries say.

They are read from the sources, so that the model and the gates know a format, optimizer or policy
as soon as it is registered, without a compiled package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

INCLUDE = Path(__file__).resolve().parents[2] / "include" / "mpembed"
_STATES = {"kStateNone": 0, "kStateRow": 1, "kStateElement": 2}
_C_TYPES = {"uint16_t": 16, "float": 32}


@dataclass(frozen=True)
class Format:
    """A format: bits per value and bytes of a row's header. `type` is the C++ name."""

    name: str
    type: str
    bits: int
    header: int

    def row(self, dim: int) -> int:
        """Return the bytes of a row."""
        return -(-dim * self.bits // 8) + self.header


@dataclass(frozen=True)
class Optimizer:
    """An optimizer. `state`: 0 keeps nothing, 1 a value per row, 2 a value per element."""

    name: str
    type: str
    state: int


@dataclass(frozen=True)
class Policy:
    """An admission policy of the cache."""

    name: str
    type: str


def entries(name: str) -> list[tuple[str, str]]:
    """Return the names and C++ types of one list, such as ``"FORMATS"``, by ascending number."""
    body = _match(rf"#define MPE_{name}\(X\)((?:.*\\\n)*.*\n)", "registry.h")[1]
    found = re.findall(r"X\((\d+), (\w+), (\w+)\)", body)
    return [(entry, cpp_type) for _, entry, cpp_type in sorted(found, key=lambda x: int(x[0]))]


def _format(name: str, cpp_type: str) -> Format:
    match = _match(rf"struct {cpp_type} : (Plain|Affine)<(\w+), (\w+)>", f"format/{name}.h")
    if match[1] == "Plain":
        return Format(name, cpp_type, _C_TYPES[match[2]], 0)
    header = _match(rf"struct {match[3]} \{{[^}}]*?kBytes = (\d+);", "format/affine.h")
    return Format(name, cpp_type, int(match[2]), int(header[1]))


def _optimizer(name: str, cpp_type: str) -> Optimizer:
    shape = _match(r"StateShape kState = (\w+);", f"optim/{name}.h")[1]
    return Optimizer(name, cpp_type, _STATES[shape])


def _match(pattern: str, header: str) -> re.Match[str]:
    match = re.search(pattern, (INCLUDE / header).read_text())
    if match is None:
        raise ValueError(f"{header} is not as mpembed_gpu/registry.py knows it: no {pattern}")
    return match


def read_formats() -> tuple[Format, ...]:
    """Return the registered formats."""
    return tuple(_format(*entry) for entry in entries("FORMATS"))


FORMATS = read_formats()
OPTIMIZERS = tuple(_optimizer(*entry) for entry in entries("OPTIMIZERS"))
POLICIES = tuple(Policy(*entry) for entry in entries("POLICIES"))
