"""What a collection has for each of its tables, by their names."""

from typing import Any, NoReturn, TypeVar

V = TypeVar("V")


class ByTable(dict[str, V]):
    """A dict whose KeyError names the tables that there are."""

    def __missing__(self, name: Any) -> NoReturn:
        raise KeyError(f"no table {name!r}; there are {list(self)}")
