"""What `backward` is given: a gradient, or several with their tickets."""

from typing import Any

from mpembed._bindings import kernels
from mpembed._bindings.contract import MAX_GRADIENTS
from mpembed._bindings.view import View

_PAIRS = "a list of (gradient, ticket) pairs, with the tickets of forward(ticket=True)"


def pairs_of(grad: Any, ticket: Any, out: Any) -> tuple[list[tuple[Any, Any]], list[Any]]:
    """Return the (gradient, ticket) pairs of a call and where each result goes.

    Raises
    ------
    TypeError, ValueError
        If it is no list, or one that is empty, too long or not of pairs, or comes with a ticket.
    """
    if not isinstance(grad, list):
        raise TypeError(f"grad must be an array, or {_PAIRS}; got a {type(grad).__name__}")
    if ticket is not None:
        raise TypeError("ticket must be None where grad is a list: each entry has its own ticket")
    if not 1 <= len(grad) <= MAX_GRADIENTS:
        raise ValueError(
            f"grad must be a list of 1 .. {MAX_GRADIENTS} (gradient, ticket) pairs, got "
            f"{len(grad)}; sum more in several calls"
        )
    for number, pair in enumerate(grad):
        if not isinstance(pair, tuple) or len(pair) != 2 or pair[1] is None:
            given = pair if isinstance(pair, tuple) else (pair,)
            kinds = ", ".join("None" if one is None else type(one).__name__ for one in given)
            raise TypeError(
                f"grad must be {_PAIRS}; grad[{number}] is "
                + (f"({kinds})" if isinstance(pair, tuple) else kinds)
            )
    outs = [None] * len(grad) if out is None else out
    if not isinstance(outs, list) or len(outs) != len(grad):
        raise TypeError("out must be None or a list with an entry for each pair of grad")
    return grad, outs


def refuse_shared_results(written: list[Any], grads: list[Any]) -> None:
    """Raise ValueError where one result's memory is another's, or one of the gradients'."""
    targets = [target for target in written if target is not None]
    if not targets:
        return
    read: list[View | None] = []
    for grad in grads:
        read.extend(grad.values() if isinstance(grad, dict) else [grad])
    kernels.refuse_overlap(targets, read)
