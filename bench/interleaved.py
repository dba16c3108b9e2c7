"""Rates of mpembed and FBGEMM in interleaved rounds, as medians and ratios.

Run as ``python bench/interleaved.py [threads]``. The first column of each line is FBGEMM's FP32.
"""

import statistics
import sys
import time

import torch
import workloads

import mpembed as mpe

ROUNDS = 16


def rates(steps: dict[str, workloads.Step]) -> dict[str, float]:
    """Return the median rate of each step in million lookups a second."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            step(i)
            if i >= 2:
                times[name].append(time.perf_counter() - start)
    return {n: workloads.LOOKUPS / statistics.median(t) / 1e6 for n, t in times.items()}


def show(title: str, steps: dict[str, workloads.Step]) -> None:
    """Print one line: rates, and ratios to the first step."""
    found = rates(steps)
    first = next(iter(found.values()))
    parts = [f"{name} {rate:.2f} ({rate / first:.2f}x)" for name, rate in found.items()]
    print(f"{title}: " + ", ".join(parts), flush=True)


def main() -> None:
    """Print the forward and the whole step for each optimizer and distribution."""
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    mpe.set_num_threads(threads)
    torch.set_num_threads(threads)
    print(f"{threads} thread(s), {workloads.ROWS} x {workloads.DIM}, million lookups a second")
    uniform, zipf = workloads.batches("uniform"), workloads.batches("zipf")
    forward = {"FBGEMM": workloads.forward_fbgemm("fp32", uniform)}
    forward["torch"] = workloads.forward_torch(uniform)
    for precision in ("fp32", "fp16", "int8", "int4"):
        forward[precision] = workloads.forward_ours(precision, uniform)
    show("forward uniform", forward)
    for optimizer in workloads.OPTIMIZERS:
        for name, indices in (("uniform", uniform), ("zipf", zipf)):
            steps = {"FBGEMM": workloads.train_fbgemm("fp32", optimizer, indices)}
            for precision in ("fp32", "int8", "int4"):
                steps[precision] = workloads.train_ours(precision, optimizer, indices)
            cache = mpe.CacheConfig(load_factor=0.05, policy="lfu")
            steps["int4 + 5 %"] = workloads.train_ours("int4", optimizer, indices, cache)
            show(f"step {optimizer} {name}", steps)


if __name__ == "__main__":
    main()
