"""Checks with a title, run one after another: one that fails says nothing of the others."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

import gpu_figures

T = TypeVar("T")


class LeftOutError(Exception):
    """A check cannot be made here; says why."""


class Checks(Generic[T]):
    """A list of checks, each of which takes a T and returns what it found."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.titled: dict[str, Callable[[T], str]] = {}

    def __call__(self, title: str) -> Callable[[Callable[[T], str]], Callable[[T], str]]:
        """Return what adds a function under a title."""

        def add(function: Callable[[T], str]) -> Callable[[T], str]:
            self.titled[title] = function
            return function

        return add

    def run(self, make: Callable[[], T], after: Callable[[T], object] = lambda _: None) -> int:
        """Run all, each with something of its own; return how many do not hold."""
        wrong = 0
        for title, function in self.titled.items():
            argument, holds = make(), None
            try:
                said = function(argument)
                holds = True
            except LeftOutError as error:
                said = f"left out: {error}"
            except Exception as error:
                traceback.print_exc()
                said, holds = f"DOES NOT HOLD: {error}", False
                wrong += 1
            gpu_figures.add(self.kind, f"{title}: {said}", title=title, holds=holds)
            after(argument)
        return wrong
