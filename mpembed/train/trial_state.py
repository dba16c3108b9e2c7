"""What a model has beside its tables, as arrays: saved, checked and restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mpembed.train.array_file import Arrays
from mpembed.train.model import Perceptrons
from mpembed.train.records import Records

_RECORDS = {
    "rows": np.int64,
    "losses": np.float64,
    "step_seconds": np.float64,
    "table_seconds": np.float64,
}


def _weights(net: Perceptrons) -> Arrays:
    """Return the weights of the perceptrons, ``net.NAME``."""
    return {f"net.{name}": one.detach().numpy() for name, one in net.named_parameters()}


def _optimizer_arrays(optimizer: torch.optim.Optimizer) -> Arrays:
    states = optimizer.state_dict()["state"]
    return {
        f"optimizer.{parameter}.{name}": value.numpy()
        for parameter, state in states.items()
        for name, value in state.items()
        if value is not None
    }


def dense_arrays(net: Perceptrons, optimizer: torch.optim.Optimizer, records: Records) -> Arrays:
    """Return all arrays of a model except those of its tables.

    Parameters
    ----------
    net : Perceptrons
        Its perceptrons.
    optimizer : torch.optim.Optimizer
        Theirs.
    records : Records
        Of the steps so far.

    Returns
    -------
    dict of str to ndarray
        ``net.NAME``, ``optimizer.NUMBER.STATE`` and ``records.NAME``.
    """
    kept = {
        f"records.{name}": np.array(getattr(records, name), kind) for name, kind in _RECORDS.items()
    }
    return {**_weights(net), **_optimizer_arrays(optimizer), **kept}


def restore(
    arrays: Mapping[str, np.ndarray[Any, Any]],
    net: Perceptrons,
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> Records:
    """Give a new model what `dense_arrays` returned.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        What was saved; it is checked first.
    net : Perceptrons
        New ones.
    optimizer : torch.optim.Optimizer
        Theirs, also new.
    steps : int
        How many it had made.

    Returns
    -------
    Records
        Of its steps.

    Raises
    ------
    ValueError
        If the arrays are not those of such a model; nothing has changed then.
    """
    parameters = dict(net.named_parameters())
    expected = {f"net.{name}": tuple(one.shape) for name, one in parameters.items()}
    expected |= _expected_states(optimizer, steps)
    expected |= {f"records.{name}": (steps,) for name in _RECORDS}
    _check(arrays, expected)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(arrays[f"net.{name}"]))
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, array in arrays.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            number, _, state = rest.partition(".")
            states.setdefault(int(number), {})[state] = torch.from_numpy(array)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    return Records(**{name: arrays[f"records.{name}"].tolist() for name in _RECORDS})


def _expected_states(optimizer: torch.optim.Optimizer, steps: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the optimizer's states after some steps."""
    if not steps or not isinstance(optimizer, torch.optim.Adam):
        return {}
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    shapes: dict[str, tuple[int, ...]] = {}
    for number, one in enumerate(parameters):
        shapes[f"optimizer.{number}.step"] = ()
        shapes[f"optimizer.{number}.exp_avg"] = tuple(one.shape)
        shapes[f"optimizer.{number}.exp_avg_sq"] = tuple(one.shape)
    return shapes


def _check(
    arrays: Mapping[str, np.ndarray[Any, Any]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    for name in sorted(set(arrays) ^ set(expected)):
        raise ValueError(f"{name} is {'missing' if name in expected else 'not expected'}")
    for name, shape in expected.items():
        kind, _, last = name.partition(".")
        wanted = np.dtype(_RECORDS[last] if kind == "records" else np.float32)
        found = arrays[name]
        if found.dtype != wanted or found.shape != shape:
            raise ValueError(
                f"{name} is {found.dtype} of shape {found.shape}, not {wanted} of shape {shape}"
            )
        if not np.isfinite(found).all():
            raise ValueError(f"{name} has values that are not finite")
        if (kind == "records" or name.endswith(("exp_avg_sq", "step"))) and (found < 0).any():
            raise ValueError(f"{name} has values below 0")
