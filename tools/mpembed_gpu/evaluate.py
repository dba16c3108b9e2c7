"""Scenarios evaluated on the compiled kernels: the rows of the page's tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mpembed_gpu import cubins, report, sass
from mpembed_gpu.devices import DEVICES, Device
from mpembed_gpu.model import Estimate, Path, estimate
from mpembed_gpu.registry import FORMATS, Format
from mpembed_gpu.report import Kernel
from mpembed_gpu.sass import Instruction
from mpembed_gpu.scenarios import BATCH, DIMS, SCENARIOS, Scenario
from mpembed_gpu.traffic import Bytes

ARCH = "90"  # whose instructions are counted
Code = dict[str, list[Instruction]]


@dataclass(frozen=True)
class Row:
    """One line of a table; `estimates` in the order of the devices."""

    label: str
    dim: int
    bytes: Bytes
    path: Path | None
    estimates: tuple[Estimate, ...]


class Evaluation:
    """The kernels of all architectures, and the probes that single out a format."""

    def __init__(
        self,
        tools: cubins.Kernels,
        kernels: Iterable[Kernel],
        scenarios: Sequence[Scenario] = (*SCENARIOS, *BATCH),
        formats: Sequence[Format] = FORMATS,
    ) -> None:
        self.tools = tools
        self.kernels = {(k.family, k.arch, k.name): k for k in kernels}
        sources = {source.stem: source for source in cubins.sources()}
        plain = {
            (s.family, ""): tools.job(sources[s.family], ARCH, model=True)
            for s in scenarios
            if not s.probe
        }
        probes = {
            (s.family, f.type): tools.probe(sources[s.family], ARCH, f.type)
            for s in scenarios
            if s.probe
            for f in formats
        }
        self.jobs = {**plain, **probes}
        tools.compile(list(self.jobs.values()))
        self.code: dict[tuple[str, str], Code] = {}

    def rows(self, scenario: Scenario) -> Iterator[Row]:
        """Return the lines of an operation for all dimensions and formats."""
        for dim in DIMS:
            for fmt in FORMATS:
                yield self.row(scenario, fmt.name, fmt, dim)

    def batch(self) -> Iterator[Row]:
        """Return the lines of what a batch costs in any format."""
        for scenario in BATCH:
            yield self.row(scenario, scenario.title, FORMATS[0], DIMS[0])

    def row(self, scenario: Scenario, label: str, fmt: Format, dim: int) -> Row:
        """Return one line."""
        moved, path = scenario.bytes(fmt, dim), self.path(scenario, fmt, dim)
        estimates = (self.estimate(scenario, fmt, dim, device) for device in DEVICES)
        return Row(label, dim, moved, path, tuple(estimates))

    def path(self, scenario: Scenario, fmt: Format, dim: int) -> Path | None:
        """Return what a warp does, None where only bytes are counted."""
        wanted = scenario.kernel(fmt, dim)
        if not wanted:
            return None
        code = self._code(scenario.family, fmt.type if scenario.probe else "")
        return scenario.path(fmt, dim, code[_only(code, wanted)])

    def estimate(self, scenario: Scenario, fmt: Format, dim: int, device: Device) -> Estimate:
        """Return the time of a row on a device."""
        moved, path = scenario.bytes(fmt, dim), self.path(scenario, fmt, dim)
        if path is None:
            return estimate(device, moved)
        here = {
            n: k
            for (f, a, n), k in self.kernels.items()
            if (f, a) == (scenario.family, device.arch)
        }
        warps = here[_only(here, scenario.kernel(fmt, dim))].warps
        return estimate(device, moved, path, warps)

    def _code(self, family: str, cpp_type: str) -> Code:
        """Return the instructions of our kernels in one cubin, by short name."""
        key = (family, cpp_type)
        if key not in self.code:
            found = sass.functions(self.tools.listing(self.jobs[key].target))
            names = cubins.demangle(list(found))
            short = {report.short_name(names[mangled]): mangled for mangled in found}
            self.code[key] = {name: found[m] for name, m in short.items() if name}
        return self.code[key]


def _only(names: Iterable[str], wanted: str) -> str:
    """Return the one kernel whose name begins so, up to further template arguments."""
    found = [n for n in names if n.startswith(wanted) and n[len(wanted) :][:1] in ("", ",", ">")]
    if len(found) != 1:
        raise LookupError(f"{len(found)} kernels are called {wanted}: see mpembed_gpu/scenarios.py")
    return found[0]
