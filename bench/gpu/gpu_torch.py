"""Train mpembed's PyTorch modules on a GPU and compare every byte with the CPU's.

Run ``python bench/gpu/gpu_torch.py [--device cpu]``; the exit status is the number of checks that
fail. Gradients are products of an output with a constant, which are the same bytes everywhere.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import torch
from gpu_checks import Checks, LeftOutError

import mpembed as mpe
import mpembed.torch

CHECKS: Checks[str] = Checks("torch")
ROWS, DIM, BAGS, POOL, STEPS = 300, 24, 40, 5, 4


def module(device: str) -> Any:
    """Return a module with a cache; the same seed has the same bytes on every device."""
    return mpembed.torch.EmbeddingBag(
        ROWS,
        DIM,
        mode="sum",
        precision="int8",
        cache=mpe.CacheConfig(num_sets=1, ways=32),
        optimizer=mpe.RowwiseAdagrad(lr=0.1),
        device=device,
        seed=3,
    )


def batches() -> list[Any]:
    """Return indices of several batches, on the CPU."""
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.integers(0, ROWS, (BAGS, POOL))) for _ in range(STEPS)]


def digest(tables: Any) -> dict[str, bytes]:
    """Return all bytes of a collection's state."""
    arrays = tables.state_arrays().items()
    return {n: (a if isinstance(a, np.ndarray) else a.numpy()).tobytes() for n, a in arrays}


def same(one: Any, other: Any) -> None:
    """Compare two modules' states."""
    here, there = digest(one.tables), digest(other.tables)
    wrong = [name for name in here if here[name] != there[name]]
    assert not wrong, f"{wrong} differ"


def need_cuda(device: str) -> None:
    """Leave a check out on the CPU."""
    if device == "cpu":
        raise LeftOutError("the CPU has none")


def step(bag: Any, indices: Any, weights: Any = None) -> Any:
    """Train a batch; return the output."""
    out = bag(indices, per_sample_weights=weights)
    out.backward(out.detach() * 0.5)
    return out.detach()


@CHECKS("a module trains as on the CPU")
def plain(device: str) -> str:
    here, there = module("cpu"), module(device)
    for indices in batches():
        out, found = step(here, indices), step(there, indices.to(device))
        assert found.device.type == torch.device(device).type
        assert torch.equal(out, found.cpu()), "outputs differ"
    same(here, there)
    return f"{STEPS} steps"


@CHECKS("per-sample weights get their gradient")
def weighted(device: str) -> str:
    here, there = module("cpu"), module(device)
    for indices in batches():
        places = ("cpu", device)
        weights = [torch.full((BAGS, POOL), 0.75, device=d, requires_grad=True) for d in places]
        step(here, indices, weights[0])
        step(there, indices.to(device), weights[1])
        grads = [one.grad for one in weights]
        assert grads[0] is not None
        assert grads[1] is not None
        assert torch.equal(grads[0], grads[1].cpu()), "gradients differ"
    same(here, there)
    return f"{STEPS} steps"


@CHECKS("calls follow PyTorch's current stream")
def streams(device: str) -> str:
    need_cuda(device)
    here, there = module("cpu"), module(device)
    sides = [torch.cuda.Stream() for _ in range(2)]
    slow = torch.randn(4096, 4096, device=device)
    torch.cuda.synchronize()
    for i, indices in enumerate(batches()):
        step(here, indices)
        with torch.cuda.stream(sides[i % 2]):
            for _ in range(20):
                slow = slow @ slow * 1e-4
            # Zero, but only after the products.
            late = (indices.to(device, non_blocking=True) + slow.isnan().sum().mul(0)).clone()
            step(there, late)
    torch.cuda.synchronize()
    same(here, there)
    return f"{STEPS} steps on 2 streams in turn"


@CHECKS("PyTorch captures a step in a graph")
def graph(device: str) -> str:
    need_cuda(device)
    here, there = module("cpu"), module(device)
    emb, indices = there.tables, torch.zeros(BAGS * POOL, dtype=torch.int64, device=device)
    offsets = torch.arange(0, BAGS * POOL + 1, POOL, device=device)
    out = torch.zeros(BAGS, DIM, device=device)
    stream, captured = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured, stream=stream):
        emb.forward(indices, offsets, out=out, stream=stream.cuda_stream)
        grad = out * 0.5
        emb.backward(grad, stream=stream.cuda_stream)
    for batch in batches():
        step(here, batch)
        indices.copy_(batch.reshape(-1))
        captured.replay()
    emb.check()
    same(here, there)
    return f"{STEPS} launches"


@CHECKS("a converted model trains")
def converted(device: str) -> str:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.EmbeddingBag(ROWS, DIM), torch.nn.Linear(DIM, 1))
    model.to(device)
    mpembed.torch.convert(model, precision="int8", cache=0.2, verbose=False)
    tables = mpembed.torch.FusedOptimizer(model)
    rest = torch.optim.Adam(model[1].parameters(), lr=0.05)
    losses = []
    for indices in batches() * 5:
        loss = (model(indices.to(device)) - 1).square().mean()
        tables.zero_grad()
        rest.zero_grad()
        loss.backward()
        tables.step()
        rest.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2, f"the loss went from {losses[0]} to {losses[-1]}"
    return f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}"


def main() -> int:
    """Run all checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    return CHECKS.run(lambda: device)


if __name__ == "__main__":
    sys.exit(main())
