"""Custom networks: how the factory is found and called, and what is refused."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from expunge.core.errors import ConfigError, ModelError, TrustError
from expunge.core.trained import plain_state
from expunge.data.records import Normalisation
from expunge.models import Architecture

_COUNTER = itertools.count()
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module into the current directory; returns its name, which no other test uses."""
    monkeypatch.chdir(tmp_path)

    def make(source: str) -> str:
        name = f"own_network_{next(_COUNTER)}"
        (tmp_path / f"{name}.py").write_text("import torch\nfrom torch import nn\n" + source)
        return name

    return make


FULL = """
def make(input_shape, classes, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, classes))
"""


def test_a_factory_in_the_current_directory(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write(FULL)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(Path.cwd()))])
    before = list(sys.path)
    arch = Architecture(f"{name}:make", {"width": 5}, (4,), 3)
    assert arch.build()[1].out_features == 5
    assert sys.path == before, "the search path is left as it was"
    body = arch.to_json()
    assert body["name"] == body["factory"] == f"{name}:make"
    assert Architecture.from_json({k: v for k, v in body.items() if k != "name"}) == arch


def test_the_seed_decides_a_users_weights(write: Write) -> None:
    arch = Architecture(f"{write(FULL)}:make", {}, (4,), 3)
    before = torch.get_rng_state()
    first, second, other = (plain_state(arch.build(seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])


@pytest.mark.parametrize(
    "source",
    [
        "def make(): return nn.Linear(4, 3)",
        "def make(classes): return nn.Linear(4, classes)",
        "def make(**kw): return nn.Linear(kw['input_shape'][0], kw['classes'])",
        "class make(nn.Linear):\n  def __init__(self, input_shape, classes): super().__init__(input_shape[0], classes)",
        "def make(classes): return nn.LazyLinear(classes)",
        "def make(): return nn.Linear(4, 3).double()",
        "class Zoo:\n  @staticmethod\n  def make(): return nn.Linear(4, 3)\nmake = Zoo.make",
    ],
)
def test_a_factory_is_given_what_it_takes(write: Write, source: str) -> None:
    model = Architecture(f"{write(source)}:make", {}, (4,), 3).build()
    assert model.training
    assert model(torch.zeros(5, 4)).shape == (5, 3)
    assert model.weight.dtype == torch.float32


def test_nested_attributes_are_found(write: Write) -> None:
    name = write("class Zoo:\n  @staticmethod\n  def make(): return nn.Linear(4, 3)")
    assert Architecture(f"{name}:Zoo.make", {}, (4,), 3).build()(torch.zeros(1, 4)).shape == (1, 3)


def test_a_model_that_the_factory_stores_is_not_modified(write: Write) -> None:
    name = write("kept = nn.Linear(4, 3).eval()\ndef make(): return kept")
    model = Architecture(f"{name}:make", {}, (4,), 3).build()
    kept = sys.modules[name].kept
    assert model is not kept
    assert model.weight is not kept.weight
    assert not kept.training


def test_a_custom_network_is_normalised_only_on_request(write: Write) -> None:
    name = f"{write(FULL)}:make"
    constants = Normalisation((1.0, 2.0, 3.0, 4.0), (2.0, 2.0, 2.0, 2.0))
    plain = Architecture(name, {}, (4,), 3).build(1)
    wrapped = Architecture(name, {}, (4,), 3, constants).build(1)
    x = torch.rand(2, 4)
    torch.testing.assert_close(wrapped(x), plain((x - torch.tensor(constants.mean)) / 2))
    assert {f"network.{n}" for n, _ in plain.named_parameters()} == {n for n, _ in wrapped.named_parameters()}


LINEAR = "class make(nn.Linear):\n  def __init__(self): super().__init__(4, 3)"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def make(): return nn.Linear(4, 2)", "wrong number of classes: the model has 2 outputs, the data 3"),
        ("def make(): return nn.Linear(5, 3)", "does not accept records of shape"),
        ("def make(): return 7", "returned an object of type int"),
        ("def make(): raise RuntimeError('no such luck')", "the factory failed.*no such luck"),
        ("def make(depth): return nn.Linear(4, 3)", "the factory failed.*depth"),
        ("make = 3", "not a function"),
        (
            LINEAR + "\n  def forward(self, x): return [x]",
            "a list",
        ),
        (
            LINEAR + "\n  def forward(self, x): return x.sum()",
            "for 2 records of 3 classes the model returns a tensor of shape",
        ),
        (
            LINEAR + "\n  def get_extra_state(self): return 'x'\n  def set_extra_state(self, s): pass",
            "not a tensor",
        ),
    ],
)
def test_a_factory_that_cannot_be_used(write: Write, source: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        Architecture(f"{write(source)}:make", {}, (4,), 3).build()


def test_names_that_lead_nowhere(write: Write) -> None:
    name = write("def make_network(): return nn.Linear(4, 3)")
    broken = write("raise RuntimeError('half a module')")
    for factory, says in [
        (f"{name}:make_netwrk", "did you mean 'make_network'"),
        ("no_such_module_here:make", "no module named 'no_such_module_here'"),
        (f"{broken}:make", "importing .* failed.*half a module"),
        (":make", "package.module:factory"),
        (f"{name}:", "package.module:factory"),
    ]:
        with pytest.raises(ModelError, match=says):
            Architecture(factory, {}, (4,), 3)


def test_an_option_that_the_factory_does_not_take(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"no option 'widht'(.|\n)*did you mean 'width'"):
        Architecture(f"{write(FULL)}:make", {"widht": 3}, (4,), 3)


def test_the_standard_library_makes_no_networks(tmp_path: Path) -> None:
    """An imported file may name any function: none of the standard library is called."""
    body = {"name": "os:mkdir", "options": {"path": str(tmp_path / "made")}, "input_shape": [4], "classes": 3}
    with pytest.raises(TrustError, match="standard library"):
        Architecture.from_json(body).build()
    assert not (tmp_path / "made").exists()
