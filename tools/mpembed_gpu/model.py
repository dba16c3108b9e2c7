"""The modelled time of a kernel per row, from bytes, instructions and waits, and its bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mpembed_gpu.devices import Device
from mpembed_gpu.latency import Waits
from mpembed_gpu.traffic import Bytes

LIMIT = 1.3  # times the floor; the page explains times above it
# Average cycles from one instruction of a warp to its next, waits for memory apart.
STRIDE = 2.0


@dataclass(frozen=True)
class Path:
    """The work of one warp: instructions by unit, waits, and the number of rows."""

    units: Mapping[str, float]
    waits: Waits
    rows: float
    memory: float | None = None  # waits for memory, not the L2 cache; None: all

    @property
    def instructions(self) -> float:
        """Instructions of a warp per row."""
        return sum(self.units.values()) / self.rows


@dataclass(frozen=True)
class Estimate:
    """Seconds per row; `parts` by what takes them, the largest of which is the bound."""

    floor: float
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def bound(self) -> str:
        """What bounds the kernel."""
        return max(self.parts, key=lambda name: self.parts[name])

    @property
    def seconds(self) -> float:
        """The modelled time."""
        return self.parts[self.bound]

    @property
    def ratio(self) -> float:
        """The modelled time over that of the floor."""
        return self.seconds / self.floor


def estimate(device: Device, moved: Bytes, path: Path | None = None, warps: int = 0) -> Estimate:
    """Return the time of a row; `warps`: how many a multiprocessor holds at a time.

    Bytes, instructions and waits are assumed to overlap, so only the slowest counts. Without a
    path only bytes count.
    """
    parts = {"memory": moved.memory / device.memory, "L2": moved.l2 / device.l2}
    if path is not None:
        parts["issue"] = device.issue(path.units) / path.rows
        cycles = sum(path.units.values()) * STRIDE
        alone = waiting(device, path) + cycles / device.clock
        parts["latency"] = alone / (path.rows * device.processors * warps)
    return Estimate(moved.floor / device.memory, parts)


def waiting(device: Device, path: Path) -> float:
    """Return the seconds that a warp waits for loads."""
    far = path.waits.far
    memory = far if path.memory is None else min(far, path.memory)
    return memory * device.far + (far - memory) * device.cached + path.waits.near * device.near
