"""What an optimizer's struct declares, read out of the compiled code."""

import math
from dataclasses import dataclass

from mpembed import registry

_BEGIN = b"mpembed-own-optimizer \n"  # kernels/own_description.h writes it
_RESERVED_STATES = ("rows",)  # a table's arrays are its rows and its states
_RESERVED_PARAMETERS = ("lr", "weight_decay")


@dataclass(frozen=True)
class Description:
    """States and parameters.

    Attributes
    ----------
    states : tuple of (str, int, float)
        Name, shape and initial value of each.
    parameters : tuple of str
        The optimizer's own, in order.
    """

    states: tuple[tuple[str, int, float], ...]
    parameters: tuple[str, ...]


def read(name: str, code: bytes) -> Description:
    """Return what compiled code says of the optimizer with this name."""
    begin = code.index(_BEGIN) + len(_BEGIN)
    lines = code[begin : code.index(b"end \n", begin)].decode("utf-8", "replace").splitlines()
    states: list[tuple[str, int, float]] = []
    parameters: list[str] = []
    for line in lines:
        kind, own, *numbers = line.rstrip().split(" ")
        if kind == "state":
            shape, mantissa, exponent = map(int, numbers)
            states.append((own, shape, math.ldexp(mantissa, exponent)))
        else:
            parameters.append(own)
    _check_names(name, "state", [own for own, *_ in states], _RESERVED_STATES)
    _check_names(name, "parameter", parameters, _RESERVED_PARAMETERS)
    for own, shape, _ in states:
        if shape not in (registry.STATE_ROW, registry.STATE_ELEMENT):
            raise ValueError(f"optimizer {name!r}: state {own!r} has shape {shape}")
    return Description(tuple(states), tuple(parameters))


def _check_names(name: str, what: str, found: list[str], reserved: tuple[str, ...]) -> None:
    for own in found:
        if not own.isidentifier() or not own.isascii():
            raise ValueError(f"optimizer {name!r}: {what} {own!r} must be a name of ASCII letters")
        if own in reserved:
            raise ValueError(f"optimizer {name!r}: {what} {own!r} has a name that is taken")
    if len(set(found)) != len(found):
        raise ValueError(f"optimizer {name!r}: each {what} needs a name of its own, got {found}")
