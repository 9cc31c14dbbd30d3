"""How the package is put together: imports point down, and never in a circle."""

import ast
import graphlib
from pathlib import Path

import pytest

import autotune

PACKAGE = Path(autotune.__file__).parent
# From the ground up. What is not in a folder is a value, or one of the doors that follow.
FOLDERS = (
    "values",
    "system",
    "ipc",
    "instrument",
    "integrations",
    "patch",
    "trials",
    "study",
    "optimizer",
    "analysis",
    "tuning",
    "report",
    "fleet",
)
# These may import from any folder: the public calls, the settings file, the command line, and what
# looks at a study.
DOORS = (
    *("autotune", "autotune.__main__", "autotune.api", "autotune.best_config", "autotune.cli"),
    *("autotune.cli_definition", "autotune.cli_settings", "autotune.cli_studies"),
    "autotune.inspection",
)


def modules():
    return {
        ".".join(("autotune", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in PACKAGE.rglob("*.py")
    }


def imports_of(path, known, *, at_import_only):
    """Modules of autotune that a file imports; on request only those that it needs at import."""
    found = set()
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_import_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name in known} or {node.module}
    return found & known


def folder_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or module.removeprefix("autotune.") in FOLDERS else "values"


def test_imports_point_down():
    known = modules()
    wrong = [
        f"{module} imports {other}"
        for module, path in known.items()
        if module not in DOORS
        for other in imports_of(path, known.keys(), at_import_only=False) - set(DOORS)
        if FOLDERS.index(folder_of(other)) > FOLDERS.index(folder_of(module))
    ]
    assert wrong == []


def test_no_imports_go_in_a_circle():
    known = modules()
    graph = {
        module: imports_of(path, known.keys(), at_import_only=True) - {module}
        for module, path in known.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("folder", FOLDERS[1:])
def test_every_folder_says_what_lives_there(folder):
    assert ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text()))
