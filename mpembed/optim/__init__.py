"""Fused optimizers: settings only; the arithmetic is in ``include/mpembed/optim/``."""

from collections.abc import Callable, Mapping
from typing import Any

from mpembed.optim._adagrad import Adagrad, RowwiseAdagrad
from mpembed.optim._adam import Adam, Lamb, RowwiseAdam
from mpembed.optim._base import LrListener, Optimizer, State, StatePrecision, listen
from mpembed.optim._ftrl import Ftrl
from mpembed.optim._sgd import SGD

__all__ = [
    "OPTIMIZERS",
    "OWN",
    "SGD",
    "Adagrad",
    "Adam",
    "Ftrl",
    "Lamb",
    "LrListener",
    "Optimizer",
    "RowwiseAdagrad",
    "RowwiseAdam",
    "State",
    "StatePrecision",
    "UnknownOptimizerError",
    "listen",
    "made",
]

#: What makes each optimizer of the registry: its class; SGD's two differ in the momentum.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowwiseAdagrad,
    "sgd_momentum": SGD,
    "adam": Adam,
    "rowwise_adam": RowwiseAdam,
    "lamb": Lamb,
    "ftrl": Ftrl,
}

#: The same for those of the user's own, by name: ``mpembed.cuda.Optimizer`` adds them.
OWN: dict[str, Callable[..., Optimizer]] = {}


class UnknownOptimizerError(ValueError):
    """There is no optimizer with a name."""


def made(kind: str, settings: Mapping[str, Any]) -> Optimizer:
    """Return the optimizer of a kind with these settings.

    Raises
    ------
    UnknownOptimizerError
        If there is none of this kind.
    TypeError, ValueError
        If a setting is not right.
    """
    maker = OPTIMIZERS.get(kind) or OWN.get(kind)
    if maker is None:
        raise UnknownOptimizerError(
            f"there is no optimizer {kind!r} in this process: if it is one of your own, make it "
            f"first, with mpembed.cuda.Optimizer(source, {kind!r}, ...)"
        )
    return maker(**settings)
