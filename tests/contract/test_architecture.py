"""The architecture: rooms stand on floors and import downwards only, frameworks are imported in few places.

``python -m tests.contract.test_architecture`` prints the graph of imports in numbers.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "conversion_ext"
README = (ROOT / "README.md").read_text(encoding="utf-8")

# From the ground up: a room imports only rooms of lower floors.
FLOORS = (
    ("errors", "exact", "tables"),
    ("types", "registry"),
    ("neurons", "graph", "encoders"),
    ("nn", "backends", "data"),
    ("operators", "readouts"),
    ("calibration", "capture", "network"),
    ("normalizers", "tuners"),
    ("recipes",),
    ("simulation", "conversion"),
    ("plots",),
    ("analysis",),
    ("training",),
    ("integer", "demo"),
    (
        "exchange",
        "neurobench",
    ),
    ("spikingjelly", "__main__", "__init__"),
)
# The root itself is what a user imports: the demonstration, commands and SpikingJelly's recipes are users.
USERS = ("demo", "__main__", "spikingjelly")
FRAMEWORKS = ("spikingjelly", "snntorch")
FRAMEWORK_ROOMS = ("backends", "spikingjelly", "demo")
# Private names of other packages, each with the reason why no public one does it.
PRIVATE: dict[str, str] = {}
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(module: str) -> Iterator[str]:
    """Every module or name that ``module`` imports, with its package; those for type checkers count too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def rooms_imported(module: str) -> set[str]:
    names = [name for name in imports(module) if name.split(".")[0] == "conversion_ext"]
    parts = [name.split(".")[1] if "." in name else "__init__" for name in names]
    return {part if part in FLOOR else "__init__" for part in parts} - {room_of(module)}


def test_every_room_has_a_floor_and_every_floor_is_inhabited() -> None:
    assert {room_of(module) for module in MODULES} == set(FLOOR)
    assert len([*PACKAGE.glob("*.py"), *(d for d in PACKAGE.iterdir() if (d / "__init__.py").exists())]) <= 31


@pytest.mark.parametrize("module", MODULES)
def test_imports_lead_down(module: str) -> None:
    room = room_of(module)
    above = {other for other in rooms_imported(module) if FLOOR[other] >= FLOOR[room]}
    assert not above or (room in USERS and above == {"__init__"}), f"{module} imports upwards: {above}"


@pytest.mark.parametrize("module", MODULES)
def test_frameworks_are_imported_in_few_places(module: str) -> None:
    found = {name for name in imports(module) if name.split(".")[0] in FRAMEWORKS}
    assert not found or room_of(module) in FRAMEWORK_ROOMS, f"{module} imports {found}"


@pytest.mark.parametrize("module", MODULES)
def test_private_names_of_others_have_a_reason(module: str) -> None:
    others = [name for name in imports(module) if name.split(".")[0] not in ("conversion_ext", "__future__")]
    others = [name for name in others if name.split(".")[0] not in sys.stdlib_module_names]
    private = {name for name in others if any(part.startswith("_") for part in name.split("."))}
    assert all(any(name.startswith(allowed) for allowed in PRIVATE) for name in private), f"{module}: {private}"


@pytest.mark.parametrize("room", sorted(FLOOR.keys() - {"__init__"}))
def test_the_map_of_the_readme_names_every_room(room: str) -> None:
    map_of_rooms = README.partition("## Design")[2]
    assert f"`{room}/`" in map_of_rooms or f"`{room}.py`" in map_of_rooms or f"`{room}`" in map_of_rooms


@pytest.mark.parametrize("package", sorted(m for m in MODULES if m.endswith("__init__")))
def test_no_package_hides_a_module_behind_a_name(package: str) -> None:
    """A package that exports a function under the name of one of its modules hides the module from users and mocks."""
    modules = {module.removesuffix(".__init__") for module in MODULES}
    parent = package.removesuffix(".__init__")
    for imported in imports(package):
        exported = f"{parent}.{imported.rpartition('.')[2]}"
        assert exported not in modules - {imported}, f"{exported} is a module and what {package} exports"


def main() -> None:
    """Print how many rooms import how many others, and how many of these lie above; none above means no circle."""
    arrows = {(room_of(module), other) for module in MODULES for other in rooms_imported(module)}
    upward = [(room, other) for room, other in arrows if FLOOR[other] >= FLOOR[room] and room not in USERS]
    print(f"{len(FLOOR)} rooms and files on {len(FLOORS)} floors, {len(MODULES)} modules")
    print(f"{len(arrows)} imports between rooms, {len(upward)} of them upwards {sorted(upward) or ''}")


if __name__ == "__main__":
    main()
