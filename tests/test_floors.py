"""The order of the rooms: a module imports from its own room and from floors below it, also within functions."""
import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "jiidm"
FLOORS = ("system", "config", "checkpoint", "kernels", "models", "data", "diffusion", "inference", "foreign",
          "evaluation", "training", "generator", "baselines", "contest", "painter", "export", "commands")
LAZY = {  # importer, imported room: within a function alone
    ("generator", "baselines"): "`load` returns whatever a checkpoint is",
    ("commands.train", "baselines"): "the command that trains GauGAN and CLADE",
    ("commands.convert", "baselines"): "the command that converts their weights",
}
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
           for path in PACKAGE.rglob("*.py")}


def imports_of(node, lazy=False):
    """Yields (module below jiidm, whether the import is within a function) for all imports in a syntax tree."""
    for child in ast.iter_child_nodes(node):
        names = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "imports are written in full"
            names = [f"{child.module}.{alias.name}" for alias in child.names]
        for name in names:
            if name.startswith("jiidm."):
                name = name.removeprefix("jiidm.")
                yield name if name in MODULES else name.rpartition(".")[0], lazy
        for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports_of(child, lazy or for_types or function)


GRAPH = {module: set(imports_of(ast.parse(path.read_text("utf-8")))) for module, path in MODULES.items()}


@pytest.mark.parametrize("module", [module for module in MODULES if module])
def test_a_module_imports_from_lower_floors_alone(module):
    own = module.partition(".")[0]
    for imported, lazy in GRAPH[module]:
        room = imported.partition(".")[0]
        if not room or room == own:  # jiidm itself has the version and imports nothing before it is asked to
            continue
        if (module, room) in LAZY:
            assert lazy, f"{module} imports {imported}: only within a function, where it is needed"
        else:
            lower = room != "baselines" and FLOORS.index(room) < FLOORS.index(own)
            assert lower, f"{module} must not import {imported}"


def test_imports_make_no_circle():
    done, path = set(), []

    def visit(module):
        assert module not in path, f"a circle of imports: {' -> '.join([*path[path.index(module):], module])}"
        if module not in done:
            path.append(module)
            for imported, lazy in GRAPH[module]:
                if not lazy and imported:
                    visit(imported)
            done.add(path.pop())

    for module in MODULES:
        visit(module)
