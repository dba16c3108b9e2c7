from typing import Any, final

from mpembed._device import Stream
from mpembed._view import View

@final
class Exporter: ...

def view(obj: Any, name: str, on: Stream | None = None) -> View: ...
def device_pair(obj: Any, name: str) -> tuple[int, int]: ...
