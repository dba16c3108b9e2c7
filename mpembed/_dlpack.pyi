from typing import Any

from mpembed._device import Stream
from mpembed._view import View

def view(obj: Any, name: str, on: Stream | None = None) -> View: ...
def device_pair(obj: Any, name: str) -> tuple[int, int]: ...
