"""Tables of a comparison, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from distributed.cases import TORCHREC

Result = dict[str, Any]
_HEAD = (
    "| ranks | D | L | mode | | CPU ms | to TorchRec's | kB a step | by the formula | MB held |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def cpu(result: Result) -> float:
    """Return milliseconds of CPU a rank and step: the mean of the ranks, the median of rounds."""
    rounds: list[float] = [statistics.mean(one) for one in zip(*result["cpu"], strict=True)]
    return 1e3 * statistics.median(rounds)


def relative_cpu(result: Result, other: Result) -> float:
    """Return the CPU time in terms of another's: the median of the ratios of each round."""
    rounds = zip(zip(*result["cpu"], strict=True), zip(*other["cpu"], strict=True), strict=True)
    ratios: list[float] = [sum(mine) / sum(theirs) for mine, theirs in rounds]
    return statistics.median(ratios)


def sent(result: Result) -> float:
    """Return the bytes of a step on the wire, of all ranks: the median of rounds."""
    rounds: list[float] = [sum(ranks) for ranks in zip(*result["received"], strict=True)]
    return statistics.median(rounds)


def table(results: Iterable[Result]) -> str:
    """Return the results as a table; ratios are to TorchRec's in the same mode and run."""
    lines = [_HEAD]

    def group(one: Result) -> tuple[Any, ...]:
        return one["world"], one["length"], one["dim"], one["batch"], one["mode"]

    for (world, length, dim, _, mode), found in groupby(results, group):
        lines += _lines(f"{world} | {dim} | {length} | {mode}", list(found))
    return "\n".join(lines)


def _lines(where: str, found: Sequence[Result]) -> list[str]:
    base = next((one for one in found if one["name"] == TORCHREC), None)
    lines = []
    for one in found:
        ratio = "" if base in (None, one) else f"{relative_cpu(one, base or one):.2f}"
        expected = sum(one["expected"])
        off = sent(one) / expected - 1
        lines.append(
            f"| {where} | {one['name']} | {cpu(one):.2f} | {ratio} "
            f"| {sent(one) / 1e3:,.0f} | {expected / 1e3:,.0f} ({off:+.1%}) "
            f"| {sum(one['held']) / 1e6:.1f} |"
        )
    return lines
