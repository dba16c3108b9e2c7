"""The GPU architectures to compile for, in nvcc's words: sm_N is machine code, compute_N is PTX."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT = ("75", "80", "86", "89", "90", "100", "120")
_ENTRY = re.compile(r"(?:sm_)?(?P<both>\d{2,3}[af]?)(?P<ptx>\+PTX)?|compute_(?P<only>\d{2,3}[af]?)")


@dataclass(frozen=True)
class Architecture:
    """One architecture, with its machine code, its PTX or both."""

    number: str
    sass: bool = True
    ptx: bool = False

    def names(self) -> list[str]:
        """Return what is embedded, such as ``["sm_80", "compute_80"]``."""
        sass = [f"sm_{self.number}"] if self.sass else []
        return sass + ([f"compute_{self.number}"] if self.ptx else [])

    def flags(self) -> list[str]:
        """Return nvcc's flags."""
        return ["-gencode", f"arch=compute_{self.number},code=[{','.join(self.names())}]"]


def parse(text: str) -> tuple[Architecture, ...]:
    """Return the architectures of a list such as ``80;90+PTX``.

    Entries are separated by semicolons, commas or blanks: ``90`` or ``sm_90`` is machine code,
    ``90+PTX`` is machine code and PTX, ``compute_90`` is PTX alone.
    """
    found: dict[str, Architecture] = {}
    for entry in re.split(r"[;,\s]+", text.strip()):
        if not entry:
            continue
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(f"{entry!r} is none of 90, sm_90, 90+PTX and compute_90")
        number = match["both"] or match["only"]
        before = found.get(number, Architecture(number, sass=False))
        found[number] = Architecture(
            number,
            sass=before.sass or match["both"] is not None,
            ptx=before.ptx or match["ptx"] is not None or match["only"] is not None,
        )
    return tuple(found.values())


def choose(asked: tuple[Architecture, ...], supported: Iterable[str]) -> tuple[Architecture, ...]:
    """Return the architectures that were asked for, or those of the default that nvcc supports.

    The default is machine code for all of `DEFAULT` and PTX of the newest of them, from which a
    driver compiles for later GPUs.
    """
    known = set(supported)
    unknown = [a.number for a in asked if a.number.rstrip("af") not in known]
    if unknown:
        known_here = ", ".join(sorted(known, key=int))
        raise ValueError(f"this nvcc does not know {', '.join(unknown)}, only {known_here}")
    if asked:
        return asked
    numbers = [number for number in DEFAULT if number in known]
    if not numbers:
        raise ValueError(f"this nvcc knows none of {', '.join(DEFAULT)}")
    return tuple(Architecture(number, ptx=number == numbers[-1]) for number in numbers)
