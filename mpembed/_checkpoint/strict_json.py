"""JSON of a file that may be damaged, or made to do harm."""

import json
from typing import Any, NoReturn

#: More than the largest collection takes; a list in JSON is far smaller than in memory.
_MAX_VALUES = 1 << 22


def parse(text: str) -> Any:
    """Return what a text says.

    Raises
    ------
    ValueError
        If it is not valid JSON as RFC 8259 has it, or says two things under one name, or nests
        deeply or has a great many values.
    """
    if sum(map(text.count, ",[{")) > _MAX_VALUES:
        raise ValueError(f"it has more than {_MAX_VALUES} values")
    try:
        found = json.loads(text, object_pairs_hook=_members, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if "\\ud" in text or "\\uD" in text:  # halves of pairs alone are no text
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("it has a name twice")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
