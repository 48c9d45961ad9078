"""Rooms import one way: kernels -> models -> tasks, data -> training -> experiments -> analysis ->
reports -> command line. `kernels`, `stability` and `analysis` are useful alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = {"errors", "files"}
# What each room may import of the suite, itself aside.
ALLOWED = {
    "kernels": {"errors"},
    "stability": BASE,
    "analysis": BASE | {"ablations"},
    "grid": {"errors", "kernels"},
    "models": BASE | {"kernels", "grid"},
    "data": BASE,
    "tasks": BASE | {"kernels", "grid", "models", "data"},
    "training": BASE | {"kernels", "grid", "models", "data", "tasks", "stability"},
}
ALLOWED["experiments"] = ALLOWED["training"] | {"training", "ablations"}
ALLOWED["profiling"] = ALLOWED["experiments"] | {"experiments"}
ALLOWED["reports"] = ALLOWED["experiments"] | {"experiments", "analysis", "profiling"}
CLI = "fastvim_cli"
# These need no torch, so that a file is checked, and `fastvim list` runs, at once.
WITHOUT_TORCH = ("analysis", "stability", "experiments")
# The parts of rooms with torch that promise to do without.
TORCH_FREE_FILES = (
    "fastvim/models/__init__.py",
    "fastvim/models/config.py",
    "fastvim/models/presets.py",
    "fastvim/data/__init__.py",
    "fastvim/data/config.py",
    "fastvim/data/locate.py",
    "fastvim/tasks/__init__.py",
    "fastvim/training/__init__.py",
    "fastvim/training/recipe.py",
    "fastvim/training/recorded.py",
)


def files_of(room: str) -> list[Path]:
    if room == "kernels":
        return sorted((ROOT / "kernels").rglob("*.py"))
    if room == CLI:
        return sorted((ROOT / CLI).rglob("*.py"))
    folder = ROOT / "fastvim" / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported(file: Path, everywhere: bool = True) -> set[str]:
    """Modules that a file imports: anywhere in it, or only when it is itself imported."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = _walk(tree) if everywhere else _executed(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; name the whole path"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _walk(node):
    """Every statement, but for what only type checkers see."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from _walk(child)


def _executed(body):
    """Statements that run on import: not those in functions, nor for type checkers alone."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for part in ("body", "orelse", "finalbody"):
            yield from _executed(getattr(node, part, []))


def rooms_imported(file: Path) -> set[str]:
    names = imported(file)
    assert not any(name == CLI or name.startswith(f"{CLI}.") for name in names), file
    return {name.split(".")[1] for name in names if name.startswith("fastvim.")}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_room_imports_only_what_comes_before(room):
    for file in files_of(room):
        if not file.exists():
            continue
        extra = rooms_imported(file) - ALLOWED[room] - {room, "__version__"}
        assert not extra, f"{file.relative_to(ROOT)} imports {', '.join(sorted(extra))}"


def test_every_room_is_held():
    rooms = {p.name for p in (ROOT / "fastvim").iterdir() if (p / "__init__.py").exists()}
    assert rooms <= set(ALLOWED), f"say what {rooms - set(ALLOWED)} may import"


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_no_torch_on_import(room):
    for file in files_of(room):
        heavy = {name.split(".")[0] for name in imported(file, everywhere=False)}
        assert not heavy & {"torch", "timm", "torchvision"}, file


@pytest.mark.parametrize("name", TORCH_FREE_FILES)
def test_promised_to_do_without_torch(name):
    heavy = {module.split(".")[0] for module in imported(ROOT / name, everywhere=False)}
    assert not heavy & {"torch", "timm", "torchvision"}


def test_root_command_imports_only_click():
    for name in ("main", "options"):
        names = imported(ROOT / CLI / f"{name}.py", everywhere=False)
        outside = {module.split(".")[0] for module in names}
        assert outside <= {"click", "errno", "importlib", "collections", "pathlib"}, outside


def test_the_check_sees_a_forbidden_import(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from fastvim.reports.gather import gather\n")
    assert rooms_imported(file) == {"reports"}
    file.write_text("import torch\ndef f():\n    import timm\n")
    assert imported(file, everywhere=False) == {"torch"}
