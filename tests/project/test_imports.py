"""The package's modules: no import circle, no access to another module's private attributes."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import mpembed

#: Private attributes of other projects: what is read, and why.
ALLOWED = {
    "torch._C": "PyTorch's flags of a trace and a profile, which every lookup reads: its public "
    "functions take longer",
    "torch._dynamo": "PyTorch's documented name of a graph break, which takes a reason",
    "torch._check": "what PyTorch's guide to export has for promises about sizes",
    "parent._modules": "PyTorch's children of a module, each under all its names: its public ways "
    "leave some out, or take every path to a shared module",
    "other._parameters": "PyTorch's parameters of a module: a subclass may override the public way",
    "DistributedDataParallel._get_active_ddp_module": "the data-parallel model whose forward runs: "
    "its public face does not tell a module inside",
    "tensor._version": "PyTorch's count of the writes to a tensor, which nothing public has",
    "torch.autograd.Variable._execution_engine": "PyTorch's only callback at the end of a backward "
    "pass, as its data-parallel modules use it",
    **dict.fromkeys(
        (
            "sharding._grouped_embedding_configs",
            "sharding._grouped_embedding_configs_per_rank",
            "sharding._rank",
            "sharding._device",
            "sharding._pg",
            "sharding._env",
        ),
        "what TorchRec's shardings pass to the lookups that they make, and nothing else tells",
    ),
}
PACKAGE = Path(mpembed.__file__).parent


def syntax_trees() -> dict[str, ast.Module]:
    """Return every module's syntax tree by its name; compiled ones have stubs."""
    trees = {}
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")]):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text("utf-8"))
    return trees


TREES = syntax_trees()


def imports(name: str) -> set[str]:
    """Return the package's modules that one imports anywhere, also for types alone."""
    found: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
            found.update(full if full in TREES else source for full in names)
    return found & set(TREES)


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "mcs")


def foreign_attributes(tree: ast.AST) -> list[str]:
    """Return what a module reads or sets of private attributes that it does not define."""
    nodes = list(ast.walk(tree))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    defined = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    defined |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    defined |= {a.attr for a in attributes if is_own(a) and isinstance(a.ctx, ast.Store)}
    private = [a for a in attributes if a.attr.startswith("_") and not a.attr.endswith("__")]
    return [ast.unparse(a) for a in private if a.attr not in defined and not is_own(a)]


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle({name: imports(name) for name in TREES}) == []


def test_a_circle_is_told_by_its_modules() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert set(circle(graph)) == {"a", "b", "c"}


def test_no_module_uses_private_attributes_of_another() -> None:
    accesses = {
        f"{name}: {access}"
        for name, tree in TREES.items()
        for access in foreign_attributes(tree)
        if not access.startswith(tuple(f"{allowed}." for allowed in ALLOWED))
        and access not in ALLOWED
    }
    assert accesses == set()


def test_an_access_to_a_private_attribute_is_found() -> None:
    source = "class A:\n def f(self, b):\n  self._x = 1\n  return self._y, b._x, b._z, b.__len__"
    assert foreign_attributes(ast.parse(source)) == ["b._z"]
