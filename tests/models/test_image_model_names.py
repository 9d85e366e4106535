"""`timm:` and `torchvision:` without the libraries: what is said, and what never happens."""

from __future__ import annotations

import sys

import pytest

from expunge.core.errors import ConfigError
from expunge.models import Architecture
from expunge.models.named import find_named, is_named


@pytest.mark.parametrize(("prefix", "package"), [("timm", "timm"), ("torchvision", "torchvision")])
def test_a_library_that_is_not_installed_is_named_with_its_remedy(prefix, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.models", None)
    with pytest.raises(ConfigError, match=rf"{prefix}: (.|\n)*(pip install|install the build)") as caught:
        Architecture(f"{prefix}:resnet18", {}, (3, 32, 32), 3).build(0)
    assert "::" not in str(caught.value)


def test_names():
    assert is_named("hf:folder/of/model")
    assert not is_named("hf")
    assert not is_named("my_package:make")
    with pytest.raises(ConfigError, match="a name follows the colon"):
        find_named("torchvision: ")
