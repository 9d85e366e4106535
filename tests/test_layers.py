"""The rooms of the house: imports only go downward, and a few things are nowhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "expunge"
#: From the top floor to the ground; rooms on one floor do not import each other.
FLOORS = (
    ("cli",),
    ("workflow",),
    ("report",),
    ("experiments",),
    ("evidence",),
    ("evaluation",),
    ("methods",),
    ("patches",),
    ("sparsity",),
    ("training",),
    ("models",),
    ("data",),
    ("core",),
)
FLOOR = {room: len(FLOORS) - level for level, rooms in enumerate(FLOORS) for room in rooms}
FABRIC = Path("training/runtime.py")
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "_pickle"}
LONGEST = 400


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


def faults(root: Path) -> list[str]:
    """Every breach of the house rules under `root`, the package directory."""
    out = []
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
        room = module[1] if len(module) > 1 else ""
        if room and room not in FLOOR and room != "__main__":
            out.append(f"{inside}: no room is called {room}")
            continue
        for line, name in imported(tree, module, is_package):
            parts = name.split(".")
            if parts[0] in UNSAFE:
                out.append(f"{inside}:{line}: imports {parts[0]}")
            if parts[0] in ("lightning_fabric", "lightning", "pytorch_lightning") and inside != FABRIC:
                out.append(f"{inside}:{line}: only {FABRIC} imports {parts[0]}")
            other = parts[1] if parts[0] == "expunge" and len(parts) > 1 else ""
            if room in FLOOR and other in FLOOR and other != room and FLOOR[other] >= FLOOR[room]:
                out.append(f"{inside}:{line}: {room} imports {other}, which is not below it")
    return out


def test_house_keeps_its_rules() -> None:
    assert faults(SOURCE) == []


def test_checker_reads_the_whole_house() -> None:
    assert len(list(SOURCE.rglob("*.py"))) > 30
    upward = [
        name
        for path in SOURCE.rglob("*.py")
        for _, name in imported(
            ast.parse(path.read_text()), ["expunge", *path.relative_to(SOURCE).parts[:-1], "x"], False
        )
        if name.startswith("expunge.")
    ]
    assert len(upward) > 50, "imports between rooms are not seen"


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
    "cellar/x.py": ("x = 1\n", "no room is called cellar"),
}


@pytest.mark.parametrize("place", BAD)
def test_checker_fails_on_a_bad_house(tmp_path: Path, place: str) -> None:
    text, expected = BAD[place]
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(text)
    found = faults(tmp_path)
    assert len(found) == 1, found
    assert expected in found[0]


@pytest.mark.parametrize("module", ["expunge", "expunge.cli", "expunge.core.hashing", "expunge.core.seeds"])
def test_light_rooms_do_not_import_torch(module: str) -> None:
    """`--help` and `status` must answer at once."""
    code = f"import sys, {module}; print(sorted({{'torch', 'sklearn', 'matplotlib'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_checker_passes_a_good_house(tmp_path: Path) -> None:
    for room in FLOOR:
        (tmp_path / room).mkdir()
        below = [r for r in FLOOR if FLOOR[r] < FLOOR[room]]
        lines = [f"from expunge.{r} import x" for r in below] + ["import numpy", "torch.load('x', weights_only=True)"]
        (tmp_path / room / "a.py").write_text("\n".join(lines) + "\n")
    (tmp_path / "training" / "runtime.py").write_text("from lightning_fabric import Fabric\n")
    assert faults(tmp_path) == []
