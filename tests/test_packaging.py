"""What the distributions declare: dependencies, versions, the long description."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
#: Distributions whose module has another name.
#: Extras whose packages the code imports inside functions.
EXTRAS = ("torch-pruning", "hf", "timm", "parquet", "tune", "integration", "dask", "ray", "remote")
MODULES = {"pyyaml": "yaml", "pillow": "PIL", "scikit-learn": "sklearn"}


def project(folder: Path = ROOT) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def bounds(requirements: list[str]) -> dict[str, str]:
    """Lower bounds by plain name."""
    found = {}
    for text in requirements:
        match = re.fullmatch(r"([\w.-]+)>=([\d.]+)", text)
        assert match is not None, f"{text} has no lower bound, or another form"
        found[plain(match[1])] = match[2]
    return found


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return {plain(line.split("==")[0]): line.split("==")[1] for line in lines}


def imported(folder: Path) -> set[str]:
    """Modules of other distributions that a package imports."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {folder.name}


def module(name: str) -> str:
    return MODULES.get(name, name.replace("-", "_"))


@pytest.mark.parametrize(("folder", "package"), [(".", "src/expunge"), ("checker", "src/expunge_check")])
def test_what_is_imported_is_declared(folder: str, package: str) -> None:
    declared = project(ROOT / folder)["project"]
    names = bounds(declared["dependencies"])
    extras = bounds([text for name in EXTRAS for text in declared.get("optional-dependencies", {}).get(name, [])])
    found = imported(ROOT / folder / package)
    undeclared = {"torchvision"}  # it must be that of the torch which is installed: the message says so
    assert found - {module(name) for name in (*names, *extras)} - undeclared == set()
    assert {module(name) for name in names} - found == set()
    assert (ROOT / folder / package / "py.typed").exists()


def test_the_lowest_versions_are_the_bounds() -> None:
    declared, lowest = project()["project"], pins("constraints-lowest.txt")
    needed = bounds([*declared["dependencies"], *declared["optional-dependencies"]["test"]])
    assert {name: lowest.get(name) for name in needed} == needed
    checker = bounds(project(ROOT / "checker")["project"]["dependencies"])
    assert {name: needed[name] for name in checker} == checker


def test_the_tested_versions_are_allowed() -> None:
    declared, tested = project()["project"], pins("constraints.txt")
    extras = declared["optional-dependencies"]
    needed = bounds(
        [*declared["dependencies"], *extras["test"], *extras["docs"], *(text for text in extras["dev"] if ">=" in text)]
    )

    def number(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    assert {
        name for name, bound in needed.items() if name not in tested or number(tested[name]) < number(bound)
    } == set()


def test_one_python_version_is_promised() -> None:
    ours, checker = project(), project(ROOT / "checker")
    wanted = ours["project"]["requires-python"]
    assert checker["project"]["requires-python"] == wanted
    minor = wanted.removeprefix(">=3.")
    assert ours["tool"]["ruff"]["target-version"] == f"py3{minor}"
    assert ours["tool"]["mypy"]["python_version"] == f"3.{minor}"
    said = {
        version
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "checker/README.md")
        for version in re.findall(r"Python \(?3\.(\d+)", (ROOT / name).read_text(encoding="utf-8"))
    }
    assert said == {minor}


def long_description(text: str) -> str:
    """What the build makes of README.md."""
    for step in project()["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(step["pattern"], step["replacement"], text)
    return text


def test_the_long_description_has_no_relative_links() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = long_description(readme)
    assert [target for target in re.findall(r"\]\(([^)]*)\)", text) if not re.match("[a-z]+:", target)] == []
    code = re.compile(r"^```.*?^```", flags=re.S | re.M)
    assert code.findall(text) == code.findall(readme)
    shown = (
        "![A report](docs/report.png)\n\n[a page](docs/x.md#y), [a site](https://x.y), `[x]`, [Jia2023] (see below)\n"
    )
    assert long_description(shown) == "a page, [a site](https://x.y), `[x]`, [Jia2023] (see below)\n"
