"""How raw clicks become what a model takes; it can be stored and used by another process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed.train.data.clicks import (
    MISSING_LABEL,
    Bags,
    Clicks,
    Columns,
    DataError,
    IntArray,
    Source,
    reblock,
)
from mpembed.train.data.features import DenseTransform, encode_dense
from mpembed.train.data.from_json import from_json
from mpembed.train.data.vocabulary import Vocabulary

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
_LAYOUT = 1


@dataclass(frozen=True)
class Block:
    """Encoded clicks of one part of the data.

    Attributes
    ----------
    part : str
        "train", "validation" or "test"; "score" if the data are not split.
    labels : ndarray of float32, shape (n,)
        Zeros and ones; NaN where the source has no labels.
    dense : ndarray of float32, shape (n, D)
        Features of the numbers.
    ids : ndarray of int32, shape (C, n), or (m,) with offsets
        Rows of the tables, table by table.
    offsets : ndarray of int32, shape (C * n + 1,), optional
        Where columns may hold several values: click `i` has the rows
        ``ids[offsets[c * n + i] : offsets[c * n + i + 1]]`` of table `c`. None for one row each.
    """

    part: str
    labels: F32
    dense: F32
    ids: I32
    offsets: I32 | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> Block:
        if rows.indices(len(self)) == (0, len(self), 1):
            return self
        if self.offsets is None:
            ids, offsets = np.ascontiguousarray(self.ids[:, rows]), None
        else:
            ids, offsets = self._cut_bags(self.offsets, rows)
        return Block(self.part, self.labels[rows], self.dense[rows], ids, offsets)

    def batches(self, size: int) -> Iterator[Block]:
        """Cut the block into batches.

        Parameters
        ----------
        size : int
            Rows of a batch; the last one may have fewer.

        Yields
        ------
        Block
            Batches whose arrays are contiguous.
        """
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def bags(self) -> tuple[I32, I32]:
        """Return ids and offsets as a collection takes them, table by table."""
        ids = self.ids.reshape(-1)
        if self.offsets is not None:
            return ids, self.offsets
        return ids, np.arange(len(ids) + 1, dtype=np.int32)  # one id a bag

    def _cut_bags(self, offsets: I32, rows: slice) -> tuple[I32, I32]:
        starts, ends = offsets[:-1].reshape(-1, len(self)), offsets[1:].reshape(-1, len(self))
        starts, ends = starts[:, rows], ends[:, rows]
        if not starts.shape[1]:
            return self.ids[:0], np.zeros(1, np.int32)
        ids = [self.ids[a:b] for a, b in zip(starts[:, 0], ends[:, -1], strict=True)]
        lengths = (ends - starts).reshape(-1)
        cut = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths, out=cut[1:])
        return np.concatenate(ids), cut


@dataclass(frozen=True)
class Encoding:
    """Columns, transforms of the numbers, and the table row of each categorical value.

    Attributes
    ----------
    columns : Columns
        What the model takes from a row.
    transforms : sequence of DenseTransform
        One a dense column.
    vocabularies : sequence of Vocabulary
        One a categorical column.
    """

    columns: Columns
    transforms: Sequence[DenseTransform]
    vocabularies: Sequence[Vocabulary]

    @property
    def table_rows(self) -> list[int]:
        """Rows of each table."""
        return [v.num_rows for v in self.vocabularies]

    def encode(self, part: str, clicks: Clicks) -> Block:
        """Encode clicks.

        Parameters
        ----------
        part : str
            What the block is called.
        clicks : Clicks
            Raw clicks.

        Returns
        -------
        Block
            The same clicks, in the same order.
        """
        labels = clicks.labels.astype(np.float32)
        labels[clicks.labels == MISSING_LABEL] = np.nan
        dense = encode_dense(clicks.dense, self.transforms)
        pairs = zip(self.vocabularies, clicks.values(), strict=True)
        ids = [vocabulary.encode(values) for vocabulary, values in pairs]
        if clicks.bags:
            return Block(part, labels, dense, np.concatenate(ids), _join_offsets(clicks.bags))
        return Block(part, labels, dense, np.stack(ids))

    def blocks(self, source: Source, size: int) -> Iterator[Block]:
        """Encode all clicks of a source, without a split.

        Parameters
        ----------
        source : Source
            From :func:`mpembed.train.data.sources.open_source` with ``columns=self.columns``.
        size : int
            Rows of a block; the last one may have fewer.

        Yields
        ------
        Block
            Blocks of the part "score", in the order of the source.
        """
        lengths = (min(size, source.rows - at) for at in range(0, source.rows, size))
        for clicks in reblock(source.chunks(source.rows), lengths):
            yield self.encode("score", clicks)

    def describe(self) -> dict[str, Any]:
        """Return all but the arrays, as JSON can hold it; see :meth:`restore`."""
        return {
            "layout": _LAYOUT,
            "columns": asdict(self.columns),
            "dense": [asdict(one) for one in self.transforms],
            "tables": [
                {"num_rows": v.num_rows, "hashed": v.hashed, "values": len(v.values)}
                for v in self.vocabularies
            ],
        }

    def arrays(self) -> dict[str, IntArray]:
        """Return the arrays by name: the keys of the values that each table knows, sorted."""
        return {f"values.{i}": v.values for i, v in enumerate(self.vocabularies)}

    @classmethod
    def restore(
        cls, described: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> Encoding:
        """Make an encoding from what another process stored.

        Parameters
        ----------
        described : mapping
            From :meth:`describe`, also after a round trip through JSON.
        arrays : mapping of str to ndarray
            From :meth:`arrays`.

        Returns
        -------
        Encoding
            It encodes as the stored one did.

        Raises
        ------
        DataError
            If the parts are not those of an encoding, or do not fit one another.
        """
        try:
            if described["layout"] != _LAYOUT:
                raise DataError(f"the encoding has layout {described['layout']}, not {_LAYOUT}")
            columns = from_json(Columns, described["columns"])
            transforms = [_transform(one) for one in described["dense"]]
            vocabularies = [
                Vocabulary.restore(arrays[f"values.{i}"], one["num_rows"], one["hashed"])
                for i, one in enumerate(described["tables"])
            ]
        except DataError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"not a stored encoding: {error!r}") from None
        taken = (columns.label, *columns.dense, *columns.categorical)
        if columns.names and (
            len({*columns.names}) < len(columns.names)
            or len({*taken}) < len(taken)
            or not {*taken} <= {*columns.names}
        ):
            raise DataError("not a stored encoding: its columns are not those of a file")
        fits = len(transforms) == len(columns.dense)
        if not fits or len(vocabularies) != len(columns.categorical):
            raise DataError("not a stored encoding: its columns and its parts differ in number")
        return cls(columns, transforms, vocabularies)


def _transform(described: Any) -> DenseTransform:
    """Return a stored transform; ValueError if it is not one."""
    found = from_json(DenseTransform, described)
    finite = np.isfinite([found.mean, found.deviation]).all()
    known = found.kind in ("log", "standard") and found.shift in (1, 2)
    if not finite or not known or found.deviation <= 0.0:
        raise ValueError(f"{found} is not valid")
    return found


def _join_offsets(columns: Sequence[Bags]) -> I32:
    """Return the offsets of all columns, one after the other.

    Vocabularies encode each value by itself, so the raw offsets hold for the rows too.
    """
    total, parts = 0, [np.zeros(1, np.int64)]
    for bags in columns:
        parts.append(bags.offsets[1:] + total)
        total += len(bags.values)
    if total > np.iinfo(np.int32).max:
        raise DataError(f"{total:,} values in {len(columns[0]):,} clicks: use a smaller batch size")
    return np.concatenate(parts).astype(np.int32)
