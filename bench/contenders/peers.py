"""Entries of PyTorch and FBGEMM on the same batches; an absent peer is skipped with its reason."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import fbgemm_peer
from arena import AbsentError, Entry
from rounds import Contender
from workloads import LR, Shape, Stream, gradient, has_fbgemm


def torch() -> Any:
    """Return PyTorch."""
    if importlib.util.find_spec("torch") is None:
        raise AbsentError("PyTorch is not installed")
    import torch as found

    return found


def fbgemm(make: Callable[[], Any]) -> Callable[[], Any]:
    """Return a builder that raises `AbsentError` where FBGEMM cannot be loaded."""

    def build() -> Any:
        if not has_fbgemm():
            raise AbsentError("FBGEMM is not installed")
        try:
            return make()
        except (ImportError, OSError) as error:
            raise AbsentError(f"FBGEMM cannot be loaded: {error}") from error

    return build


def _split(batches: Stream) -> tuple[list[list[Any]], Any]:
    """Return each batch as a tensor a table, and the offsets of one table."""
    shape, t = batches.shape, torch()
    each = shape.bags * shape.pool
    tensors = [list(t.from_numpy(x).split(each)) for x in batches.batches]
    return tensors, t.from_numpy(shape.offsets[: shape.bags + 1])


def torch_forward(precision: str, batches: Stream) -> Entry:
    """Look up with nn.EmbeddingBag, or with the quantized operator of the format."""
    shape = batches.shape
    made = _torch_bags if precision in ("fp32", "fp16") else _torch_packed

    def join(bags: list[Callable[[Any, Any], Any]]) -> Contender:
        t, (tensors, offsets) = torch(), _split(batches)

        def run(i: int) -> None:
            with t.no_grad():
                for bag, x in zip(bags, tensors[i % len(tensors)], strict=True):
                    bag(x, offsets)

        return Contender("torch", run)

    key = ("torch", shape, precision)
    return Entry(f"torch {precision}", key, lambda: made(shape, precision), join)


def _torch_bags(shape: Shape, precision: str, sparse: bool = False) -> list[Any]:
    t = torch()
    dtype = t.float16 if precision == "fp16" else t.float32
    bags = []
    for _ in range(shape.tables):
        # Filled in place: to convert an FP32 table would take memory for both.
        weight = t.empty(shape.rows, shape.dim, dtype=dtype).uniform_(-0.001, 0.001)
        bags.append(
            t.nn.EmbeddingBag(
                *(shape.rows, shape.dim),
                mode="sum",
                sparse=sparse,
                include_last_offset=True,
                _weight=weight,
            )
        )
    return bags


def _torch_packed(shape: Shape, precision: str) -> list[Any]:
    names = {"int8": "byte", "int4": "4bit"}
    if precision not in names:
        raise AbsentError(f"PyTorch has no {precision}")
    t = torch()
    ops, name = t.ops.quantized, names[precision]
    pack = getattr(ops, f"embedding_bag_{name}_prepack")
    lookup = getattr(ops, f"embedding_bag_{name}_rowwise_offsets")
    bags = []
    for _ in range(shape.tables):
        packed = pack(t.empty(shape.rows, shape.dim).uniform_(-0.001, 0.001))
        bags.append(lambda x, o, rows=packed: lookup(rows, x, o, include_last_offset=True))
    return bags


def torch_backward(optimizer: str, batches: Stream, whole: bool = False) -> Entry:
    """Sparse gradient and PyTorch's own optimizer, FP32."""
    shape = batches.shape

    def build() -> Any:
        t = torch()
        kinds = {"sgd": t.optim.SGD, "adagrad": t.optim.Adagrad, "adam": t.optim.SparseAdam}
        if optimizer not in kinds:
            raise AbsentError(f"PyTorch has no {optimizer}")
        bags = _torch_bags(shape, "fp32", sparse=True)
        return bags, kinds[optimizer]([bag.weight for bag in bags], lr=LR)

    def join(built: Any) -> Contender:
        (bags, chosen), t, (tensors, offsets) = built, torch(), _split(batches)
        grads = list(t.from_numpy(gradient(shape)).split(shape.dim, dim=1))
        outs: list[Any] = []

        def forth(i: int) -> None:
            pairs = zip(bags, tensors[i % len(tensors)], strict=True)
            outs[:] = [bag(x, offsets) for bag, x in pairs]

        def back(_: int) -> None:
            chosen.zero_grad(set_to_none=True)
            t.autograd.backward(outs, grads)
            chosen.step()

        return _training("torch", forth, back, whole)

    return Entry("torch fp32", ("torch", shape, "sparse", optimizer), build, join)


def _training(
    name: str, forth: Callable[[int], None], back: Callable[[int], None], whole: bool
) -> Contender:
    def step(i: int) -> None:
        forth(i)
        back(i)

    return Contender(name, step) if whole else Contender(name, back, prepare=forth)


def fbgemm_forward(precision: str, batches: Stream) -> Entry:
    """Look up with the operator for training (FP32, FP16) or for inference (INT8, INT4)."""
    shape = batches.shape
    if precision in ("fp32", "fp16"):
        key, make = ("fbgemm", shape, precision, "sgd"), fbgemm_peer.training
        build = fbgemm(lambda: make(shape, precision, "sgd"))
    else:
        key = ("fbgemm", shape, precision, "inference")
        build = fbgemm(lambda: fbgemm_peer.inference(shape, precision))

    def join(bag: Any) -> Contender:
        t = torch()
        tensors = [t.from_numpy(x) for x in batches.batches]
        offsets = t.from_numpy(shape.offsets)

        def run(i: int) -> None:
            with t.no_grad():
                bag(tensors[i % len(tensors)], offsets)

        return Contender("FBGEMM", run)

    return Entry(f"FBGEMM {precision}", key, build, join)


def fbgemm_backward(precision: str, optimizer: str, batches: Stream, whole: bool = False) -> Entry:
    """Fused backward; FBGEMM does not train INT8 and INT4 tables."""
    shape = batches.shape

    def join(bag: Any) -> Contender:
        t = torch()
        tensors = [t.from_numpy(x) for x in batches.batches]
        offsets, grad = t.from_numpy(shape.offsets), t.from_numpy(gradient(shape))
        outs: list[Any] = []

        def forth(i: int) -> None:
            outs[:] = [bag(tensors[i % len(tensors)], offsets)]

        def back(_: int) -> None:
            outs[0].backward(grad)

        return _training("FBGEMM", forth, back, whole)

    key = ("fbgemm", shape, precision, optimizer)
    build = fbgemm(lambda: fbgemm_peer.training(shape, precision, optimizer))
    return Entry(f"FBGEMM {precision}", key, build, join)
