"""Fused optimizers: settings only; the arithmetic is in ``include/mpembed/optim/``."""

from collections.abc import Callable

from mpembed.optim._adagrad import Adagrad, RowwiseAdagrad
from mpembed.optim._adam import Adam, Lamb, RowwiseAdam
from mpembed.optim._base import LrListener, Optimizer, State, listen
from mpembed.optim._ftrl import Ftrl
from mpembed.optim._sgd import SGD

__all__ = [
    "OPTIMIZERS",
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
    "listen",
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
