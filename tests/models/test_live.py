"""Factories and models of this process by name: importable ones by their import, the others as python-object."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from expunge.core.errors import ModelError
from expunge.models import Architecture, live

IMPORTABLE = """
from torch import nn

def make(input_shape, classes):
    return nn.Linear(input_shape[0], classes)
"""


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch):
    monkeypatch.setattr(live, "_FACTORIES", {})
    monkeypatch.setattr(live, "_MODELS", {})


def test_an_importable_factory_keeps_its_import_name(tmp_path, monkeypatch):
    (tmp_path / "importable_factory.py").write_text(IMPORTABLE)
    monkeypatch.syspath_prepend(tmp_path)
    import importable_factory

    assert live.register_factory(importable_factory.make) == "importable_factory:make"
    body = Architecture("importable_factory:make", {}, (4,), 3).to_json()
    assert Architecture.from_json(body).build(seed=1).weight.shape == (3, 4)
    importable_factory.alias = lambda classes: nn.Linear(4, classes)
    assert live.register_factory(importable_factory.alias, title="alias") == "python-object:alias"


def test_a_closure_is_built_by_name_and_drawn_from_the_seed():
    width = 5

    def make(classes):
        return nn.Sequential(nn.Linear(4, width), nn.Linear(width, classes))

    architecture = Architecture(live.register_factory(make), {}, (4,), 3)
    assert architecture.name == "python-object:make"
    first, again, other = (architecture.build(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert Architecture.from_json(architecture.to_json()) == architecture


def test_the_same_function_keeps_its_name_and_another_gets_its_own():
    def define(text):
        space = {"nn": nn}
        exec(text, space)
        return space["make"]

    text = "def make(classes):\n    return nn.Linear(4, classes)\n"
    names = [live.register_factory(define(text)), live.register_factory(define(text))]
    names.append(live.register_factory(define(text.replace("nn.Linear(4", "nn.Linear(5"))))
    assert names == ["python-object:make", "python-object:make", "python-object:make-2"]


def test_a_model_object_is_copied_and_never_drawn():
    model = nn.Linear(4, 3)
    name = live.register_model_object(model)
    architecture = Architecture(name, {}, (4,), 3)
    blank = architecture.build_blank()
    assert torch.equal(blank.weight, model.weight)
    assert blank.weight.data_ptr() != model.weight.data_ptr()
    with pytest.raises(ModelError, match=r"cannot be drawn(.|\n)*adopt\(\.\.\., factory=make\)"):
        architecture.build(seed=0)


def test_another_process_refuses_the_name_with_the_line_to_write():
    code = (
        "from expunge.models import Architecture\n"
        "Architecture.from_json({'name': 'python-object:make', 'input_shape': [4], 'classes': 3})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "not registered in this one" in done.stderr
    assert "register_factory(make, title='make')" in done.stderr


def test_what_cannot_be_called_is_refused():
    with pytest.raises(ModelError, match="a factory is a callable"):
        live.register_factory(nn)


def test_a_model_is_copied_when_it_is_named_and_when_it_is_built():
    model = nn.Linear(2, 2)
    name = live.register_model_object(model)
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
        live.find_live(name)().weight.zero_()
    assert torch.equal(live.find_live(name)().weight, first)
