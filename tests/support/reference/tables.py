"""One table, or a shard of one: its rows and states as bytes, and who it is to the random bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .formats import bf16_codes, bf16_values, decode, encode
from .noise import is_sampled, rounding_sum, update_sums
from .optim import STATES, Rule, initial_states
from .rounding import F32, I64, draws16, f32, initial_values, state_domain


class RefTable:
    """Rows `first_row ...` of a table; `rule` is None where it is frozen."""

    def __init__(
        self, config: Any, place: int, rule: Rule | None, seed: int, rounding: str
    ) -> None:
        self.name, self.precision, self.dim = config.name, config.precision, config.embedding_dim
        self.pooling, self.num_rows = config.pooling, config.num_embeddings
        self.table_id = place if config.table_id is None else config.table_id
        self.first_row = config.first_row
        self.seed, self.rounding = seed, rounding
        self.noise = np.zeros(3, np.int64)  # rows, rounding, update
        total = config.total_rows
        total = self.first_row + self.num_rows if total is None else total
        at = self.first_row + np.arange(self.num_rows)
        x = initial_values(config.init, seed, self.table_id, at, self.dim, total)
        self.rows = self._encode(np.arange(self.num_rows), x, 0)
        names = [name for name, _ in STATES[rule.kind]] if rule else []
        self.state_names = names
        self.state_precisions = [rule.precision(name) for name in names] if rule else []
        start = initial_states(rule, self.num_rows, self.dim) if rule else []
        self.states: list[npt.NDArray[Any]] = [
            bf16_codes(state, None) if precision == "bf16" else state
            for state, precision in zip(start, self.state_precisions, strict=True)
        ]

    def read(self, ids: I64) -> tuple[F32, list[F32]]:
        """Rows and states as floats."""
        states = [
            bf16_values(state[ids]) if precision == "bf16" else state[ids]
            for state, precision in zip(self.states, self.state_precisions, strict=True)
        ]
        return decode(self.rows[ids], self.precision, self.dim), states

    def write(self, ids: I64, values: F32, states: Sequence[F32] | None, step: int) -> None:
        """Store rows and, unless they are None, their states, each in its own format."""
        self.rows[ids] = self._encode(ids, values, step, self.rows[ids])
        if states is None:
            return
        for i, (state, precision) in enumerate(
            zip(self.states, self.state_precisions, strict=True)
        ):
            state[ids] = states[i] if precision == "fp32" else self._half(i, ids, states[i], step)

    def sampled(self, ids: I64, step: int) -> I64:
        """Places of the rows whose write is measured."""
        at = [self.first_row + row for row in ids.tolist()]
        return np.flatnonzero([is_sampled(self.table_id, row, step) for row in at])

    def measure_rounding(self, ids: I64, values: F32, step: int) -> None:
        """Count the noise of rows that are written to the table."""
        for i in self.sampled(ids, step):
            self.noise[1] += rounding_sum(values[i], self.precision, self.rounding)

    def measure_updates(self, ids: I64, values: F32, old: F32, step: int) -> None:
        """Count the updates of rows."""
        for i in self.sampled(ids, step):
            self.noise[[0, 2]] += update_sums(values[i], old[i], self.precision)

    def _encode(
        self, ids: I64, values: F32, step: int, old: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        return encode(
            f32(values).reshape(-1, self.dim),
            self.precision,
            self.rounding,
            seed=self.seed,
            step=step,
            table=self.table_id,
            rows=self.first_row + ids,
            old=old,
        )

    def _half(self, i: int, ids: I64, values: F32, step: int) -> npt.NDArray[np.uint16]:
        if self.rounding == "nearest":
            return bf16_codes(f32(values), None)
        rows, width = self.first_row + ids, 1 if values.ndim == 1 else values.shape[1]
        draws = draws16(self.seed, state_domain(i), self.table_id, rows, width, step)
        return bf16_codes(f32(values), draws.reshape(values.shape))
