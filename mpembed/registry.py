"""The one list of formats, optimizers, policies, poolings and statistics.

Every name and number comes from ``include/mpembed/registry.h``, through the compiled kernels, so
that a format added there exists here. The dictionaries map a name to its number.
"""

from mpembed._arguments.scalars import integer
from mpembed._bindings import contract, kernels

MAX_DIM = contract.MAX_DIM

FORMATS: dict[str, int] = kernels.FORMATS
OPTIMIZERS: dict[str, int] = kernels.OPTIMIZERS
POLICIES: dict[str, int] = kernels.POLICIES
POOLINGS: dict[str, int] = kernels.POOLINGS
WEIGHT_DECAYS: dict[str, int] = kernels.WEIGHT_DECAYS
ROUNDINGS: dict[str, int] = kernels.ROUNDINGS
#: How collections and updates round unless they are told otherwise.
DEFAULT_ROUNDING = next(
    name for name, number in ROUNDINGS.items() if number == contract.DEFAULT_ROUNDING
)
#: The ways to round rows that overwrite none: a pair needs a row that was there before.
ROUNDINGS_OF_NEW_ROWS = {name: n for name, n in ROUNDINGS.items() if name != "paired"}
INITS: dict[str, int] = kernels.INITS
STATS: tuple[str, ...] = tuple(kernels.STATS)
#: The sums that `EmbeddingBagCollection.rounding_report` reads.
NOISE_SUMS: tuple[str, ...] = tuple(kernels.NOISE_SUMS)
#: The formats that an optimizer's states may have.
STATE_FORMATS: dict[str, int] = kernels.STATE_FORMATS
#: The formats that outputs and their gradients may have.
OUTPUT_FORMATS: dict[str, int] = kernels.OUTPUT_FORMATS

# The shapes of an optimizer's states.
STATE_ROW = contract.STATE_ROW
STATE_ELEMENT = contract.STATE_ELEMENT


def choose(what: str, name: object, choices: dict[str, int]) -> int:
    """Return the number of a registered name.

    Raises
    ------
    ValueError
        If the name is not registered; the message lists the names that are.
    """
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, choices))}, got {name!r}")
    return choices[name]


def row_bytes(precision: str, embedding_dim: int) -> int:
    """Return the bytes of a row of `embedding_dim` values in a precision, header included."""
    return int(kernels.row_bytes(choose("precision", precision, FORMATS), _dim(embedding_dim)))


def code_bytes(precision: str, embedding_dim: int) -> int:
    """Return the bytes of a row's codes alone, without scale and bias."""
    return int(kernels.code_bytes(choose("precision", precision, FORMATS), _dim(embedding_dim)))


def _dim(embedding_dim: int) -> int:
    return integer("embedding_dim", embedding_dim, 1, MAX_DIM)
