"""The lines of CONTRIBUTING.md that say which room imports which, against what modules import."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

ROOMS = {"_unroll": "unroll"}  # a package that belongs to a module
PACKAGES = {"mim4dd": ROOT / "mim4dd", "mim4dd.kernels": ROOT / "kernels"}


def levels(first: str = "cli") -> dict[str, int]:
    """How far left each room stands, in the line that begins with a room."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^`({first}[,\s].*?)`\.$", text, re.MULTILINE | re.DOTALL)
    line = " ".join(line.split())
    return {
        room: -place for place, rooms in enumerate(line.split(" → ")) for room in rooms.split(", ")
    }


def modules() -> dict[str, Path]:
    """Every module but the package's own face, which shows all rooms."""
    found = {
        ".".join((name, *path.relative_to(folder).with_suffix("").parts)): path
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*.py")
    }
    return {name: path for name, path in found.items() if room_of(name)[:2] != "__"}


def room_of(module: str) -> str:
    """The part of mim4dd that a module belongs to."""
    room = module.split(".")[1]
    return ROOMS.get(room, room)


def imported(path: Path) -> Iterator[str]:
    """Every module of mim4dd that a file imports, within functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name.startswith("mim4dd."))
        elif isinstance(node, ast.ImportFrom) and node.module == "mim4dd":
            yield from (f"mim4dd.{each.name}" for each in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mim4dd."):
            yield str(node.module)


MODULES = modules()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_one_way(name):
    level, room = levels(), room_of(name)
    for module in imported(MODULES[name]):
        other = room_of(module)
        private = other not in level and other.startswith("_")
        if private or other in {room, "doctor"}:
            continue
        assert room in level, f"{name} serves every room, and imports {module}"
        assert level[other] < level[room], f"{name} imports {module}"


def room_of_distill(module: str) -> str | None:
    """The part of mim4dd.distill that a module belongs to; None for its face and other modules."""
    parts = module.split(".")
    if parts[:2] != ["mim4dd", "distill"] or parts[2:] in ([], ["__init__"]):
        return None
    return "readers" if parts[2:4] == ["data", "readers"] else parts[2]


@pytest.mark.parametrize("name", sorted(filter(room_of_distill, MODULES)))
def test_imports_of_the_distillation_half_point_one_way(name):
    level, room = levels("face"), room_of_distill(name)
    assert room in level, f"{name} is in no room that CONTRIBUTING.md names"
    if name == "mim4dd.distill.data.__init__":  # the face of both rooms
        return
    for module in imported(MODULES[name]):
        other = room_of_distill(module)
        if other not in {room, None}:
            assert level[other] < level[room], f"{name} imports {module}"


def test_every_room_is_named():
    assert set(filter(None, map(room_of_distill, MODULES))) == set(levels("face"))

    rooms = {room_of(name) for name in modules()} - {
        "doctor"
    }  # it looks at the package from outside
    assert {room for room in rooms if room[0] != "_"} == set(levels())


PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ARROWS, FLOORS = re.findall(r"^```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_diagram_has_the_arrows_of_the_code():
    found = {room: set() for room in levels()}
    for name, path in MODULES.items():
        if (room := room_of(name)) in found:
            found[room] |= {room_of(module) for module in imported(path)} & found.keys() - {room}
    drawn = {}
    for line in ARROWS.splitlines():
        room, rooms = line.split("──>")
        drawn[room.strip()] = set(rooms.strip().split(", ")) - {"nothing"}
    assert drawn == found
    for place, (room, rooms) in enumerate(drawn.items()):
        assert rooms <= set(list(drawn)[place:]), f"{room} stands below what it imports"


def test_the_floors_are_those_of_the_line():
    drawn = [re.split(r"\s{3}", re.split(r"\s{4,}", line)[0]) for line in FLOORS.splitlines()]
    level = levels("face")
    by_floor = {}
    for room, place in level.items():
        by_floor.setdefault(place, set()).add(room)
    assert [set(rooms) for rooms in drawn] == [by_floor[place] for place in sorted(by_floor)[::-1]]
