"""A table's rows as inference operators read them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mpembed import registry
from mpembed._bindings import array_ops, contract, kernels
from mpembed._bindings.device import Stream
from mpembed._bindings.dlpack import view
from mpembed._collection.state import CollectionState
from mpembed._collection.storage import GroupStorage

_CHUNK = 1 << 25  # bytes of values at a time
_WAY_OUT = "layout='packed' gives the rows as they are stored"
#: The formats that a layout knows, and of others what to do instead.
_KNOWN = {
    "packed": tuple(registry.FORMATS),
    "torch": ("int8", "int4", "int2"),
    "fbgemm": ("fp32", "fp16", "int8_fp16", "int4", "int2"),
}
_INSTEAD = {
    ("fbgemm", "int8"): "its INT8 rows have an FP16 scale and bias: use precision 'int8_fp16'",
    ("torch", "int8_fp16"): "its INT8 rows have an FP32 scale and bias: use precision 'int8'",
}
#: PyTorch takes a row's dimension from its bytes, so these codes must fill the last one.
TORCH_CODES_A_BYTE = {"int8": 1, "int4": 2, "int2": 4}


def export_rows(
    state: CollectionState, group: GroupStorage, position: int, layout: str, on: Stream
) -> Any:
    """Return the rows (E, bytes) of a group's table; see ``EmbeddingBagCollection.export``."""
    config = state.settings.tables[group.plan.tables[position]]
    registry.choose("layout", layout, dict.fromkeys(_KNOWN, 0))
    precision = config.precision
    if precision not in _KNOWN[layout]:
        instead = _INSTEAD.get((layout, precision), _WAY_OUT)
        raise ValueError(
            f"layout {layout!r} does not know the {precision} rows of table {config.name!r}: "
            f"{instead}"
        )
    if layout == "torch" and config.embedding_dim % TORCH_CODES_A_BYTE[precision]:
        raise ValueError(
            f"layout 'torch': PyTorch reads {precision} rows of dimensions that are multiples of "
            f"{TORCH_CODES_A_BYTE[precision]} only, and table {config.name!r} has "
            f"{config.embedding_dim}: use such a dimension or precision 'int8', or "
            "layout='packed' with mpembed.ops.embedding_bag"
        )
    stored = state.arrays()[f"table.{config.name}.rows"]
    values = stored.whole(on)
    rows = array_ops.upload(np.array(values) if stored.dense else values, on)
    if group.cache is not None:
        _write_back(state, group, position, rows, on)
    codes = registry.code_bytes(precision, config.embedding_dim)
    if layout != "fbgemm" or codes == rows.shape[1]:
        return rows
    values = array_ops.host(array_ops.read_only(rows, on))
    header_first = np.concatenate([values[:, codes:], values[:, :codes]], axis=1)
    return array_ops.upload(header_first, on)


def _write_back(
    state: CollectionState, group: GroupStorage, position: int, rows: Any, on: Stream
) -> None:
    """Encode the cached rows that differ from the table's into `rows`, as a flush would."""
    settings, table = state.settings, group.plan.tables[position]
    config = settings.tables[table]
    base = sum(settings.tables[i].num_embeddings for i in group.plan.tables[:position])
    ids = _dirty_rows(state, group, on)
    ids = ids[(ids >= base) & (ids < base + config.num_embeddings)] - np.uint64(base)
    if ids.size == 0:
        return
    steps = kernels.StepCounter(on, state.engine.steps.read(on) + 1)
    rounding = registry.ROUNDINGS[settings.rounding]
    target = kernels.Group(steps, 0, 1, config.embedding_dim, rounding, settings.seed)
    target.add_table(
        config.name,
        config.num_embeddings,
        array_ops.address(rows),
        rows.shape[1],
        precision=registry.FORMATS[config.precision],
        pooling=registry.POOLINGS[config.pooling],
        table_id=settings.table_id(table),
        first_row=config.first_row,
    )
    target.keep_alive(rows)
    target.upload_descriptors(on)
    each = max(1, _CHUNK // (4 * config.embedding_dim))
    for begin in range(0, ids.size, each):
        piece = ids[begin : begin + each]
        values = array_ops.result((len(piece), config.embedding_dim), np.float32, on)
        matrix = view(values, "values", on)
        group.kernels.read_rows(group.kernels.keys(position, piece, on), matrix, on)
        target.write_rows(target.keys(0, piece, on), matrix, on)


def _dirty_rows(state: CollectionState, group: GroupStorage, on: Stream) -> npt.NDArray[np.uint64]:
    """Return the linear row ids of a cache's dirty slots."""
    stored = state.arrays()[f"cache.{group.plan.label}.tags"]
    found = []
    for begin, end in stored.pieces():
        tags = stored.read(begin, end, on)
        dirty = (tags & np.uint64(contract.DIRTY_BIT)) != 0
        found.append(tags[dirty] & np.uint64(contract.ID_MASK))
    return np.concatenate(found)
