"""The header of a safetensors file: where the arrays lie, checked before it is believed."""

from typing import Any, NamedTuple

from mpembed._checkpoint import strict_json

#: The length of the header, which stands before it.
LENGTH_BYTES = 8
_MAX_HEADER = 100_000_000  # safetensors' own limit
_MAX_BYTES = 2**63 - 1
_ELEMENT_BYTES = {
    f"{kind}{bits}": bits // 8
    for kind, sizes in {"U": (8, 16, 32, 64), "I": (8, 16, 32, 64), "F": (16, 32, 64)}.items()
    for bits in sizes
}
#: What files of other kinds begin with. A header of such a length would be longer than any.
_OTHERS = {
    b"PK\x03\x04": "a zip archive, as torch.save writes it; torch.load reads that",
    b"\x80\x02\x8a": "a pickle, as torch.save wrote it once; torch.load reads that",
}
_FIELDS = {"dtype", "shape", "data_offsets"}


class Entry(NamedTuple):
    """An array of a file.

    Attributes
    ----------
    dtype : str
        Kind and bits of an element, such as ``"U8"``.
    shape : tuple of int
        Extents.
    begin, end : int
        Its bytes, counted from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What stands before the arrays.

    Attributes
    ----------
    metadata : dict of str -> str
        What the file says of itself.
    entries : dict of str -> Entry
        The arrays, which fill the rest of the file without holes.
    start : int
        Where the arrays begin.
    """

    metadata: dict[str, str]
    entries: dict[str, Entry]
    start: int


def header_bytes(length: bytes, size: int) -> int:
    """Return the bytes of the header of a file of `size` bytes, which begins with its length."""
    if len(length) < LENGTH_BYTES:
        raise ValueError("it is too short")
    found = int.from_bytes(length, "little")
    if found > min(_MAX_HEADER, size - LENGTH_BYTES):
        for start, kind in _OTHERS.items():
            if length.startswith(start):
                raise ValueError(f"it is {kind}")
        raise ValueError("the length of its header is wrong")
    return found


def parse_header(text: bytes, size: int) -> Header:
    """Return the header of a file of `size` bytes.

    Raises
    ------
    ValueError
        If it is not what safetensors would write for just such a file.
    """
    if not text.startswith(b"{"):
        raise ValueError("its header is not a JSON object")
    try:
        found = strict_json.parse(text.decode())
    except ValueError as error:
        raise ValueError(f"its header is not valid JSON: {error}") from None
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("__metadata__ is not texts by name")
    start = LENGTH_BYTES + len(text)
    entries = {name: _entry(name, one) for name, one in found.items()}
    _check_places(entries, size - start)
    return Header(metadata, entries, start)


def _entry(name: str, found: Any) -> Entry:
    if isinstance(found, dict) and set(found) == _FIELDS:
        dtype, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
        width = _ELEMENT_BYTES.get(dtype) if isinstance(dtype, str) else None
        numbers = _whole_numbers(shape) and _whole_numbers(offsets) and len(offsets) == 2
        if numbers and width is not None and _product(width, shape) == offsets[1] - offsets[0]:
            return Entry(dtype, tuple(shape), *offsets)
    raise ValueError(f"{name}: its type, shape or place is not valid")


def _whole_numbers(found: Any) -> bool:
    return isinstance(found, list) and all(type(n) is int and 0 <= n <= _MAX_BYTES for n in found)


def _product(width: int, shape: list[int]) -> int:
    """Return the bytes of an array, or -1 if they are too many."""
    for extent in shape:
        width *= extent
        if width > _MAX_BYTES:
            return -1
    return width


def _check_places(entries: dict[str, Entry], size: int) -> None:
    """Raise ValueError unless the arrays follow each other and fill just `size` bytes."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.begin != end:
            raise ValueError(f"{name} does not begin where the array before it ends")
        end = entry.end
    if end != size:
        raise ValueError(
            f"its arrays have {end} bytes, it has {size} for them: it may be cut short"
        )
