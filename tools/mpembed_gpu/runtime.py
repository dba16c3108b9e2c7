"""The CUDA runtime by ctypes: streams, events and their times, graphs, memory of a device.

Nothing else on the machine is needed for them: neither PyTorch nor cuda-python. Streams and events
of one copy of the runtime are valid in another, because both use the device's primary context.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

VOID, SIZE = ctypes.c_void_p, ctypes.c_size_t
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
NON_BLOCKING = 1
DISABLE_TIMING = 2
INVALIDATED = 901
TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3
NEEDED = "cudaEventElapsedTime"


def library() -> ctypes.CDLL:
    """Return the runtime that the package's CUDA extension has or is linked to, else libcudart.

    Raises
    ------
    OSError
        If there is none.
    """
    with contextlib.suppress(ImportError):  # without it, or without the runtime that it needs
        own = ctypes.CDLL(importlib.import_module("mpembed._bindings.cuda").__file__)
        if hasattr(own, NEEDED):
            return own
    for name in ("libcudart.so.13", "libcudart.so.12", "libcudart.so", *_in_wheels()):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise OSError("there is no libcudart.so: put its folder into LD_LIBRARY_PATH")


def _in_wheels() -> list[str]:
    """Return the runtimes of NVIDIA's wheels, which PyTorch brings."""
    folders = [Path(path) for path in sys.path if path]
    found = (one for folder in folders for one in folder.glob("nvidia/*/lib/libcudart.so.*"))
    return sorted(map(str, found), reverse=True)


class Graph:
    """What a capture made."""

    def __init__(self, runtime: Runtime, graph: ctypes.c_void_p) -> None:
        self.runtime, self.graph, self.executable = runtime, graph, VOID()
        runtime("cudaGraphInstantiate", ctypes.byref(self.executable), graph, ctypes.c_ulonglong(0))

    @property
    def nodes(self) -> int:
        """Return how many nodes it has."""
        count = SIZE()
        self.runtime("cudaGraphGetNodes", self.graph, None, ctypes.byref(count))
        return count.value

    def launch(self, stream: int, times: int = 1) -> None:
        """Queue launches on a stream."""
        for _ in range(times):
            self.runtime("cudaGraphLaunch", self.executable, VOID(stream))

    def destroy(self) -> None:
        """Destroy it; it must not be launched again."""
        self.runtime("cudaGraphExecDestroy", self.executable)
        self.runtime("cudaGraphDestroy", self.graph)


class Runtime:
    """The runtime's functions; called, one raises RuntimeError for an error."""

    def __init__(self, found: ctypes.CDLL | None = None) -> None:
        self.library = library() if found is None else found
        self.graphs: list[Graph] = []
        self.captured: set[int] = set()  # streams
        self.held: list[ctypes.c_void_p] = []  # memory of the device
        self.scratch = 0, VOID()

    def status(self, name: str, *arguments: Any) -> int:
        """Call a function; return its status, and let the runtime forget an error."""
        status: int = getattr(self.library, name)(*arguments)
        if status != 0:
            self.library.cudaGetLastError()
        return status

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function; raise RuntimeError for an error."""
        status = self.status(name, *arguments)
        if status != 0:
            raise RuntimeError(f"{name}: error {status}")

    def number(self, name: str, *arguments: Any) -> int:
        """Return what a function writes into its first argument, an int."""
        found = ctypes.c_int()
        self(name, ctypes.byref(found), *arguments)
        return found.value

    @property
    def has_graphs(self) -> bool:
        """Whether the runtime knows graphs."""
        if not hasattr(self.library, "cudaStreamBeginCapture"):
            return False
        stream, graph = self.stream(), VOID()
        if self.status("cudaStreamBeginCapture", VOID(stream), GLOBAL):
            return False
        self("cudaStreamEndCapture", VOID(stream), ctypes.byref(graph))
        self("cudaGraphDestroy", graph)
        return True

    # ---- streams and events -----------------------------------------------------------------

    def stream(self, flags: int = NON_BLOCKING, *, first: bool = False) -> int:
        """Return a new stream; `first`: its blocks start before those of ordinary streams."""
        made, least, greatest = VOID(), ctypes.c_int(), ctypes.c_int()
        self("cudaDeviceGetStreamPriorityRange", ctypes.byref(least), ctypes.byref(greatest))
        priority = greatest if first else least  # an ordinary stream's is the least
        self("cudaStreamCreateWithPriority", ctypes.byref(made), flags, priority)
        assert made.value is not None
        return made.value  # it is never destroyed: arrays that were used on it may live on

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        self("cudaStreamSynchronize", VOID(stream))

    def event(self, flags: int = 0) -> ctypes.c_void_p:
        """Return a new event."""
        made = VOID()
        self("cudaEventCreateWithFlags", ctypes.byref(made), flags)
        return made

    def record(self, event: ctypes.c_void_p, stream: int) -> None:
        """Record an event on a stream."""
        self("cudaEventRecord", event, VOID(stream))

    def follow(self, stream: int, other: int) -> None:
        """Let one stream wait for another."""
        event = self.event(DISABLE_TIMING)
        self.record(event, other)
        self("cudaStreamWaitEvent", VOID(stream), event, 0)
        self("cudaEventDestroy", event)

    def seconds(self, work: Callable[[], object], stream: int, ahead: int = 0) -> float:
        """Return the device's time from the start to the end of what `work` queues on the stream.

        Parameters
        ----------
        ahead : int
            Bytes that the device fills before the start, so that the host can queue meanwhile; if
            it cannot, the time has the device's waits for the host too.
        """
        start, end = self.event(), self.event()
        if ahead:
            self("cudaMemsetAsync", self._scratch(ahead), 0, SIZE(ahead), VOID(stream))
        self.record(start, stream)
        work()
        self.record(end, stream)
        self("cudaEventSynchronize", end)
        found = ctypes.c_float()
        self("cudaEventElapsedTime", ctypes.byref(found), start, end)
        for event in (start, end):
            self("cudaEventDestroy", event)
        return found.value * 1e-3

    # ---- memory -----------------------------------------------------------------------------

    def memory(self, nbytes: int) -> ctypes.c_void_p:
        """Return memory of the device, which lives until `close`."""
        made = VOID()
        self("cudaMalloc", ctypes.byref(made), SIZE(nbytes))
        self.held.append(made)
        return made

    def _scratch(self, nbytes: int) -> ctypes.c_void_p:
        if self.scratch[0] < nbytes:
            self.scratch = nbytes, self.memory(nbytes)
        return self.scratch[1]

    def copy(self, to: Any, source: Any, nbytes: int, kind: int, stream: int) -> None:
        """Queue a copy between two addresses."""
        self("cudaMemcpyAsync", VOID(to), VOID(source), SIZE(nbytes), kind, VOID(stream))

    def write(self, tensor: Any, values: Any, stream: int) -> None:
        """Write into static buffers, in the order of a stream."""
        array = np.ascontiguousarray(values)
        assert array.nbytes == tensor.nbytes
        self.copy(tensor.address, array.ctypes.data, array.nbytes, TO_DEVICE, stream)
        self.synchronize(stream)

    # ---- graphs -----------------------------------------------------------------------------

    def begin(self, stream: int, mode: int = GLOBAL) -> None:
        """Begin a capture."""
        self("cudaStreamBeginCapture", VOID(stream), mode)
        self.captured.add(stream)

    def end(self, stream: int) -> Graph:
        """End a capture; return its graph."""
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
        """End a capture and forget what it made."""
        self.captured.discard(stream)
        self.status("cudaStreamEndCapture", VOID(stream), ctypes.byref(VOID()))

    def close(self) -> None:
        """Destroy the graphs, end captures, free the memory."""
        for stream in list(self.captured):
            self.give_up(stream)
        for graph in self.graphs:
            graph.destroy()
        for memory in self.held:
            self("cudaFree", memory)
        self.graphs, self.held, self.scratch = [], [], (0, VOID())
