"""The longest path through a kernel's machine code, with each loop taken as often as needed.

It overestimates what a warp executes: where the code branches forwards, the longer side counts,
unless it copies unaligned data byte by byte or calls a slow path (division of subnormals). Where
the longer side is not the usual one, preferred or avoided opcodes turn the path.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from mpembed_gpu.sass import LOADS, STORES, Instruction, width

_LABEL = re.compile(r"`\((\S+?)\)")
_TARGETS = re.compile(r"\.L_\w+")
_BYTE = 8  # against paths that copy byte by byte
_CALL = 100  # against slow paths, such as the division of subnormals
_NONE = r"(?!)"
_PREFERRED = 1000
_LOOP = 300  # for a loop, as a path around it does no work
Counts = Counter[str]
Edges = Callable[[int], list[int]]


@dataclass
class Block:
    """A basic block: instructions without a branch between them."""

    number: int
    code: list[Instruction] = field(default_factory=list)
    next: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Trips:
    """How often a kind of loop is taken, each time it is reached.

    Loops with an opcode of `unit` share `total` units of work, the widest first: a body with four
    of these opcodes does four units at once, and the next narrower loop on the path does the rest.
    `needs` and `without` select loops by their opcodes, `depth` by the number of loops around them.
    Without `unit` the longest selected loop is taken `total` times and the others not at all.
    """

    total: float
    unit: str = ""
    needs: str = ""
    without: str = ""
    depth: int | None = None

    def units(self, body: Counts, depth: int) -> int:
        """Return how many units a body does, 0 if the rule does not select it."""
        if self.depth is not None and depth != self.depth:
            return 0
        if self.needs and not _count(body, self.needs):
            return 0
        if self.without and _count(body, self.without):
            return 0
        return round(_count(body, self.unit) if self.unit else body.total())


def _count(body: Counts, pattern: str) -> float:
    return sum(n for opcode, n in body.items() if re.match(pattern, opcode))


def blocks_of(code: list[Instruction]) -> list[Block]:
    """Return the basic blocks and their successors; the first is the entry."""
    starts = _starts(code)
    number = {start: i for i, start in enumerate(starts)}
    places = {label: i for i, one in enumerate(code) for label in one.labels}
    blocks = []
    for i, start in enumerate(starts):
        end = starts[i + 1] if i + 1 < len(starts) else len(code)
        body = code[start:end]
        following = number.get(end)
        targets = [number[places[t]] for t in _targets(code, end - 1) if t in places]
        if following is not None and _falls_through(body[-1]):
            targets.append(following)
        blocks.append(Block(i, body, list(dict.fromkeys(targets))))
    return blocks


def _starts(code: list[Instruction]) -> list[int]:
    starts = {0}
    for i, one in enumerate(code):
        if one.labels:
            starts.add(i)
        if one.base in ("BRA", "BRX", "EXIT", "BSYNC", "RET") and i + 1 < len(code):
            starts.add(i + 1)
    return sorted(starts)


def _falls_through(one: Instruction) -> bool:
    if one.base in ("BRA", "BRX", "EXIT", "BSYNC", "RET"):
        conditional = one.guard or one.operands.startswith(("P", "!P", "UP", "!UP"))
        return bool(conditional) or one.opcode == "BRA.DIV"
    return True


def _targets(code: list[Instruction], last: int) -> list[str]:
    """Return the labels that an instruction may jump to, except of divergent collectives."""
    one = code[last]
    if one.opcode == "BRA.DIV":
        return []
    if one.base == "BRA":
        return _LABEL.findall(one.operands)
    if one.base == "BRX":
        return _TARGETS.findall(one.operands)
    if one.base == "BSYNC":  # where the nearest BSSY of this barrier says
        for before in reversed(code[:last]):
            if before.base == "BSSY" and before.operands.split(",")[0] == one.operands:
                return _LABEL.findall(before.operands)
    return []


@dataclass
class Loop:
    """A loop on the path: the path through its body, and how often it is taken."""

    body: list[Node]
    depth: int
    trips: int = 1


Node = Block | Loop


def longest(
    blocks: list[Block], rules: tuple[Trips, ...] = (), prefer: str = "", avoid: str = ""
) -> list[Instruction]:
    """Return the instructions of the longest path, in order."""
    search = _Search(blocks, re.compile(prefer or _NONE), re.compile(avoid or _NONE))
    path = search.path(set(range(len(blocks))), 0, lambda i: blocks[i].next, None, 0)
    _assign(path, rules)
    return list(_execute(path))


def counts(code: Iterable[Instruction]) -> Counts:
    """Return how often each opcode occurs."""
    return Counter(one.opcode for one in code)


def _execute(path: list[Node]) -> Iterator[Instruction]:
    for node in path:
        if isinstance(node, Block):
            yield from (one for one in node.code if one.base != "NOP")
        else:
            for _ in range(node.trips):
                yield from _execute(node.body)


def _assign(path: list[Node], rules: tuple[Trips, ...]) -> None:
    """Set how often the loops of a path are taken, the inner ones first; once without a rule."""
    loops = [node for node in path if isinstance(node, Loop)]
    for loop in loops:
        _assign(loop.body, rules)
    free = {id(loop): (loop, counts(_execute(loop.body))) for loop in loops}
    for rule in rules:
        left = rule.total
        mine = [(rule.units(body, loop.depth), loop) for loop, body in free.values()]
        for units, loop in sorted((m for m in mine if m[0]), key=lambda m: -m[0]):
            del free[id(loop)]
            loop.trips = int(left // units) if rule.unit else int(left)
            left -= loop.trips * units if rule.unit else left


class _Search:
    """The longest path through some blocks and the loops among them."""

    def __init__(
        self, blocks: list[Block], prefer: re.Pattern[str], avoid: re.Pattern[str]
    ) -> None:
        self.blocks = blocks
        self.weights = [sum(_weight(one, prefer, avoid) for one in block.code) for block in blocks]

    def path(
        self, inside: set[int], entry: int, following: Edges, latch_of: int | None, depth: int
    ) -> list[Node]:
        """Return the longest path from `entry`, to an edge back to `latch_of` if that is given."""

        def edges(i: int) -> list[int]:
            return [j for j in following(i) if j in inside and j != latch_of]

        parts = components(inside, edges)  # successors come first
        part_of = {i: p for p, part in enumerate(parts) for i in part}
        best: dict[int, tuple[int, list[Node]] | None] = {}
        for p, part in enumerate(parts):
            ends = latch_of is None or any(latch_of in following(i) for i in part)
            after: tuple[int, list[Node]] | None = (0, []) if ends else None
            for q in {part_of[j] for i in part for j in edges(i)} - {p}:
                other = best[q]
                if other is not None and (after is None or other[0] > after[0]):
                    after = other
            best[p] = None
            if after is not None:
                node = self.node(part, edges, part_of, depth)
                best[p] = (self.weight([node]) + after[0], [node, *after[1]])
        found = best[part_of[entry]]
        return found[1] if found else []

    def node(self, part: list[int], edges: Edges, part_of: dict[int, int], depth: int) -> Node:
        """Return a block, or a loop with the path through its body."""
        if len(part) == 1:
            block = self.blocks[part[0]]
            return Loop([block], depth) if part[0] in edges(part[0]) else block
        # Code is laid out with the head of a loop before its body.
        mine = part_of[part[0]]
        entered = {j for i in part_of if part_of[i] != mine for j in edges(i) if part_of[j] == mine}
        head = min(entered, default=min(part))
        return Loop(self.path(set(part), head, edges, head, depth + 1), depth)

    def weight(self, path: list[Node]) -> int:
        """Return the weight of a path in the search."""
        return sum(
            self.weights[node.number] if isinstance(node, Block) else _LOOP + self.weight(node.body)
            for node in path
        )


def _weight(one: Instruction, prefer: re.Pattern[str], avoid: re.Pattern[str]) -> int:
    if avoid.match(one.opcode):
        return -_PREFERRED
    if one.base == "CALL":
        return -_CALL
    if one.base in (*LOADS, *STORES) and width(one.opcode) == 8:
        return 0 if one.guard else -_BYTE  # a guarded one stands beside the wide one
    return _PREFERRED if prefer.match(one.opcode) else 1


def components(nodes: set[int], edges: Callable[[int], list[int]]) -> list[list[int]]:
    """Return the strongly connected components, successors before predecessors (Tarjan)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    found: list[list[int]] = []
    for root in sorted(nodes):
        if root in index:
            continue
        work = [(root, iter(edges(root)))]
        index[root] = low[root] = len(index)
        stack.append(root)
        while work:
            node, rest = work[-1]
            for other in rest:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    work.append((other, iter(edges(other))))
                    break
                if other in stack:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    part = stack[stack.index(node) :]
                    del stack[stack.index(node) :]
                    found.append(part)
    return found
