"""The rooms of `research/` form floors: no module imports one of a floor above, and none a circle.

Imports inside functions and for type checking count too.
"""

import ast
import functools
import runpy
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# from the ground to the roof; rooms of one floor may import each other, but not in a circle
PICTURE = runpy.run_path(str(ROOT / "docs/images/floors.py"))["FLOORS"]
FLOORS = tuple(rooms for _, rooms in reversed(PICTURE))
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# (module, imported module) -> why it may look up
UPWARD: dict[tuple[str, str], str] = {}


def modules() -> dict[str, Path]:
    """Name -> file of every module of research/."""
    names = {}
    for path in sorted((ROOT / "research").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported_names(path: Path, module: str) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def imports() -> dict[str, set[str]]:
    """Module -> modules of research/ that it imports."""
    known = modules()
    edges: dict[str, set[str]] = {}
    for module, path in known.items():
        edges[module] = set()
        for name in imported_names(path, module):
            # `from research.a import b` is of the module research.a.b, or of a name in research.a
            target = name if name in known else name.rpartition(".")[0]
            if target in known and target not in (module, "research"):
                edges[module].add(target)
    return edges


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_floor():
    assert {room(module) for module in modules() if module != "research"} == set(FLOOR_OF)


def test_no_module_imports_from_a_floor_above():
    upward = {
        (module, target)
        for module, targets in imports().items()
        for target in targets
        if module != "research" and FLOOR_OF[room(target)] > FLOOR_OF[room(module)]
    }
    assert upward == set(UPWARD)


def find_circle(edges: dict[str, set[str]]) -> list[str]:
    """What lies on a circle or leads to one, after all that imports nothing of it is taken away."""
    while leaves := {name for name, targets in edges.items() if not targets & edges.keys()}:
        edges = {name: targets for name, targets in edges.items() if name not in leaves}
    return sorted(edges)


def test_there_is_no_circle_of_modules():
    # a package imports its parts: that is how it offers them
    assert not find_circle(
        {
            module: {target for target in targets if not target.startswith(f"{module}.")}
            for module, targets in imports().items()
        }
    )


def test_there_is_no_circle_of_rooms():
    rooms: dict[str, set[str]] = {name: set() for name in FLOOR_OF}
    for module, targets in imports().items():
        if module != "research":
            rooms[room(module)] |= {room(target) for target in targets} - {room(module)}
    assert not find_circle(rooms)
