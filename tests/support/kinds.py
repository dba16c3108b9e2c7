"""Every optimizer of the registry with its states in every precision, by names for parametrising.

`adam` keeps its states in FP32, `adam_bf16` in BF16, `adam_mixed` the last of several in BF16, and
`adam_crossed`, which only `EVERY` has, all but that.
An optimizer that the registry gains needs a setting in `oracles.SETTINGS`, and is tested by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oracles import DECAYS, SETTINGS

import mpembed as mpe

KINDS = list(mpe.registry.OPTIMIZERS)
CLASSES: dict[str, Any] = {
    kind: mpe.SGD if kind.startswith("sgd") else getattr(mpe, kind.title().replace("_", ""))
    for kind in KINDS
}


def make(kind: str, lr: float = 0.1, mode: str = "none", **others: Any) -> Any:
    """Return an optimizer of a kind, by default with the parameters of `oracles.SETTINGS`."""
    decay = {"weight_decay": DECAYS[mode], "weight_decay_mode": mode}
    return CLASSES[kind](lr, **SETTINGS[kind] | decay | others)


STATES: dict[str, tuple[str, ...]] = {
    kind: tuple(name for name, *_ in make(kind).states) for kind in KINDS
}


def _names_of(kind: str) -> list[str]:
    endings = {0: [""], 1: ["", "_bf16"]}.get(len(STATES[kind]), ["", "_bf16", "_mixed"])
    return [kind + ending for ending in endings]


NAMES = [name for kind in KINDS for name in _names_of(kind)]
# A name for each kind, where the precision of states is not what a test is about: all precisions
# among them.
ONE_EACH = [_names_of(kind)[number % len(_names_of(kind))] for number, kind in enumerate(KINDS)]
EVERY = [*NAMES, *(f"{kind}_crossed" for kind in KINDS if len(STATES[kind]) > 1)]


def named(name: str, lr: float = 0.1, mode: str = "none", **others: Any) -> Any:
    """Return the optimizer of one of `NAMES`, or of `EVERY`."""
    chosen: dict[str, Callable[[tuple[str, ...]], Any]] = {
        "bf16": lambda states: "bf16",
        "mixed": lambda states: {states[-1]: "bf16"},
        "crossed": lambda states: dict.fromkeys(states[:-1], "bf16"),
    }
    kind, _, ending = name.rpartition("_")
    if ending not in chosen:
        return make(name, lr, mode, **others)
    return make(kind, lr, mode, state_precision=chosen[ending](STATES[kind]), **others)
