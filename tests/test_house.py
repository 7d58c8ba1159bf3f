"""The rules of the house, held by reading the source: which room may import which, and where chance may come from."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "daybreak"
MAY_IMPORT = {  # room: rooms it knows; files at the top (config, errors, signals) are for all
    "data": set(), "nn": {"data"}, "methods": {"data", "nn"}, "train": {"data", "nn", "methods"},
    "evaluate": {"data", "nn", "train"}, "explain": {"data", "nn", "evaluate"}, "export": {"data", "nn"},
    "report": {"data", "nn", "evaluate", "explain"},
}
TOP = {"config", "errors", "signals", "__version__"}


def imports(path: Path) -> set[str]:
    """First names below ``daybreak`` of what a file imports."""
    found = set()
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level:
                parts = [*package[: len(package) - node.level + 1], *parts]
                found |= {parts[0]} if parts else {a.name for a in node.names}
            elif parts[0] == "daybreak":
                found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("daybreak.")}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    room = path.relative_to(ROOT).parts[0]
    wrong = imports(path) - MAY_IMPORT[room] - TOP - {room}
    assert not wrong, f"{path.name} of {room} imports {wrong}"


@pytest.mark.parametrize("room", ["data", "nn", "methods"])
def test_chance_comes_from_the_counter_alone(room):
    """Dropout and drop path apart, nothing here draws from a generator with a state; weights start from torch's."""
    stateful = r"torch\.(rand|randn|randint|randperm|bernoulli|multinomial)|np\.random|^import random|^from random"
    forbidden = re.compile(stateful, re.M)
    for path in (ROOT / room).glob("*.py"):
        assert not forbidden.search(path.read_text()), path


def test_no_method_inherits_from_a_method_or_imports_one():
    for path in (ROOT / "methods").glob("*.py"):
        source = ast.parse(path.read_text())
        for node in ast.walk(source):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                assert node.module == "base", f"{path.name} imports {node.module}"


def test_rooms_stay_small():
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long
