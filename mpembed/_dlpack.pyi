from typing import Any

from mpembed._view import View

def view(obj: Any, name: str) -> View: ...
