"""The packages are floors of one house: a module imports what lies on its own floor or below, and nothing imports in a circle."""

import ast
from pathlib import Path

import turboquant_native

ROOT = Path(turboquant_native.__file__).parent
# From the ground up. What stands above everything: the package's own names and import paths kept for programs and pickles.
FLOORS = ("_core", "common", "engine", "convert", "evaluate", "calibrate", "train", "api", "compat", "server", "commands")


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; a package is its __init__."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """The package's own modules that a module imports anywhere: at its top, in functions, under TYPE_CHECKING."""
    path, found = MODULES[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("turboquant_native.")}
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            parts = package.split(".") if package else []
            base = ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))
        elif (node.module or "").startswith("turboquant_native"):
            base = (node.module or "").partition(".")[2]
        else:
            continue
        for alias in node.names:
            full = f"{base}.{alias.name}".strip(".")
            found.add(full if full in MODULES or full == "_core" else base)
    return {target for target in found if target} - {name}


def floor(name: str) -> int:
    room = name.partition(".")[0]
    return FLOORS.index(room) if room in FLOORS else len(FLOORS)


def test_the_walk_sees_imports():
    assert "engine.sampling" in imports("engine.generation")
    assert "calibrate.request" in imports("calibrate.widths")
    assert len(MODULES) > 60


def test_no_module_imports_upward():
    upward = [f"{name} -> {target}" for name in MODULES for target in imports(name) if floor(target) > floor(name)]
    assert upward == []


def test_nothing_imports_in_a_circle():
    graph = {name: imports(name) for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in graph.get(name, ()):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_every_module_has_a_room():
    kept = {"", "__main__", "llama", "cache", "grammar", "sampling", "speculative"}
    assert {name for name in MODULES if floor(name) == len(FLOORS)} <= kept


def test_torch_is_imported_by_the_training_room_alone():
    """Elsewhere by name only, where a user asked for it: an installation without the extra runs."""
    importers = {
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and any(alias.name.partition(".")[0] == "torch" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] == "torch")
    }
    assert importers and all(name.startswith("train.") for name in importers)


def test_nothing_imports_the_training_room_at_its_top():
    for name, path in MODULES.items():
        if not name.startswith("train") and name:
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ImportFrom) and node.level:
                    base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], node.module or ""])
                    assert not f"{base}.".startswith("train."), name
