"""What `docs/numerics.md` says, stated again in slow, plain NumPy.

Nothing here is shared with the package: it is what the package is compared with.
"""

from .cache import RefCache, splitmix64
from .collection import STATS, RefCollection
from .formats import FORMATS, decode, encode, encode_bits, header
from .rounding import draws16, fmaf, lane_dot, philox4x32

__all__ = [
    "FORMATS",
    "STATS",
    "RefCache",
    "RefCollection",
    "decode",
    "draws16",
    "encode",
    "encode_bits",
    "fmaf",
    "header",
    "lane_dot",
    "philox4x32",
    "splitmix64",
]
