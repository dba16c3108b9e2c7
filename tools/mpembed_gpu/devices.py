"""The best rates of GPUs, from their data sheets, and assumed latencies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One GPU."""

    name: str
    arch: str
    memory: float  # bytes per second
    l2: float
    bus: float
    processors: int
    clock: float  # Hz
    fp32_lanes: int  # per scheduler
    far: float  # seconds that a load from memory takes, under load
    near: float  # from the L1 cache
    cached: float  # from the L2 cache

    def issue(self, units: Mapping[str, float]) -> float:
        """Return the seconds of warp instructions, counted by unit, on all schedulers.

        A scheduler issues one instruction a cycle. Its integer lanes serve half a warp a cycle, a
        quarter of the memory unit 8 lanes, conversions and special functions 4.
        """
        fma = units.get("fma", 0.0) * 32 / self.fp32_lanes + units.get("imad", 0.0) * 2
        cycles = max(
            sum(units.values()),
            fma,
            units.get("alu", 0.0) * 2,
            units.get("lsu", 0.0) * 4,
            units.get("xu", 0.0) * 8,
        )
        return cycles / (SCHEDULERS * self.processors * self.clock)


SCHEDULERS = 4  # per multiprocessor
# Those of docs/gpu_model.md.
DEVICES = (
    Device("H100", "90", 3.35e12, 5.5e12, 55e9, 132, 1.755e9, 32, 0.6e-6, 0.02e-6, 0.25e-6),
    Device("A100", "80", 2.0e12, 4.0e12, 25e9, 108, 1.41e9, 16, 0.6e-6, 0.025e-6, 0.25e-6),
)
# And those whose measured times are compared with what memory allows.
MEASURED = (
    *DEVICES,
    Device("H200", "90", 4.8e12, 5.5e12, 55e9, 132, 1.755e9, 32, 0.6e-6, 0.02e-6, 0.25e-6),
)


def measured(name: str) -> Device | None:
    """Return the device of a driver's name for a GPU, None if its rates are not known."""
    return next((device for device in MEASURED if device.name in name), None)
