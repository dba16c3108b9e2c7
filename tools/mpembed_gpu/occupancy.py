"""How many warps a multiprocessor holds at a time, by the rules of CUDA's cuda_occupancy.h."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Multiprocessor:
    """The limits of one multiprocessor."""

    warps: int = 64
    blocks: int = 32
    registers: int = 65536
    shared: int = 0  # bytes
    reserved: int = 1024  # bytes of shared memory that each block takes on top


LIMITS = {
    "80": Multiprocessor(shared=167936),
    "90": Multiprocessor(shared=233472),
    "100": Multiprocessor(shared=233472),
}
_REGISTER_UNIT = 256  # a warp's registers are allocated in this unit
_SHARED_UNIT = 128
_SCHEDULERS = 4  # each has its quarter of the registers


def resident_warps(arch: str, registers: int, shared: int, threads: int = 256) -> int:
    """Return the warps that one multiprocessor holds at a time.

    Parameters
    ----------
    arch : str
        ``"80"``, ``"90"`` or ``"100"``.
    registers : int
        Registers a thread.
    shared : int
        Bytes of shared memory a block.
    threads : int
        Threads a block.
    """
    limits = LIMITS[arch]
    warps = -(-threads // 32)
    blocks = min(limits.blocks, limits.warps // warps)
    if registers > 0:
        per_warp = _round_up(registers * 32, _REGISTER_UNIT)
        held = limits.registers // _SCHEDULERS // per_warp * _SCHEDULERS
        blocks = min(blocks, held // _round_up(warps, _SCHEDULERS))
    taken = _round_up(shared + limits.reserved, _SHARED_UNIT)
    blocks = min(blocks, limits.shared // taken)
    return blocks * warps


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
