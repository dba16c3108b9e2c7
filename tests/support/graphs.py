"""CUDA graphs through the runtime's own functions: the emulation's, or those of libcudart."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import cuda_backend
import emulated
import numpy as np
import pytest

VOID, SIZE = ctypes.c_void_p, ctypes.c_size_t
GLOBAL, RELAXED = 0, 2
NON_BLOCKING = 1
INVALIDATED = 901


def _library() -> ctypes.CDLL:
    if cuda_backend.choice() == "emulation":
        return emulated.library()
    for name in ("libcudart.so.13", "libcudart.so.12", "libcudart.so", *_in_wheels()):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return _give_up("no libcudart.so to make graphs with: put its folder into LD_LIBRARY_PATH")


def _in_wheels() -> list[str]:
    """Return the runtimes of NVIDIA's wheels, which PyTorch brings."""
    folders = [Path(path) for path in sys.path if path]
    found = (one for folder in folders for one in folder.glob("nvidia/*/lib/libcudart.so.*"))
    return sorted(map(str, found), reverse=True)


def _give_up(reason: str) -> NoReturn:
    """Skip; on a real device, where graphs can be made, fail."""
    with contextlib.suppress(OSError):
        if ctypes.CDLL("libcuda.so.1").cuInit(0) == 0 and cuda_backend.choice() == "installed":
            pytest.fail(reason)
    pytest.skip(reason)


class Graph:
    """What a capture made."""

    def __init__(self, runtime: Runtime, graph: ctypes.c_void_p) -> None:
        self.runtime, self.graph, self.executable = runtime, graph, VOID()
        runtime("cudaGraphInstantiate", ctypes.byref(self.executable), graph, ctypes.c_ulonglong(0))

    @property
    def nodes(self) -> int:
        count = SIZE()
        self.runtime("cudaGraphGetNodes", self.graph, None, ctypes.byref(count))
        return count.value

    def launch(self, stream: int, times: int = 1) -> None:
        for _ in range(times):
            self.runtime("cudaGraphLaunch", self.executable, VOID(stream))

    def destroy(self) -> None:
        self.runtime("cudaGraphExecDestroy", self.executable)
        self.runtime("cudaGraphDestroy", self.graph)


class Runtime:
    """The runtime's functions; called, one raises RuntimeError for an error."""

    def __init__(self) -> None:
        self.library = _library()
        self.graphs: list[Graph] = []
        self.captured: set[int] = set()  # streams

    def status(self, name: str, *arguments: Any) -> int:
        status: int = getattr(self.library, name)(*arguments)
        if status != 0:
            self.library.cudaGetLastError()
        return status

    def __call__(self, name: str, *arguments: Any) -> None:
        status = self.status(name, *arguments)
        if status != 0:
            raise RuntimeError(f"{name}: error {status}")

    def stream(self, flags: int = NON_BLOCKING) -> int:
        made = VOID()
        self("cudaStreamCreateWithFlags", ctypes.byref(made), flags)
        assert made.value is not None
        return made.value  # it is never destroyed: arrays that were used on it may live on

    def follow(self, stream: int, other: int) -> None:
        """Let one stream wait for another."""
        event = VOID()
        self("cudaEventCreateWithFlags", ctypes.byref(event), 2)
        self("cudaEventRecord", event, VOID(other))
        self("cudaStreamWaitEvent", VOID(stream), event, 0)
        self("cudaEventDestroy", event)

    def write(self, tensor: Any, values: Any, stream: int) -> None:
        """Write into static buffers, in the order of a stream."""
        array = np.ascontiguousarray(values)
        assert array.nbytes == tensor.nbytes
        arguments = VOID(tensor.address), VOID(array.ctypes.data), SIZE(array.nbytes), 1
        self("cudaMemcpyAsync", *arguments, VOID(stream))
        self("cudaStreamSynchronize", VOID(stream))

    def begin(self, stream: int, mode: int = GLOBAL) -> None:
        self("cudaStreamBeginCapture", VOID(stream), mode)
        self.captured.add(stream)

    def end(self, stream: int) -> Graph:
        graph = VOID()
        self.captured.remove(stream)
        self("cudaStreamEndCapture", VOID(stream), ctypes.byref(graph))
        made = Graph(self, graph)
        self.graphs.append(made)
        return made

    @contextlib.contextmanager
    def capture(self, stream: int, mode: int = GLOBAL) -> Iterator[list[Graph]]:
        """Capture a block; the list then holds its graph."""
        made: list[Graph] = []
        self.begin(stream, mode)
        try:
            yield made
        except BaseException:
            self.give_up(stream)
            raise
        made.append(self.end(stream))

    def give_up(self, stream: int) -> None:
        self.captured.discard(stream)
        self.status("cudaStreamEndCapture", VOID(stream), ctypes.byref(VOID()))

    def close(self) -> None:
        for stream in list(self.captured):
            self.give_up(stream)
        for graph in self.graphs:
            graph.destroy()


@contextlib.contextmanager
def runtime() -> Iterator[Runtime]:
    """Yield the runtime; skip where it knows no graphs."""
    made = Runtime()
    stream = made.stream()
    if not hasattr(made.library, "cudaStreamBeginCapture") or made.status(
        "cudaStreamBeginCapture", VOID(stream), GLOBAL
    ):
        _give_up("the CUDA runtime knows no graphs")
    graph = VOID()
    made("cudaStreamEndCapture", VOID(stream), ctypes.byref(graph))
    made("cudaGraphDestroy", graph)
    try:
        yield made
    finally:
        made.close()
