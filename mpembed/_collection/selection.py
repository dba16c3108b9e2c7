"""Some elements of a stored array, by their numbers: read and written without the others."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed._bindings.device import Stream
from mpembed._bindings.tensor import Tensor
from mpembed._collection.records import StoredArray

_CHUNK = 1 << 24  # bytes that are read or written at a time


class SelectedArray:
    """A logical array of elements that lie in another one; it has the interface of `StoredArray`.

    Parameters
    ----------
    stored : StoredArray
        The whole array.
    numbers : int64 array (n,)
        Which elements, ascending and in range.
    leading : int
        How many of the array's dimensions the numbers count: 1 for rows, 2 for the slots of a
        cache.
    """

    def __init__(
        self, stored: StoredArray, numbers: npt.NDArray[np.int64], leading: int = 1
    ) -> None:
        self._whole, self._numbers = stored.flattened(leading), numbers
        self.dtype = stored.dtype
        self.shape = (len(numbers), *self._whole.shape[1:])

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield the bounds of pieces of some megabytes; on a device, of memory that is copied."""
        memory, count = self._whole.memory, len(self._numbers)
        each = max(1, _CHUNK // max(1, memory.shape[1]))
        begin = 0
        while begin < count:
            end = min(begin + each, count)
            if isinstance(memory, Tensor):  # what lies between them is copied, too
                end = int(np.searchsorted(self._numbers, self._numbers[begin] + each))
            yield begin, end
            begin = end

    def read(self, begin: int, end: int, on: Stream) -> npt.NDArray[Any]:
        """Return elements [begin, end) of the selection in the host's memory: a copy."""
        return self._whole.gather(self._numbers[begin:end], on)

    def write(self, begin: int, values: npt.NDArray[Any], on: Stream) -> None:
        """Set elements of the selection from `begin` on; a device is waited for."""
        self._whole.scatter(self._numbers[begin : begin + len(values)], values, on)
