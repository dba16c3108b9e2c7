"""Which states of an optimizer another one keeps, and how a report says it."""

from mpembed._checkpoint.changes import states_of
from mpembed.load_report import LoadReport
from mpembed.optim import Optimizer


def kept_states(old: Optimizer | None, new: Optimizer | None) -> tuple[str, ...]:
    """Return the states that stay, by name: all that the new optimizer has, or none.

    An update reads them together. Adam's first moment over a second one that starts at 0 would be
    a step many times too long.
    """
    had, has = states_of(old), states_of(new)
    fits = all(name in had and had[name][0] == shape for name, (shape, _) in has.items())
    return tuple(has) if fits else ()


def report_states(
    report: LoadReport, table: str, old: Optimizer | None, new: Optimizer | None
) -> None:
    """Note what becomes of a table's states."""
    had, has, kept = states_of(old), states_of(new), kept_states(old, new)
    for name, (shape, precision) in has.items():
        state = f"table {table!r}: state {name!r}"
        if name in kept and had[name][1] == precision:
            report.kept.append(state)
        elif name in kept:
            report.converted.append(f"{state} from {had[name][1]} to {precision}")
        elif name not in had:
            report.started.append(f"{state}, which is new")
        elif had[name][0] != shape:
            report.started.append(f"{state}, whose shape has changed")
        else:
            report.started.append(f"{state}, as the others of its optimizer do")
    report.dropped.extend(f"table {table!r}: state {name!r}" for name in had if name not in has)


def started_late(
    table: str, old: Optimizer | None, new: Optimizer | None, updates: int
) -> str | None:
    """Return what to say of states that start anew while the count of updates goes on."""
    if new is None or updates == 0 or not new.states or kept_states(old, new):
        return None
    factor = new.late_step(updates)
    if factor <= 1:
        return None
    return (
        f"table {table!r}: its states start anew, but the count of updates stays {updates:,}, "
        f"since other tables keep theirs: the first step of each row is {factor:.1f} times that of "
        "a new collection (lower the table's lr at first)"
    )
