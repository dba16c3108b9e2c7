"""The lists of ``include/mpembed/registry.h``, and what the headers of their entries say.

They are read from the sources, so that the model and the gates know a format, optimizer or policy
as soon as it is registered, without a compiled package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

INCLUDE = Path(__file__).resolve().parents[2] / "include" / "mpembed"
_SHAPES = {"kStateRow": False, "kStateElement": True}
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
class State:
    """A state of an optimizer: a value per element, or else one per row."""

    name: str
    element: bool

    def size(self, dim: int, value: int = 4) -> int:
        """Return the bytes of a row's, `value` bytes each."""
        return value * dim if self.element else value


@dataclass(frozen=True)
class Optimizer:
    """An optimizer and what it keeps for a row."""

    name: str
    type: str
    states: tuple[State, ...]

    @property
    def shapes(self) -> tuple[bool, ...]:
        """Which of its states have a value per element."""
        return tuple(state.element for state in self.states)


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
    header = f"optim/{name}.h"
    body = _match(rf"struct {cpp_type} : \w+ \{{(.*?)\n\}};", header, re.DOTALL)[1]
    found = re.search(r"kStates\[\] = \{(.*?)\};", body, re.DOTALL)
    states = re.findall(r'\{"(\w+)", (\w+), ', found[1] if found else "")
    return Optimizer(name, cpp_type, tuple(State(entry, _SHAPES[s]) for entry, s in states))


def _match(pattern: str, header: str, flags: re.RegexFlag = re.NOFLAG) -> re.Match[str]:
    match = re.search(pattern, (INCLUDE / header).read_text(), flags)
    if match is None:
        raise ValueError(f"{header} is not as mpembed_gpu/registry.py knows it: no {pattern}")
    return match


def read_formats() -> tuple[Format, ...]:
    """Return the registered formats."""
    return tuple(_format(*entry) for entry in entries("FORMATS"))


FORMATS = read_formats()
OPTIMIZERS = tuple(_optimizer(*entry) for entry in entries("OPTIMIZERS"))
# One for each list of states: the others move the same bytes.
_FIRST = {optimizer.shapes: optimizer for optimizer in reversed(OPTIMIZERS)}
KINDS = tuple(_FIRST[shapes] for shapes in sorted(_FIRST))
POLICIES = tuple(Policy(*entry) for entry in entries("POLICIES"))
