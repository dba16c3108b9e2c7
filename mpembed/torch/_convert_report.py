"""What `convert` says: the memory before and after, table by table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mpembed import registry
from mpembed.optim import Optimizer
from mpembed.torch._bag import Embedding, EmbeddingBag
from mpembed.torch._convert_select import Selection

_LINES = 8  # tables and names that are listed


class ConvertWarning(UserWarning):
    """A weight or module that `convert` replaced is still held, and nothing trains it."""


class TableMemory(NamedTuple):
    """A table's bytes, with its optimizer state: as PyTorch's module and as mpembed's."""

    name: str
    shape: tuple[int, int]
    precision: str
    before: int
    after: int


def measure(
    selection: Selection, made: Mapping[str, Embedding | EmbeddingBag], optimizer: Optimizer
) -> list[TableMemory]:
    """Return what each table takes before and after.

    Parameters
    ----------
    selection : Selection
        The modules that are replaced.
    made : mapping of str -> module
        Their replacements.
    optimizer : Optimizer
        The states of which are counted on both sides: before in FP32, as ``torch.optim`` keeps
        them, and only where the weight requires grad.
    """
    measured = []
    for name, module in selection.chosen.items():
        weight = module.weight
        before = weight.numel() * weight.element_size()
        if weight.requires_grad:
            before += state_bytes(optimizer, *weight.shape)
        after = int(made[name].tables.memory_report()["total"])
        shape = (weight.shape[0], weight.shape[1])
        measured.append(TableMemory(name, shape, selection.precisions[name], before, after))
    return measured


def state_bytes(optimizer: Optimizer, rows: int, columns: int) -> int:
    """Return the bytes of an optimizer's states of a table in FP32."""
    values = (1 if state.shape == registry.STATE_ROW else columns for state in optimizer.states)
    return 4 * rows * sum(values)


def report(tables: list[TableMemory], optimizer: Optimizer, left_out: Mapping[str, str]) -> str:
    """Return the text that `convert` prints."""
    before, after = sum(t.before for t in tables), sum(t.after for t in tables)
    formats = ", ".join(sorted({table.precision for table in tables}))
    kept = f"{type(optimizer).__name__}'s state" if optimizer.states else "no optimizer state"
    lines = [
        f"{len(tables)} table(s) to {formats}: {size(before)} of weights and {kept} -> "
        f"{size(after)} with cache, {ratio(before, after)}"
    ]
    for table in sorted(tables, key=lambda table: -table.before)[:_LINES]:
        shape = "{:,} x {}".format(*table.shape)
        lines.append(
            f"  {table.name}: {shape} in {table.precision}, {size(table.before)} -> "
            f"{size(table.after)}, {ratio(table.before, table.after)}"
        )
    if len(tables) > _LINES:
        lines.append(f"  ... {len(tables) - _LINES} more")
    lines += _gains_nothing(tables)
    if left_out:
        lines.append(
            f"  left as they are: {listed([f'{n} ({why})' for n, why in left_out.items()])}"
        )
    return "\n".join(lines)


def _gains_nothing(tables: list[TableMemory]) -> list[str]:
    """Name the tables that are not smaller than before, with what helps."""
    lines = []
    useless = [table for table in tables if table.after >= table.before]
    wide = [table.name for table in useless if _wide(table)]
    small = [table.name for table in useless if not _wide(table)]
    if wide:
        lines.append(
            f"  in fp32 these rows would be smaller, and exact: {listed(wide)} "
            '(precision={"name": "fp32"})'
        )
    if small:
        lines.append(
            f"  too small to gain memory: {listed(small)} (exclude= or min_rows= leaves them out)"
        )
    return lines


def _wide(table: TableMemory) -> bool:
    """Whether a row takes more bytes than in FP32."""
    return registry.row_bytes(table.precision, table.shape[1]) > 4 * table.shape[1]


def listed(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _LINES} more" if len(names) > _LINES else ""
    return ", ".join(names[:_LINES]) + more


def ratio(before: int, after: int) -> str:
    """Return how many times smaller it is."""
    return f"{before / after:.2f}x" if after else "no memory"


def size(nbytes: int) -> str:
    """Return a number of bytes with a unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes} B"
