"""`import expunge`: the names of a user's program, and the ten lines of the README."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import expunge
from expunge.core.trained import Trained
from expunge.data.records import Records


def test_every_public_name_is_there() -> None:
    for name in expunge.__all__:
        assert getattr(expunge, name) is not None
    assert set(expunge.__all__) == {"__version__", *(name for names in expunge._HOME.values() for name in names)}
    assert set(expunge.__all__) <= set(dir(expunge))


@pytest.mark.parametrize("package", [m.name for m in pkgutil.iter_modules(expunge.__path__) if m.ispkg])
def test_every_public_name_of_a_package_is_there(package: str) -> None:
    module = importlib.import_module(f"expunge.{package}")
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None, name


def test_tab_completion_finds_the_names_of_lazy_packages() -> None:
    """Names that are imported on first use are in `dir` before that, in every package with a `__getattr__`."""
    code = (
        "import importlib, pkgutil, expunge\n"
        "found = [m.name for m in pkgutil.walk_packages(expunge.__path__, 'expunge.') if m.ispkg]\n"
        "modules = [expunge, *map(importlib.import_module, found)]\n"
        "lazy = [m for m in modules if '__getattr__' in vars(m)]\n"
        "missing = {m.__name__: sorted(set(getattr(m, '__all__', ())) - set(dir(m))) for m in lazy}\n"
        "print(len(lazy), {name: names for name, names in missing.items() if names})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, _, missing = done.stdout.strip().partition(" ")
    assert int(count) >= 6
    assert missing == "{}"


def test_public_names_are_those_of_the_packages() -> None:
    from expunge.core.split import Split
    from expunge.methods import get_method
    from expunge.training import train

    assert (expunge.Split, expunge.get_method, expunge.train) == (Split, get_method, train)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_recrods'"):
        expunge.load_recrods  # noqa: B018


def test_import_is_light() -> None:
    code = (
        "import sys, expunge; expunge.ForgetRequest, expunge.load_records, expunge.Scores, expunge.load_plan\n"
        "print(sorted({'torch', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ten_lines(dense: Trained, digits: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of the package's docstring, as they stand there (with other records and places)."""
    lines = [line[4:] for line in (expunge.__doc__ or "").splitlines() if line.startswith("    ")]
    assert len(lines) <= 11
    expunge.save_trained(dense, tmp_path / "runs/digits/trained")
    forgotten = dense.split.retain[:9].tolist()
    (tmp_path / "ids.txt").write_text("\n".join(forgotten) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(expunge, "load_records", lambda source: digits)
    names: dict[str, object] = {}
    exec("\n".join(lines), names)  # the documentation is what is tested
    scores = names["scores"]
    assert isinstance(scores, expunge.Scores)
    assert scores["UA"].reference is not None
    assert "Disparity average" in scores
    assert scores["Passes"].value < 4
    unlearned = expunge.load_trained("runs/digits/unlearned-ft")
    assert sorted(unlearned.split.forget.tolist()) == sorted(forgotten)
    assert unlearned.hash != dense.hash
