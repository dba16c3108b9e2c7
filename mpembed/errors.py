"""Exceptions that carry more than a message."""

import numpy as np
import numpy.typing as npt


class NonFiniteUpdateError(FloatingPointError):
    """A backward left out rows whose update would not be finite.

    Attributes
    ----------
    rows : int
        How many.
    weight_grad : numpy.ndarray, dict of table name -> numpy.ndarray, or None
        What the backward would have returned: the gradient of the per-sample weights.
    """

    def __init__(
        self,
        message: str,
        rows: int,
        weight_grad: npt.NDArray[np.float32] | dict[str, npt.NDArray[np.float32]] | None,
    ) -> None:
        super().__init__(message)
        self.rows = rows
        self.weight_grad = weight_grad

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (str(self), self.rows, self.weight_grad)
