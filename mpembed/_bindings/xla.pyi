from collections.abc import Callable
from typing import Any, final

import numpy as np
import numpy.typing as npt

from mpembed._bindings.device import CallOrder, Device, Stream

DIGITS: int
TARGETS: dict[str, dict[str, object]]

class StaleStateError(RuntimeError): ...

@final
class Handle:
    collection: Any
    number: int
    ordinal: int
    def __new__(
        cls,
        collection: Any,
        calls: CallOrder,
        detach: Callable[[Any], None],
        unpooled: str | None = None,
    ) -> Handle: ...
    def new_state(self) -> npt.NDArray[np.float32]: ...
    def check_state(self, state: npt.NDArray[np.float32]) -> None: ...

PINNED_HOST: int

@final
class LateChecks:
    def __init__(self, device: Device, number: int) -> None: ...

@final
class Program:
    stream: Stream | None

def stop() -> None: ...
