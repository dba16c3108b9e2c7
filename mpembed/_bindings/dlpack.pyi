from typing import Any, final

from mpembed._bindings.device import Stream
from mpembed._bindings.view import View

@final
class Exporter: ...

def view(obj: Any, name: str, on: Stream | None = None) -> View: ...
def device_pair(obj: Any, name: str) -> tuple[int, int]: ...
