"""Each room of the package imports only itself and the rooms before it; no module is long."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "newsrec"
ROOMS = [
    "", "data", "simulation", "model", "training", "evaluation", "report", "serving", "export",
    "api", "tuning", "commands",
]  # fmt: skip
OVER_ALL = ("__init__.py", "__main__.py")
"""Files of the package itself that import from all rooms."""
WITHOUT = {"model": {"pandas"}, "serving": {"torch", "lightning", "transformers"}}


def imports_of(path):
    """Return all that a file imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_module_is_longer_than_320_lines():
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in PACKAGE.glob("**/*.py")}
    assert not {path: length for path, length in lengths.items() if length > 320}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_before_it(room):
    forbidden = {f"newsrec.{later}" for later in ROOMS[ROOMS.index(room) + 1 :]}
    forbidden |= WITHOUT.get(room, set())
    forbidden |= set() if room == "commands" else {"argparse", "jsonargparse"}
    files = [*(PACKAGE / room).glob("**/*.py" if room else "*.py")]
    assert files
    assert not [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in files
        if room or path.name not in OVER_ALL
        for name in imports_of(path)
        if {name.split(".")[0], ".".join(name.split(".")[:2])} & forbidden
    ]
