"""How often a path waits for memory, found by issuing its instructions in order."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mpembed_gpu.sass import ATOMICS, LOADS, STORES, Instruction, width

_REGISTER = re.compile(r"\b(U?R)(\d+)(\.64)?")
_ADDRESS = re.compile(r"\[R(\d+)(?:\.64)?(?:\+(-?0x[0-9a-f]+))?\]")
_TARGET = re.compile(r"\s*(U?R)(\d+)(?:\.reuse)?\s*")
_NAME = re.compile(r"\bU?[RP]\d+")
# Their results depend on more than the registers they name.
_FRESH = ("VOTE", "VOTEU", "SHFL", "MATCH", "SEL", "FSEL", "USEL", "REDUX", "S2R", "ATOM", "ATOMG")
_NO_TARGET = (*STORES, "STS", "STL", "RED", "REDG", "BRA", "BSSY", "BSYNC", "EXIT", "CALL", "RET")
_RETURNS = ("ATOM", "ATOMG")  # atomics whose old value is used
_SECTOR = 32
_FAR, _NEAR = 1000, 1  # in any unit, far apart


@dataclass(frozen=True)
class Waits:
    """The loads that a warp waits for, one after another."""

    far: int  # of sectors that it reads for the first time
    near: int  # of sectors that it has read, which lie in the L1 cache


class _Values:
    """Names for the values in registers: equal names mean equal values."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.known: dict[object, int] = {}

    def read(self, register: str) -> int:
        if register not in self.names:
            self.write(register, register)
        return self.names[register]

    def write(self, register: str, what: object) -> None:
        self.names[register] = self.known.setdefault(what, len(self.known))


def waits(path: Iterable[Instruction]) -> Waits:
    """Return the waits of one pass over a path.

    Loads are issued in order; an instruction that reads a register that is still being loaded waits
    for it. A load is near if its sector, counted from the same base address, was loaded before.
    """
    now = 0
    ready: dict[str, int] = {}
    values = _Values()
    loaded: dict[tuple[object, int], int] = {}
    for one in path:
        written, read = _operands(one)
        for register in read:
            now = max(now, ready.pop(register, 0))
        done = now
        form = (one.opcode, _NAME.sub("", one.operands))
        what: object = (form, *map(values.read, read))
        if one.base in (*LOADS, *_RETURNS):
            place = _place(one, values)
            near = place in loaded and one.base in LOADS
            done = max(now, loaded.get(place, 0)) + (_NEAR if near else _FAR)
            loaded.setdefault(place, done)
            what = (form, place)
        if one.guard or one.base in _FRESH:
            what = len(values.known)  # unlike any other
        for k, register in enumerate(written):
            values.write(register, (k, what))
            ready[register] = done
    return Waits(now // _FAR, now % _FAR)


def _place(one: Instruction, values: _Values) -> tuple[object, int]:
    match = _ADDRESS.search(one.operands)
    if match is None:
        return one.operands, 0
    low = int(match[1])
    return (values.read(f"R{low}"), values.read(f"R{low + 1}")), int(match[2] or "0", 16) // _SECTOR


def _operands(one: Instruction) -> tuple[list[str], list[str]]:
    """Return the registers that an instruction writes and reads."""
    operands = one.operands.split(",")
    target = None
    if one.base not in _NO_TARGET:
        # A predicate may come first, as in ATOMG.E.ADD PT, R1, desc[UR4][R2.64], R5.
        place = 1 if one.base in (*ATOMICS, "SHFL", "MATCH") and len(operands) > 1 else 0
        target = _TARGET.fullmatch(operands[place])
        if target:
            operands = operands[:place] + operands[place + 1 :]
    text = ",".join(operands)
    read = [
        f"{m[1]}{int(m[2]) + k}" for m in _REGISTER.finditer(text) for k in range(2 if m[3] else 1)
    ]
    if target is None:
        return [], read
    return [f"{target[1]}{int(target[2]) + k}" for k in range(_count(one))], read


def _count(one: Instruction) -> int:
    """Return how many registers an instruction writes."""
    if ".WIDE" in one.opcode or one.base == "CS2R":
        return 2
    if one.base in (*LOADS, *_RETURNS, "LDC", "LDS", "LDL", "ULDC"):
        return max(1, width(one.opcode) // 32)
    return 1
