"""Something at a chosen point of a call, such as KeyboardInterrupt: a line or a bytecode of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import mpembed

_ENABLED: list[Any] = []
PACKAGE = str(Path(mpembed.__file__).parent)


class AtPoint:
    """Runs a call, and does something at its n-th point in the package, as a handler does.

    Points are the beginnings of lines, as `events` says, in the files of the package or, with
    `files`, in those whose names end so.
    """

    def __init__(
        self,
        n: int,
        act: Callable[[], Any],
        events: Sequence[str] = ("line",),
        files: Sequence[str] = ("",),
    ) -> None:
        self._left, self._act = n, act
        self._events, self._files = events, tuple(files)

    @property
    def happened(self) -> bool:
        """Whether the call had so many points."""
        return self._left <= 0

    def run(self, call: Callable[[], Any]) -> Any:
        """Return the call's result."""
        tracer = sys.gettrace()
        sys.settrace(self._enter)
        try:
            return call()
        finally:
            sys.settrace(tracer)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not (name.startswith(PACKAGE) and name.endswith(self._files)):
            return None
        if "opcode" in self._events:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event in self._events:
            self._left -= 1
            if self._left == 0:
                sys.settrace(None)
                self._act()
        return self._step


class Interrupt(AtPoint):
    """Runs a call and raises KeyboardInterrupt at its n-th point.

    Points are the beginning of each line and the return of each function or, with `opcodes`, each
    bytecode; without `returns`, the lines alone. An interrupt inside a finalizer is lost there, as
    Python has it.
    """

    def __init__(
        self, n: int, *, opcodes: bool = False, returns: bool = True, files: Sequence[str] = ("",)
    ) -> None:
        events = ["opcode" if opcodes else "line", *(["return"] if returns else [])]
        super().__init__(n, _interrupt, events, files)
        self.before: type[BaseException] | None = None  # the latest error before it

    def run(self, call: Callable[[], Any]) -> Any:
        """Return the call's result, or None where it was interrupted."""
        hook = sys.unraisablehook
        sys.unraisablehook = _ignore_interrupts
        try:
            return super().run(call)
        except KeyboardInterrupt:
            return None
        finally:
            sys.unraisablehook = hook
            _enable_overrides()

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "exception" and not self.happened:
            self.before = argument[0]
        return super()._step(frame, event, argument)


def _enable_overrides() -> None:
    """Let PyTorch ask subclasses of Tensor again, whatever the interrupt has left.

    A trace function can raise where a ``with`` ends, before ``__exit__``; a signal cannot.
    """
    torch = sys.modules.get("torch")
    if torch is not None and not torch._C._is_torch_function_enabled():
        _ENABLED.append(torch._C._EnableTorchFunction())  # which ends with its object
        _ENABLED[-1].__enter__()


def _interrupt() -> None:
    raise KeyboardInterrupt


def _ignore_interrupts(unraisable: Any) -> None:
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
