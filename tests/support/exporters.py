"""Arrays that do something as a call takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Exporter:
    """An array that calls a function whenever it is exported."""

    def __init__(self, array: Any, before: Callable[[], Any]) -> None:
        self.array, self.before = array, before

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        self.before()
        return self.array.__dlpack__(**options)
