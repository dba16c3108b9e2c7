from typing import Any, final

DTYPES: dict[str, int]

@final
class View:
    name: str
    ndim: int
    size: int
    nbytes: int
    writable: bool
    contiguous: bool
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def on_host(self) -> bool: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...
    @property
    def address(self) -> int: ...

def require(
    v: View,
    dtypes: int,
    ndim: int = -1,
    shape: tuple[int, ...] | None = None,
    contiguous: bool = True,
    writable: bool = False,
) -> int: ...
