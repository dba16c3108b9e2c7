"""Calls for which compiled code leaves its graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def outside_graphs(reason: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that does what ``torch.compiler.disable`` does.

    That imports PyTorch's compiler, which takes as long as PyTorch itself: here only code that is
    being compiled asks for it.

    Parameters
    ----------
    reason : str
        What PyTorch says where a graph may not be left.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                torch._dynamo.graph_break(msg=reason)
                disabled: Callable[P, R] = torch.compiler.disable(function)
                return disabled(*args, **kwargs)
            return function(*args, **kwargs)

        return call

    return decorate
