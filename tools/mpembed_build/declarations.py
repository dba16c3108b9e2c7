"""Cython's declarations of the C interface, written from its headers: nothing is declared twice.

What the headers may hold is what they do hold: enums, structs, functions and numbers, of which a
few regular expressions understand all. Anything else is an error.
"""

from __future__ import annotations

import re
from pathlib import Path

from mpembed_build.settings import BuildError

PXD, PXI = Path("mpembed/_bindings/api.pxd"), Path("contract.pxi")
_IDENTIFIERS = r"\w+(?: = \d+)?(?:, \w+(?: = \d+)?)*,?"
# What stands in a header besides its declarations: a guard, includes, C++'s brackets and macros.
_DIRECTIVES = r"#(?:ifndef \w+|define \w+.*|undef \w+|include .+|ifdef __cplusplus|endif)"
_NUMBER = r"#define (MPE_\w+)[ \t]+(?:\d+|U?INT\d+_(?:MAX|C)|MPE_\w+|[()*]|<< \d+| - 1|[ \t])+"


def write(include: Path, folder: Path) -> None:
    """Write the declarations where Cython finds them with `folder` on its path.

    Parameters
    ----------
    include : Path
        The folder of the headers, the parent of ``mpembed``.
    folder : Path
        Gets ``mpembed/_bindings/api.pxd``, the declarations of ``api.h``, and ``contract.pxi``, the
        numbers of ``contract.h`` under Python's names. A file that is right is left alone.
    """
    headers = include / "mpembed"
    for path, text in ((PXD, declarations(headers)), (PXI, numbers(headers))):
        target = folder / path
        if not target.is_file() or target.read_text() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)


def numbers(headers: Path) -> str:
    """Return the numbers of ``contract.h`` as a Cython source declares and exports them."""
    names = _numbers(_text(headers / "contract.h"))
    lines = ["# Written from include/mpembed/contract.h.", ""]
    lines += ['cdef extern from "mpembed/contract.h":']
    lines += [f"    const unsigned long long {name}" for name in names]
    lines += ["", *(f"{name.removeprefix('MPE_')} = {name}" for name in names)]
    return "\n".join(lines) + "\n"


def declarations(headers: Path) -> str:
    """Return ``api.h``, the headers behind it and ``step.h`` as a ``.pxd`` file."""
    contract, types, api, step = (
        _text(headers / f"{name}.h") for name in ("contract", "api_types", "api", "step")
    )
    functions = _functions(_text(headers / "api_functions.h"))
    api = api.replace('#include "mpembed/api_functions.h"\n', functions)
    lines = [f"const unsigned long long {name}" for name in _numbers(contract)]
    lines += ["const int MPE_API_VERSION"]
    for name, text in (("api_types.h", types), ("api.h", api)):
        lines += _declared(name, text)
    head = [
        "# Written from the headers of include/mpembed.",
        "from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t",
        "",
        'cdef extern from "mpembed/api.h" nogil:',
    ]
    body = [*head, *(f"    {line}" for line in lines)]
    body += ["", 'cdef extern from "mpembed/step.h" nogil:']
    body += [f"    {line}" for line in _declared("step.h", step)]
    return "\n".join(body) + "\n"


def _text(header: Path) -> str:
    """Return a header with neither comments nor continued lines."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", header.read_text(), flags=re.DOTALL)
    return text.replace("\\\n", " ")


def _numbers(text: str) -> list[str]:
    """Return the names of the numbers of ``contract.h``: whole ones that are not negative."""
    names = []
    for line in filter(None, map(str.strip, text.splitlines())):
        number = re.fullmatch(_NUMBER, line)
        if number is not None:
            names.append(number[1])
        elif not re.fullmatch(r"#(?:ifndef|define) MPEMBED_CONTRACT_H|#include .+|#endif", line):
            raise BuildError(f"contract.h: not understood: {_line(line)}")
    return names


def _without_directives(header: str, text: str) -> str:
    """Return a header without the preprocessor's lines; one that chooses what holds is an error."""
    for line in re.findall(r"^[ \t]*#.*", text, re.MULTILINE):
        if not re.fullmatch(_DIRECTIVES, line.strip()):
            raise BuildError(f"{header}: not understood: {_line(line)}")
    return re.sub(r"^[ \t]*#.*\n", "", text, flags=re.MULTILINE)


def _functions(text: str) -> str:
    """Return the functions of a backend as the members that the macro makes of them."""
    text = _without_directives("api_functions.h", text)
    pattern = r"\s*MPE_FUNCTION\(([^,()]+), (\w+),\s*\(([^()]*)\)\)\s*"
    rest = re.sub(pattern, "", text)
    if rest.strip():
        raise BuildError(f"api_functions.h: not understood: {_line(rest)}")
    return "".join(f"{r} (*{name})({args});\n" for r, name, args in re.findall(pattern, text))


def _declared(header: str, text: str) -> list[str]:
    """Return the enums, structs and functions of a header, as Cython declares them."""
    text = _without_directives(header, text)
    text = re.sub(r"enum \{ MPE_\w+\(\w+\) \w+ \};", "", text)  # of registry.h: unused in Cython
    text = re.sub(r'extern "C" \{(.*)\}', r"\1", text, flags=re.DOTALL)
    pattern = (
        r"typedef (?P<kind>enum|struct) (?P<type>\w+) \{(?P<body>[^{}]*)\} (?P=type);"
        r"|typedef struct (?P<opaque>\w+) (?P=opaque);"
        r"|MPE_EXPORT (?P<function>[^;{}]*);"
    )
    lines: list[str] = []
    for found in re.finditer(pattern, text):
        if found["function"]:
            lines.append(_function(header, found["function"]) + " noexcept")
            continue
        if found["opaque"]:
            lines += [f"ctypedef struct {found['opaque']}:", "    pass"]
            continue
        lines.append(f"ctypedef {found['kind']} {found['type']}:")
        inner = _enumerators if found["kind"] == "enum" else _members
        lines += [f"    {line}" for line in inner(header, found["body"])]
    rest = re.sub(pattern, "", text)
    if rest.strip():
        raise BuildError(f"{header}: not understood: {_line(rest)}")
    return lines


def _enumerators(header: str, body: str) -> list[str]:
    body = " ".join(body.split())
    if not re.fullmatch(_IDENTIFIERS, body):
        raise BuildError(f"{header}: not understood: {body}")
    return [word for word in re.findall(r"\w+", body) if not word.isdecimal()]


def _members(header: str, body: str) -> list[str]:
    members = [" ".join(member.split()) for member in body.split(";")]
    return [
        _function(header, member) + " noexcept nogil" if "(" in member else member
        for member in members
        if member
    ]


def _function(header: str, declaration: str) -> str:
    """Return a function or a pointer to one without the names of its arguments.

    C takes names for them that are words of Python, such as ``from``.
    """
    found = re.fullmatch(r"(.*[ *])(\w+|\(\*\w+\))\(([^()]*)\)", " ".join(declaration.split()))
    if found is None:
        raise BuildError(f"{header}: not understood: {_line(declaration)}")
    given = [] if found[3] in ("", "void") else found[3].split(",")
    types = [_type(header, argument.strip()) for argument in given]
    return f"{found[1]}{found[2]}({', '.join(types)})"


def _type(header: str, argument: str) -> str:
    """Return the type of an argument: of one word, maybe ``const``, maybe a pointer."""
    found = re.fullmatch(r"((?:const )?(?!const\b|unsigned\b|signed\b)\w+ ?\**) ?\w*", argument)
    if found is None:
        raise BuildError(f"{header}: not understood: {_line(argument)}")
    return found[1].strip().replace(" *", "*")


def _line(text: str) -> str:
    return " ".join(text.split())[:80]
