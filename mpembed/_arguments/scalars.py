"""Checks of scalars that several modules need."""

import math
import operator
from typing import Any

import numpy as np

FLOAT_MAX = float(np.finfo(np.float32).max)


def integer(what: str, value: Any, low: int, high: int) -> int:
    """Return `value` as an int in [low, high], or raise TypeError or ValueError naming it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, got {type(value).__name__}") from None
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{what} must be an integer, got bool")
    if not low <= number <= high:
        raise ValueError(f"{what} must be in {low} .. {high}, got {number}")
    return number


def finite(what: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Return `value` as a finite float in [low, high], or raise an error that names it."""
    if isinstance(value, bool | np.bool_ | str | bytes):
        raise TypeError(f"{what} must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{what} is too large: {value!r}") from None
    except (TypeError, ValueError):
        raise TypeError(f"{what} must be a number, got {type(value).__name__}") from None
    if not math.isfinite(number):
        raise ValueError(f"{what} must be finite, got {number!r}")
    if not low <= number <= high:
        raise ValueError(f"{what} must be in {low:g} .. {high:g}, got {number!r}")
    return number


def boolean(what: str, value: Any) -> bool:
    """Return `value` if it is a bool, or raise TypeError naming it."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{what} must be True or False, got {value!r}")
    return bool(value)
