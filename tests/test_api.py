"""The public names, the layering, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import aiocp

PACKAGE = Path(aiocp.__file__).parent

# DESIGN: a module imports only from below itself
LAYERS = [
    {"__main__"},
    {"cli"},
    {"command", "usage"},
    {"dask_client", "report", "request", "said"},
    {"dry_run"},
    {"heat_map", "json_lines", "options", "operands"},
    {"arguments", "parents", "progress", "receipt", "summary"},
    {"meter"},
    {"__init__"},
    {"shutil"},
    {"aio", "many"},
    {"tree_loop"},
    {"copier", "probe", "tree_copier"},
    {"dry_tree", "file_copier", "spread_tree"},
    {"ahead", "backlog", "ranges"},
    {"crew"},
    {"worker"},
    {"lease", "part_tree", "range_copy"},
    {"share", "tree_copy"},
    {"tree_files"},
    {"opening", "placing", "tree_links", "tree_progress"},
    {"budget", "foresee", "tree_file", "tree_node", "tree_targets"},
    {"count", "target", "tree_options", "tree_outcomes"},
    {"ground", "link", "small"},
    {"asked", "batch", "transfer"},
    {"reflink", "verify"},
    {"checksum", "reading"},
    {"destination", "nodes"},
    {"backup", "partial", "place"},
    {"journal", "source", "metadata", "context", "tree", "extents", "host"},
    {"engine", "direct", "stream", "existing", "mount", "outcome", "plan", "page_cache"},
    {"exit_status", "listing", "result", "quoting", "sweep"},
    {"pace", "priority"},
    {"errors", "hard_links", "libaio", "linux", "selection", "slots", "stage"},
    {"_batch", "_libaio", "_linux"},
]


def test_public_names() -> None:
    """What `from aiocp import ...` gives is a promise; a change of it is a decision."""
    results = ["CopyResult", "Outcome", "TreeResult"]
    errors = ["Cancelled", "ExecutorFailed", "SourceChanged", "VerificationFailed"]
    names = ["Copier", "copy_file", "copy_tree"]
    assert sorted(results + errors + names) == sorted(aiocp.__all__)
    assert all(hasattr(aiocp, name) for name in aiocp.__all__)


def test_public_names_are_documented() -> None:
    assert all(getattr(aiocp, name).__doc__ for name in aiocp.__all__)


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.glob("*.py") if not path.name.endswith("_build.py"))


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "aiocp":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aiocp."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if "aiocp." in name.name}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_a_module_imports_only_from_below(path: Path) -> None:
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    above = {name for name in imports_of(path) if layer[name] <= layer[path.stem]}
    assert not above


def test_the_engine_imports_nothing_of_the_package() -> None:
    assert imports_of(PACKAGE / "engine.py") == set()


@pytest.mark.parametrize(
    ("extension", "users"),
    [("_batch", ["batch"]), ("_libaio", ["libaio", "slots"]), ("_linux", ["linux"])],
)
def test_only_the_bindings_touch_the_extensions(extension: str, users: list[str]) -> None:
    assert users == [path.stem for path in modules() if extension in imports_of(path)]


def test_import_loads_neither_typer_nor_tqdm() -> None:
    """A library user does not pay for the command line."""
    code = (
        "import sys, aiocp; print(*sorted({'typer', 'click', 'rich', 'tqdm', 'shutil',"
        " 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_only_the_command_line_prints() -> None:
    printing = [
        path.stem
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and node.id == "print"
    ]
    assert set(printing) <= {"cli", "command", "report", "said"}


def test_copying_a_file_loads_nothing_for_trees() -> None:
    """It is a tenth of the time that the command takes to start."""
    code = (
        "import sys, aiocp.cli, aiocp.command;"
        " print([name for name in sys.modules if name.endswith(%r)])"
    )
    for module in (
        "typer",
        "pathlib",
        "aiocp.tree_copier",
        "aiocp.tree",
        "pathspec",
        "aiocp.nodes",
        "aiocp.probe",
        "aiocp.checksum",
        "aiocp.receipt",
        "hashlib",
    ):
        assert subprocess.check_output([sys.executable, "-c", code % module]) == b"[]\n"
    with pytest.raises(AttributeError, match="nothing"):
        getattr(aiocp, "nothing")  # noqa: B009 - mypy knows that there is none
