"""The house: an import never goes up, no two rooms import one another, no module is too long."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up; rooms of one storey stand beside each other.
STOREYS: tuple[tuple[str, ...], ...] = (
    ("_version", "errors"),
    ("files",),
    ("layout",),
    ("fitting",),
    ("graph",),
    ("data",),
    ("runtime",),
    ("report",),
    ("sites",),
    ("passes", "calibration", "evaluation"),
    ("planning", "torch_bridge"),
    ("lowering",),
    ("compression",),
    ("cli",),
    ("__init__", "__main__"),
)
STOREY = {room: height for height, rooms in enumerate(STOREYS) for room in rooms}
FREE_OF_RUNTIMES = ("layout", "fitting", "report", "graph/cost.py")


def modules() -> list[Path]:
    return sorted([*(ROOT / "onnx_igpc").rglob("*.py"), *(ROOT / "passes").rglob("*.py")])


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "passes" if parts[0] == "passes" else parts[1].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names of everything that a module imports, wherever it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_imported(path: Path) -> set[str]:
    """The rooms whose names a module imports, its own left out."""
    rooms = set()
    for name in imports(path):
        first, _, rest = name.partition(".")
        if first == "onnx_igpc":
            inner = rest.split(".")[0]
            rooms.add(
                "_version" if inner == "__version__" else inner if inner in STOREY else "__init__"
            )
    return rooms - {room_of(path)}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_an_import_never_goes_up(path: Path) -> None:
    own = STOREY[room_of(path)]
    up = {room for room in rooms_imported(path) if STOREY[room] > own}
    assert not up, f"{path.relative_to(ROOT)} imports from above: {', '.join(sorted(up))}"


def test_no_rooms_import_one_another() -> None:
    edges: dict[str, set[str]] = {}
    for path in modules():
        edges.setdefault(room_of(path), set()).update(rooms_imported(path))
    # What only imports what is gone already goes next; a circle never goes.
    while free := {room for room, to in edges.items() if not to & edges.keys()}:
        edges = {room: to for room, to in edges.items() if room not in free}
    assert not edges, f"rooms that import one another: {', '.join(sorted(edges))}"


def test_fitting_and_graph_do_not_know_each_other() -> None:
    for path in modules():
        if room_of(path) in ("fitting", "graph"):
            assert not rooms_imported(path) & {"fitting", "graph"}, path


def test_what_needs_no_runtime_knows_none() -> None:
    for path in modules():
        inner = (
            str(path.relative_to(ROOT / "onnx_igpc"))
            if path.is_relative_to(ROOT / "onnx_igpc")
            else ""
        )
        if inner.startswith(FREE_OF_RUNTIMES):
            heavy = {name.partition(".")[0] for name in imports(path)} & {
                "click",
                "torch",
                "onnxruntime",
            }
            assert not heavy, f"{inner} imports {', '.join(sorted(heavy))}"


def test_no_module_is_over_400_lines() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): path.read_bytes().count(b"\n")
        for path in [*modules(), *(ROOT / "tests").rglob("*.py")]
    }
    assert len(lengths) > 400, "these are not all modules"
    too_long = {path: length for path, length in lengths.items() if length > 400}
    assert not too_long, f"split by subject: {too_long}"
