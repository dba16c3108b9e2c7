"""What a CUDA graph cannot capture, refused by name before anything is queued."""

from collections.abc import Callable, Mapping
from typing import Any

from mpembed._bindings.device import CallOrder, Stream

Refuse = Callable[[Stream], None]
GRAPH = "in a CUDA graph"


def waits(call: str) -> Refuse:
    """Return what refuses a call that waits for the device."""

    def refuse(on: Stream) -> None:
        raise RuntimeError(
            f"{call} waits for the device and cannot be captured {GRAPH}: call it outside"
        )

    return refuse


def refuse_unsent(calls: CallOrder) -> None:
    """Raise RuntimeError where the device has not been told the learning rate yet."""
    if calls.later is not None:
        raise RuntimeError(
            f"the learning rate was set and is not on the device yet, which cannot be done {GRAPH}:"
            " call emb.check() after setting lr and before capturing"
        )


def refuse_batch(indices: Any, *, unpooled_of_several: bool) -> None:
    """Raise RuntimeError for a batch whose shapes a device has to be asked for."""
    if isinstance(indices, Mapping):
        raise RuntimeError(
            f"a dict batch cannot be captured {GRAPH}: it is joined on the host; pass table-major "
            "indices and offsets"
        )
    if unpooled_of_several:
        raise RuntimeError(
            f"a forward of several tables with pooling='none' among them cannot be captured "
            f"{GRAPH}: its shapes depend on the offsets"
        )


def needs_out(call: str, out: Any) -> Refuse:
    """Return what refuses a call that a graph would have to own the result of."""

    def refuse(on: Stream) -> None:
        refuse_result(call, out)

    return refuse


def refuse_result(call: str, out: Any) -> None:
    """Raise RuntimeError where a graph would have to own what a call returns."""
    if out is None:
        raise RuntimeError(
            f"{call} needs out= to be captured {GRAPH}: memory allocated in a capture belongs to "
            "the graph"
        )
