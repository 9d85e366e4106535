"""What a package passes on under another name: known loaders stay refused, whatever module exports them."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from expunge.core.errors import ModelError, TrustError
from expunge.core.trust import Trust, gate, permit, resolve, trusting
from expunge.core.trust.never import is_never_called

VENDORED = """
import functools
def load(file): raise SystemExit
class Unpickler:
    def __init__(self, file): raise SystemExit
class Meta(type):
    def __call__(cls, *arguments): raise SystemExit
"""
PACKAGE = """
import functools, pathlib
from .vendor.cloudpickle import Meta, Unpickler, load
from .vendor.cloudpickle import load as innocent
from .vendor._yaml import load as other
import numpy as np
from torch import nn
from torch.utils.data import Dataset
@functools.wraps(load)
def wrapped(file): return load(file)
def disguised(file): pass
disguised = functools.wraps(disguised)(load)
class Derived(Unpickler): pass
class Deep(Derived): pass
class Typed(metaclass=Meta): pass
class Mapped(np.memmap): pass
class Place(pathlib.PosixPath): pass
class Net(nn.Linear): pass
class Data(Dataset):
    def __init__(self): pass
class Array(np.ndarray):
    def __new__(cls): return cls
    def __init__(self): pass
def make(): return "made"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trust]:
    monkeypatch.setattr(gate, "_AGREED", {})
    for folder in ("net", "net/vendor"):
        (tmp_path / folder).mkdir()
    (tmp_path / "net/__init__.py").write_text(PACKAGE)
    (tmp_path / "net/vendor/__init__.py").write_text("")
    for name in ("cloudpickle", "_yaml"):
        (tmp_path / f"net/vendor/{name}.py").write_text(VENDORED)
    yield Trust(("net",)).for_file(tmp_path / "run.yaml", [])
    for loaded in [name for name in sys.modules if name.partition(".")[0] == "net"]:
        del sys.modules[loaded]


@pytest.mark.parametrize("name", ["load", "innocent", "other", "wrapped", "disguised", "Derived", "Deep", "Typed"])
def test_a_loader_under_another_name(package: Trust, name: str) -> None:
    with trusting(package), pytest.raises(TrustError, match=r"comes from net\.vendor"):
        resolve(f"net:{name}", accepts=bool, wanted="it", error=ModelError)


@pytest.mark.parametrize(("name", "maker"), [("Mapped", "numpy"), ("Place", "pathlib")])
def test_a_class_that_a_library_constructs(package: Trust, name: str, maker: str) -> None:
    with trusting(package), pytest.raises(TrustError, match=f"is constructed by {maker}"):
        resolve(f"net:{name}", accepts=bool, wanted="it", error=ModelError)


@pytest.mark.parametrize("name", ["Net", "Data", "Array", "make"])
def test_honest_classes_and_functions(package: Trust, name: str) -> None:
    with trusting(package):
        assert resolve(f"net:{name}", accepts=bool, wanted="it", error=ModelError).__name__ == name


@pytest.mark.parametrize(
    "name", ["test.support:make", "_testcapi:make", "_YAML:make", "torchgen.model:make", "lib2to3:x"]
)
def test_modules_that_come_with_python_and_with_libraries(name: str) -> None:
    with trusting([]), pytest.raises(TrustError, match="never called for a name"):
        permit(name, error=ModelError)


def test_every_module_that_such_a_library_installs_is_never_called() -> None:
    """For example `_pytest` of pytest: the modules of a distribution are refused together."""
    missing = {}
    tools = {"torchvision"}  # its networks may be named
    for top, distributions in importlib.metadata.packages_distributions().items():
        owners = {name.lower().replace("-", "_") for name in distributions}
        known = {"pyyaml": "yaml", "scikit_learn": "sklearn", "pillow": "PIL"}
        refused = [owner for owner in owners if is_never_called(known.get(owner, owner))]
        if refused and top.isidentifier() and top not in tools and not is_never_called(top):
            missing[top] = refused
    assert missing == {}


def test_python_itself_is_refused_by_its_place() -> None:
    """Also a module that no list names."""
    from expunge.core.trust.places import find_module, is_in_python

    for name in ("json", "lib2to3", "_ctypes_test", "this"):
        found = find_module(name, folder=None, here=None)
        assert found is None or is_in_python(found), name
    for name in ("numpy", "pytest"):
        found = find_module(name, folder=None, here=None)
        assert found is not None
        assert not is_in_python(found)
