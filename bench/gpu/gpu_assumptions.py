"""Check what mpembed assumes of a real device; docs/gpu.md has the list.

Each check makes a device slow where a wrong order would otherwise go unseen. Run
``python bench/gpu/gpu_assumptions.py [--ahead BYTES]``; the exit status is the number of
assumptions that do not hold.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
from gpu_checks import Checks, LeftOutError
from gpu_sizes import AHEAD

import mpembed as mpe
from mpembed_gpu.runtime import DISABLE_TIMING, SIZE, TO_HOST, VOID, Runtime

MEMORY_POOLS, PAGEABLE, CAN_MAP = 115, 88, 19  # attributes of a device
IMPLICIT = 906  # cudaErrorStreamCaptureImplicit
EXTERNAL = 1
RELAXED = 2
BYTES = 4096


class Bench:
    """Streams, buffers and slow work for a check."""

    def __init__(self, ahead: int) -> None:
        self.runtime, self.ahead = Runtime(), ahead
        self.one, self.two = self.runtime.stream(), self.runtime.stream()
        self.source, self.target = (self.runtime.memory(BYTES) for _ in range(2))
        self.slow = self.runtime.memory(ahead)

    def event(self) -> ctypes.c_void_p:
        return self.runtime.event(DISABLE_TIMING)

    def fill(self, memory: ctypes.c_void_p, byte: int, stream: int, slow: bool = False) -> None:
        """Queue a fill, after work that takes its time."""
        if slow:
            self.runtime("cudaMemsetAsync", self.slow, byte, SIZE(self.ahead), VOID(stream))
        self.runtime("cudaMemsetAsync", memory, byte, SIZE(BYTES), VOID(stream))

    def move(self, stream: int) -> None:
        """Queue a copy from the source to the target."""
        self.runtime.copy(self.target.value, self.source.value, BYTES, 3, stream)

    def read(self, memory: ctypes.c_void_p, stream: int) -> set[int]:
        """Return the values of a buffer, as a stream finds them."""
        found = np.zeros(BYTES, np.uint8)
        self.runtime.copy(found.ctypes.data, memory.value, BYTES, TO_HOST, stream)
        self.runtime.synchronize(stream)
        return set(found.tolist())

    def wait(self, event: ctypes.c_void_p, stream: int, flags: int = 0) -> None:
        self.runtime("cudaStreamWaitEvent", VOID(stream), event, flags)

    def need_graphs(self) -> None:
        if not self.runtime.has_graphs:
            raise LeftOutError("the runtime knows no graphs")


check: Checks[Bench] = Checks("assumption")


@check("the device has memory pools, and maps the host's memory")
def attributes(bench: Bench) -> str:
    def attribute(number: int) -> int:
        return bench.runtime.number("cudaDeviceGetAttribute", number, 0)

    pools, maps, reads = (attribute(one) for one in (MEMORY_POOLS, CAN_MAP, PAGEABLE))
    assert pools, "it has no pools"
    assert maps, "it does not map the host's memory"
    return f"it reads the host's page tables: {bool(reads)}"


@check("pinned host memory has one address for both")
def addresses(bench: Bench) -> str:
    host, there = VOID(), VOID()
    bench.runtime("cudaHostAlloc", ctypes.byref(host), SIZE(BYTES), 1 | 2)  # portable, mapped
    bench.runtime("cudaHostGetDevicePointer", ctypes.byref(there), host, 0)
    bench.runtime("cudaFreeHost", host)
    assert host.value == there.value
    return "the same"


@check("a copy from pageable memory has read it when the call returns")
def pageable(bench: Bench) -> str:
    reads = bench.runtime.number("cudaDeviceGetAttribute", PAGEABLE, 0)
    wrong = []
    for size in (64, 4096, 100_000, 1 << 22):
        memory, values = bench.runtime.memory(size), np.full(size, 7, np.uint8)
        bench.fill(bench.target, 1, bench.one, slow=True)
        bench.runtime.copy(memory.value, values.ctypes.data, size, 1, bench.one)
        values[:] = 9
        found = np.zeros(size, np.uint8)
        bench.runtime.copy(found.ctypes.data, memory.value, size, TO_HOST, bench.one)
        bench.runtime.synchronize(bench.one)
        wrong += [size] if (found != 7).any() else []
    assert reads or not wrong, f"not of {wrong} bytes, and such a device is taken to read at once"
    return f"not of {wrong} bytes: such copies are staged" if wrong else "it has"


@check("an event that was never recorded holds nobody up")
def unrecorded(bench: Bench) -> str:
    event = bench.event()
    assert bench.runtime.status("cudaEventQuery", event) == 0, "it is not ready"
    bench.wait(event, bench.one)
    bench.fill(bench.target, 3, bench.one)
    assert bench.read(bench.target, bench.one) == {3}
    return "it does not"


@check("an event orders streams that do not wait for the default stream")
def ordered(bench: Bench) -> str:
    event = bench.event()
    for byte in (3, 4):
        bench.fill(bench.source, byte, bench.one, slow=True)
        bench.runtime.record(event, bench.one)
        bench.wait(event, bench.two)
        bench.move(bench.two)
        found = bench.read(bench.target, bench.two)
        assert found == {byte}, f"{found} instead of {byte}"
    return "it does"


@check("a graph waits for the latest record of an event outside, and the outside for the graph's")
def external(bench: Bench) -> str:
    bench.need_graphs()
    before, after = bench.event(), bench.event()
    with bench.runtime.capture(bench.one) as made:
        bench.wait(before, bench.one, EXTERNAL)
        bench.move(bench.one)
        bench.fill(bench.source, 0, bench.one, slow=True)
        recorded = VOID(bench.one), EXTERNAL
        bench.runtime("cudaEventRecordWithFlags", after, *recorded)
    for byte in (5, 6, 7):
        bench.fill(bench.source, byte, bench.two, slow=True)
        bench.runtime.record(before, bench.two)
        made[0].launch(bench.one)
        bench.wait(after, bench.two)
        found = bench.read(bench.target, bench.two), bench.read(bench.source, bench.two)
        assert found == ({byte}, {0}), f"{found} instead of {byte} and 0"
    return f"{made[0].nodes} nodes, 3 launches"


@check("memory allocated and freed in a capture becomes nodes of its graph")
def allocations(bench: Bench) -> str:
    bench.need_graphs()
    made = []
    for _ in range(2):
        with bench.runtime.capture(bench.one) as graphs:
            memory = VOID()
            stream = VOID(bench.one)
            bench.runtime("cudaMallocAsync", ctypes.byref(memory), SIZE(BYTES), stream)
            bench.runtime.copy(memory.value, bench.source.value, BYTES, 3, bench.one)
            bench.fill(bench.source, 0, bench.one, slow=True)
            bench.runtime.copy(bench.target.value, memory.value, BYTES, 3, bench.one)
            bench.runtime("cudaFreeAsync", memory, stream)
        made += graphs
    for byte in (5, 6, 7):  # two graphs in turn, with a synchronisation and without
        for graph in made:
            bench.fill(bench.source, byte, bench.one)
            graph.launch(bench.one)
        found = bench.read(bench.target, bench.one)
        assert found == {byte}, f"{found} instead of {byte}"
    return f"{made[0].nodes} nodes, 6 launches of 2 graphs"


@check("during another thread's capture a thread may allocate and wait, if it says so")
def other_threads(bench: Bench) -> str:
    bench.need_graphs()
    errors: list[str] = []

    def allocate() -> None:
        mode, memory = ctypes.c_int(RELAXED), VOID()
        try:
            bench.runtime("cudaThreadExchangeStreamCaptureMode", ctypes.byref(mode))
            bench.runtime("cudaMalloc", ctypes.byref(memory), SIZE(BYTES))
            bench.fill(memory, 1, bench.two)
            bench.runtime.synchronize(bench.two)
            bench.runtime("cudaFree", memory)
            bench.runtime("cudaThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        except RuntimeError as error:
            errors.append(str(error))

    with bench.runtime.capture(bench.one):
        bench.fill(bench.target, 4, bench.one)
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()
    assert not errors, errors[0]
    return "it may"


@check("asking about the default stream during a capture is refused, and ends nothing")
def default_stream(bench: Bench) -> str:
    bench.need_graphs()
    status, stream = ctypes.c_int(), bench.runtime.stream(0)  # one that the default stream awaits
    with bench.runtime.capture(stream):
        bench.fill(bench.target, 4, stream)
        error = bench.runtime.status("cudaStreamIsCapturing", VOID(), ctypes.byref(status))
    assert error == IMPLICIT, f"error {error} instead of {IMPLICIT}"
    return f"error {error}, and the capture gave a graph"


@check("kernels that no call has loaded yet can be captured")
def lazy_loading(bench: Bench) -> str:
    bench.need_graphs()
    command = [*sys.orig_argv[: sys.orig_argv.index(sys.argv[0])], *sys.argv[:1], "--captured"]
    variables = {**os.environ, "CUDA_MODULE_LOADING": "LAZY"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def captured_step() -> None:
    """Capture a step as the first use of most kernels; compare its bytes with the CPU's."""
    tables = [mpe.TableConfig(name, 50, 12, name) for name in ("int8", "int4", "fp16")]
    cache = mpe.CacheConfig(num_sets=1, ways=8)
    here, there = (
        mpe.EmbeddingBagCollection(
            tables, optimizer=mpe.RowwiseAdagrad(0.1), cache=cache, device=device
        )
        for device in ("cpu", "cuda")
    )
    rng = np.random.default_rng(1)
    indices, offsets = rng.integers(0, 50, 90), np.arange(0, 91, 3)
    grad = rng.standard_normal((10, 36)).astype(np.float32)
    sent: list[Any] = [mpe.to_device(array, "cuda") for array in (indices, offsets, grad)]
    out = mpe.to_device(np.zeros((10, 36), np.float32), "cuda")
    runtime = Runtime()
    stream = runtime.stream()
    with runtime.capture(stream) as made:
        there.forward(sent[0], sent[1], out=out, stream=stream)
        there.backward(sent[2], stream=stream)
    for _ in range(3):
        made[0].launch(stream)
        here.forward(indices, offsets)
        here.backward(grad)
    there.check()
    for name, values in here.state_arrays().items():
        found = there.state_arrays()[name]
        found = found if isinstance(found, np.ndarray) else found.numpy()
        assert found.tobytes() == np.asarray(values).tobytes(), f"{name} differs"
    print(f"{made[0].nodes} nodes, the CPU's bytes after 3 launches")
    runtime.close()


def main() -> int:
    """Run all checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ahead", type=int, default=AHEAD, help="bytes of slow work")
    parser.add_argument("--captured", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.captured:
        captured_step()
        return 0
    return check.run(lambda: Bench(options.ahead), lambda bench: bench.runtime.close())


if __name__ == "__main__":
    sys.exit(main())
