"""Machine code as text: functions, instructions and the kind of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

_FUNCTION = re.compile(r"^\.text\.(\S+):$")
_LABEL = re.compile(r"^(\.L_\S+|\$\S+):$")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")

# Which unit an opcode occupies. Opcodes not listed are control flow, or use units that never limit
# a kernel (uniform registers, constants).
UNITS = {
    "fma": "FFMA FADD FMUL HADD2 HFMA2 HMUL2",
    "imad": "IMAD",
    "alu": "IADD3 IADD LOP3 LEA SHF ISETP FSETP SEL FSEL PRMT FMNMX IMNMX VIMNMX VIMNMX3 VIADD "
    "VIADDMNMX I2FP F2FP FCHK BMSK SGXT IABS MOV CS2R PLOP3 P2R R2P VOTE FMNMX3 LOP ISCADD "
    "VABSDIFF",
    "xu": "MUFU I2F F2I F2F FRND POPC FLO BREV I2I",
    "lsu": "LDG LD STG ST ATOM ATOMG RED REDG SHFL LDS STS ATOMS LDL STL MATCH",
}
_UNIT = {name: unit for unit, names in UNITS.items() for name in names.split()}
LOADS, STORES = ("LDG", "LD"), ("STG", "ST")
ATOMICS = ("ATOM", "ATOMG", "RED", "REDG")
SPILLS = ("LDL", "STL")
WIDTHS = (128, 64, 32, 16, 8)


@dataclass
class Instruction:
    """One instruction; `label` stands before it."""

    guard: str
    opcode: str
    operands: str
    labels: list[str] = field(default_factory=list)

    @property
    def base(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".", 1)[0]


def unit(opcode: str) -> str:
    """Return the unit that executes an opcode."""
    return _UNIT.get(opcode.split(".", 1)[0], "control")


def width(opcode: str) -> int:
    """Return the bits that a load or store moves for each lane."""
    parts = opcode.split(".")
    for bits, names in ((128, ("128",)), (64, ("64",)), (16, ("U16", "S16")), (8, ("U8", "S8"))):
        if any(name in parts for name in names):
            return bits
    return 32


def functions(listing: str) -> dict[str, list[Instruction]]:
    """Return the instructions of each function of a listing by nvdisasm, by mangled name."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    labels: list[str] = []
    for line in listing.splitlines():
        if match := _FUNCTION.match(line):
            current = found.setdefault(match[1], [])
            labels = []
        elif match := _LABEL.match(line.strip()):
            labels.append(match[1])
        elif match := _INSTRUCTION.match(line):
            current.append(Instruction(match[1] or "", match[2], match[3], labels))
            labels = []
    return found


@dataclass(frozen=True)
class Mix:
    """How many instructions of each kind there are."""

    loads: tuple[int, ...]  # by WIDTHS
    stores: tuple[int, ...]
    atomics: int
    shuffles: int
    fp32: int
    integer: int
    spills: int
    total: int


def mix(opcodes: Iterable[str]) -> Mix:
    """Count opcodes by kind, as the table of the page does."""
    counts = Counter(opcodes)

    def of(*bases: str) -> int:
        return sum(n for opcode, n in counts.items() if opcode.split(".", 1)[0] in bases)

    def wide(bases: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(
            sum(n for o, n in counts.items() if o.split(".", 1)[0] in bases and width(o) == bits)
            for bits in WIDTHS
        )

    arithmetic = [o for o in counts if unit(o) in ("fma", "imad", "alu")]
    return Mix(
        wide(LOADS),
        wide(STORES),
        of(*ATOMICS),
        of("SHFL"),
        sum(counts[o] for o in arithmetic if o.startswith(("F", "HFMA", "HADD", "HMUL"))),
        sum(counts[o] for o in arithmetic if not o.startswith(("F", "H", "MOV", "CS2R"))),
        of(*SPILLS),
        counts.total() - of("NOP"),
    )
