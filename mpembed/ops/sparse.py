"""The sparse optimizers of ``mpembed.ops``: rows of one table updated in place."""

from collections.abc import Sequence
from typing import Any, Unpack

from mpembed import optim
from mpembed.ops._update import Options, apply, documented


@documented(optim.SGD, momentum_buffer="(E, D), optional")
def sgd_(
    weights: Any,
    rows: Any,
    grads: Any,
    state: Any = None,
    *,
    lr: float,
    momentum: float = 0.0,
    **options: Unpack[Options],
) -> int:
    """Sparse SGD in place: ``w -= lr * g``; with momentum ``b = momentum * b + g; w -= lr * b``."""
    own = {"lr": lr, "momentum": momentum}
    kept = optim.SGD(lr, momentum).states
    if bool(kept) != (state is not None):
        needed = "be given" if kept else "be None"
        raise ValueError(f"state must {needed} with momentum={momentum!r}")
    states = {"state": state} if kept else {}
    return apply("sgd_", optim.SGD, own, weights, rows, grads, states, options)


@documented(optim.Adagrad, sum="(E, D)")
def adagrad_(
    weights: Any,
    rows: Any,
    grads: Any,
    state: Any,
    *,
    lr: float,
    eps: float = 1e-10,
    lr_decay: float = 0.0,
    updates: int = 1,
    **options: Unpack[Options],
) -> int:
    """Sparse Adagrad in place: ``h += g^2; w -= lr * g / (sqrt(h) + eps)``."""
    own = {"lr": lr, "eps": eps, "lr_decay": lr_decay}
    states = {"state": state}
    return apply("adagrad_", optim.Adagrad, own, weights, rows, grads, states, options, updates)


@documented(optim.RowwiseAdagrad, sum="(E,)")
def rowwise_adagrad_(
    weights: Any,
    rows: Any,
    grads: Any,
    state: Any,
    *,
    lr: float,
    eps: float = 1e-8,
    **options: Unpack[Options],
) -> int:
    """Sparse rowwise Adagrad in place: ``h += mean(g^2); w -= lr / (sqrt(h) + eps) * g``."""
    own = {"lr": lr, "eps": eps}
    states = {"state": state}
    kind = optim.RowwiseAdagrad
    return apply("rowwise_adagrad_", kind, own, weights, rows, grads, states, options)


@documented(optim.Adam, exp_avg="(E, D)", exp_avg_sq="(E, D)")
def adam_(
    weights: Any,
    rows: Any,
    grads: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    lr: float,
    updates: int,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    **options: Unpack[Options],
) -> int:
    """Sparse Adam in place, with lazy moments as ``torch.optim.SparseAdam``."""
    own = {"lr": lr, "betas": betas, "eps": eps}
    states = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    return apply("adam_", optim.Adam, own, weights, rows, grads, states, options, updates)


@documented(optim.RowwiseAdam, exp_avg="(E, D)", exp_avg_sq="(E,)")
def rowwise_adam_(
    weights: Any,
    rows: Any,
    grads: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    lr: float,
    updates: int,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    **options: Unpack[Options],
) -> int:
    """Sparse Adam in place, with one second moment a row."""
    own = {"lr": lr, "betas": betas, "eps": eps}
    states = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    kind = optim.RowwiseAdam
    return apply("rowwise_adam_", kind, own, weights, rows, grads, states, options, updates)


@documented(optim.Lamb, exp_avg="(E, D)", exp_avg_sq="(E, D)")
def lamb_(
    weights: Any,
    rows: Any,
    grads: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    lr: float,
    updates: int,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-6,
    **options: Unpack[Options],
) -> int:
    """Sparse LAMB in place, with a trust ratio a row."""
    own = {"lr": lr, "betas": betas, "eps": eps}
    states = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    return apply("lamb_", optim.Lamb, own, weights, rows, grads, states, options, updates)


@documented(optim.Ftrl, z="(E, D)", n="(E, D)")
def ftrl_(
    weights: Any,
    rows: Any,
    grads: Any,
    z: Any,
    n: Any,
    *,
    lr: float,
    lr_power: float = -0.5,
    l1: float = 0.0,
    l2: float = 0.0,
    beta: float = 1.0,
    **options: Unpack[Options],
) -> int:
    """Sparse FTRL-proximal in place; L1 regularisation gives exact zeros."""
    own = {"lr": lr, "lr_power": lr_power, "l1": l1, "l2": l2, "beta": beta}
    states = {"z": z, "n": n}
    return apply("ftrl_", optim.Ftrl, own, weights, rows, grads, states, options)
