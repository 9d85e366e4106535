"""Layers of the package: imports go downwards and in no circle, folders stay small, some things are nowhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "expunge"
#: From the top layer to the bottom; packages of one layer do not import each other.
LAYERS = (
    ("cli",),
    ("api",),
    ("workflow",),
    ("report",),
    ("experiments",),
    ("evidence",),
    ("evaluation",),
    ("methods",),
    ("patches",),
    ("sparsity",),
    ("bridges",),
    ("training",),
    ("models",),
    ("data",),
    ("core",),
)
LAYER = {package: len(LAYERS) - level for level, packages in enumerate(LAYERS) for package in packages}
FABRIC = Path("training/runtime.py")
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "_pickle"}
#: What sends objects to the processes that this one starts, through pipes; it opens no file of a user.
BETWEEN_PROCESSES = Path("training/processes/sending.py")
LONGEST = 400
MOST_FILES = 12
#: Folders of like entries of one registry: a new entry is a new file.
REGISTRIES = ("methods", "evaluation/scores", "models/architectures", "data/sources", "experiments/stages")


def imported(tree: ast.AST, module: list[str], is_package: bool) -> list[tuple[int, str]]:
    """Line and absolute name of everything that a file imports, inside functions too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module if is_package else module[:-1]
            base = base[: len(base) - (node.level - 1)] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{stem}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant):
                found.append((node.lineno, str(first.value)))
    return found


def unsafe_calls(tree: ast.AST) -> list[tuple[int, str]]:
    """Calls that could run code from a file: torch.load without weights_only=True, arrays of objects."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {k.arg: k.value for k in node.keywords}
        if name == "torch.load" and not (
            isinstance(given.get("weights_only"), ast.Constant) and given["weights_only"].value is True
        ):
            found.append((node.lineno, "torch.load without weights_only=True"))
        allow = given.get("allow_pickle")
        if allow is not None and not (isinstance(allow, ast.Constant) and allow.value is False):
            found.append((node.lineno, "allow_pickle"))
        if name in ("torch.save", "joblib.load", "joblib.dump", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load"):
            found.append((node.lineno, name))
    return found


def lengths(root: Path) -> list[str]:
    """Files that are too long."""
    counts = {path: path.read_text(encoding="utf-8").count("\n") for path in sorted(root.rglob("*.py"))}
    return [f"{path.relative_to(root)}: {n} lines, more than {LONGEST}" for path, n in counts.items() if n > LONGEST]


def crowded(root: Path) -> list[str]:
    """Folders with too many files."""
    found = []
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        name = folder.relative_to(root).as_posix()
        files = len(list(folder.glob("*.py")))
        if files > MOST_FILES and name not in REGISTRIES:
            found.append(f"{name}: {files} files, more than {MOST_FILES}")
    return found


def modules(root: Path, top: str = "expunge") -> dict[str, set[str]]:
    """Every module under `root` and the modules of the package that it imports, by dotted name.

    A name taken from a package counts as an import of the package, unless it is a module of its own.
    """
    names = {}
    for path in root.rglob("*.py"):
        parts = [top, *path.relative_to(root).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        names[".".join(parts[:-1] if is_package else parts)] = (path, is_package)
    edges = {}
    for name, (path, is_package) in names.items():
        found = set()
        for _, target in imported(ast.parse(path.read_text(encoding="utf-8")), name.split("."), is_package):
            parts = target.split(".")
            while parts and ".".join(parts) not in names:
                parts.pop()
            found.add(".".join(parts))
        edges[name] = found - {name, ""}
    return edges


def loops(edges: dict[str, set[str]]) -> list[list[str]]:
    """Sets of nodes that reach each other: the strongly connected components of more than one node."""
    reach = {node: set(targets) for node, targets in edges.items()}
    for middle in edges:
        for node in edges:
            if middle in reach[node]:
                reach[node] |= reach[middle]
    found = {tuple(sorted(n for n in edges if n in reach[node] and node in reach[n])) for node in edges}
    return sorted(list(group) for group in found if len(group) > 1)


def circles(root: Path, top: str = "expunge") -> list[str]:
    """Circles between modules, and between the entries (files and folders) of every folder."""
    edges = modules(root, top)
    found = [f"circle of modules: {', '.join(group)}" for group in loops(edges)]
    folders = {name for name in edges if any(other.startswith(f"{name}.") for other in edges)}
    for folder in sorted(folders):
        depth = folder.count(".") + 2

        def entry(name: str, folder: str = folder, depth: int = depth) -> str | None:
            return ".".join(name.split(".")[:depth]) if name.startswith(f"{folder}.") else None

        inside: dict[str, set[str]] = {}
        for name, targets in edges.items():
            if (mine := entry(name)) is not None:
                inside.setdefault(mine, set()).update(t for t in map(entry, targets) if t is not None and t != mine)
        found += [f"circle in {folder}: {', '.join(group)}" for group in loops(inside)]
    return found


def faults(root: Path) -> list[str]:
    """Every breach of the rules under `root`, the package directory."""
    out = crowded(root) + circles(root)
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        module = ["expunge", *inside.with_suffix("").parts]
        is_package = module[-1] == "__init__"
        module = module[:-1] if is_package else module
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > LONGEST:
            out.append(f"{inside}: {lines} lines, more than {LONGEST}")
        tree = ast.parse(text)
        out += [f"{inside}:{line}: {what}" for line, what in unsafe_calls(tree)]
        package = module[1] if len(module) > 1 else ""
        if package and package not in LAYER and package != "__main__":
            out.append(f"{inside}: no package is called {package}")
            continue
        for line, name in imported(tree, module, is_package):
            parts = name.split(".")
            if parts[0] in UNSAFE and inside != BETWEEN_PROCESSES:
                out.append(f"{inside}:{line}: imports {parts[0]}")
            is_bridge = parts[0] == "lightning" and package == "bridges"  # to Lightning's own Trainer
            if (
                parts[0] in ("lightning_fabric", "lightning", "pytorch_lightning")
                and inside != FABRIC
                and not is_bridge
            ):
                out.append(f"{inside}:{line}: only {FABRIC} imports {parts[0]}")
            other = parts[1] if parts[0] == "expunge" and len(parts) > 1 else ""
            if package in LAYER and other in LAYER and other != package and LAYER[other] >= LAYER[package]:
                out.append(f"{inside}:{line}: {package} imports {other}, which is not below it")
    return out


CHECKER = Path(__file__).parents[1] / "checker" / "src" / "expunge_check"
TESTS = Path(__file__).parents[1] / "tests"


def test_the_checker_has_no_circle_and_no_crowded_folder() -> None:
    assert crowded(CHECKER) + circles(CHECKER, "expunge_check") + lengths(CHECKER) == []


@pytest.mark.parametrize("root", [TESTS, TESTS.parent / "checker" / "tests"], ids=["tests", "checker"])
def test_folders_and_files_of_tests_are_small(root: Path) -> None:
    assert crowded(root) + lengths(root) == []


def test_the_package_keeps_its_rules() -> None:
    assert faults(SOURCE) == []


def test_the_whole_package_is_read() -> None:
    assert len(list(SOURCE.rglob("*.py"))) > 30
    upward = [
        name
        for path in SOURCE.rglob("*.py")
        for _, name in imported(
            ast.parse(path.read_text()), ["expunge", *path.relative_to(SOURCE).parts[:-1], "x"], False
        )
        if name.startswith("expunge.")
    ]
    assert len(upward) > 50, "imports between packages are not seen"


BAD = {
    "core/up.py": ("from expunge.data.records import Records\n", "core imports data"),
    "core/relative.py": ("from ..training import fit\n", "core imports training"),
    "data/module.py": ("import expunge.methods.base\n", "data imports methods"),
    "data/package.py": ("from expunge import models\n", "data imports models"),
    "models/late.py": (
        "def f():\n    from expunge.training import train\n    return train\n",
        "models imports training",
    ),
    "models/__init__.py": ("from ..sparsity import prune\n", "models imports sparsity"),
    "patches/upward.py": ("from expunge.methods import cut\n", "patches imports methods"),
    "evaluation/dynamic.py": ("import importlib\nimportlib.import_module('expunge.cli')\n", "evaluation imports cli"),
    "training/fast.py": ("from lightning_fabric import Fabric\n", "only training/runtime.py"),
    "core/jar.py": ("import pickle\n", "imports pickle"),
    "data/read.py": ("import torch\ntorch.load('x')\n", "torch.load without"),
    "data/read2.py": ("import torch\ntorch.load('x', weights_only=False)\n", "torch.load without"),
    "data/read3.py": ("import numpy as np\nnp.load('x', allow_pickle=True)\n", "allow_pickle"),
    "core/long.py": ("x = 1\n" * (LONGEST + 1), "lines, more than"),
    "nowhere/x.py": ("x = 1\n", "no package is called nowhere"),
}


def test_circles_are_found(tmp_path: Path) -> None:
    (tmp_path / "data" / "sources").mkdir(parents=True)
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "a.py").write_text("from .b import x\n")
    (tmp_path / "core" / "b.py").write_text("def f():\n    from expunge.core.a import x\n")
    (tmp_path / "core" / "c.py").write_text("from expunge.core import a, b\n")
    (tmp_path / "data" / "__init__.py").write_text("")
    (tmp_path / "data" / "table.py").write_text("from .sources.one import x\n")
    (tmp_path / "data" / "sources" / "__init__.py").write_text("")
    (tmp_path / "data" / "sources" / "one.py").write_text("y = 1\n")
    (tmp_path / "data" / "sources" / "two.py").write_text("from expunge.data.table import x\n")
    assert faults(tmp_path) == [
        "circle of modules: expunge.core.a, expunge.core.b",
        "circle in expunge.data: expunge.data.sources, expunge.data.table",
    ]


def test_crowded_folders_are_found(tmp_path: Path) -> None:
    for folder in ("core", "methods"):
        (tmp_path / folder).mkdir()
        for number in range(MOST_FILES + 1):
            (tmp_path / folder / f"m{number}.py").write_text("")
    assert faults(tmp_path) == [f"core: {MOST_FILES + 1} files, more than {MOST_FILES}"]


@pytest.mark.parametrize("place", BAD)
def test_a_breach_is_found(tmp_path: Path, place: str) -> None:
    text, expected = BAD[place]
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(text)
    found = faults(tmp_path)
    assert len(found) == 1, found
    assert expected in found[0]


@pytest.mark.parametrize("module", ["expunge", "expunge.cli", "expunge.core.hashing", "expunge.core.seeds"])
def test_light_packages_do_not_import_torch(module: str) -> None:
    """`--help` and `status` must answer at once."""
    code = f"import sys, {module}; print(sorted({{'torch', 'sklearn', 'matplotlib'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_good_package_passes(tmp_path: Path) -> None:
    for package in LAYER:
        (tmp_path / package).mkdir()
        below = [r for r in LAYER if LAYER[r] < LAYER[package]]
        lines = [f"from expunge.{r} import x" for r in below] + ["import numpy", "torch.load('x', weights_only=True)"]
        (tmp_path / package / "a.py").write_text("\n".join(lines) + "\n")
    (tmp_path / "training" / "runtime.py").write_text("from lightning_fabric import Fabric\n")
    assert faults(tmp_path) == []
