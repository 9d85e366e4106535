"""Un-pruning: hints at unknown values, and options that a rule does not use."""

from __future__ import annotations

import pytest

from expunge.core.errors import MethodError
from expunge.methods import get_method, method_class


@pytest.mark.parametrize(("option", "wrong", "near"), [("curvature", "methd", "method"), ("reprune", "eachh", "each")])
def test_the_hint_at_an_unknown_value_names_the_nearest(option: str, wrong: str, near: str) -> None:
    with pytest.raises(MethodError, match=f"unknown {option} '{wrong}'") as caught:
        get_method("Un-prune", method="FT", **{option: wrong})
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"did you mean {near!r}? (known: ")


def test_options_that_the_rule_does_not_use_are_dropped() -> None:
    """Only the influence rule uses a curvature, and it uses no growth."""
    options = {"method": "FT", "growth": 0.5, "curvature": "method"}
    kept, dropped = method_class("Un-prune").drop_unused({**options, "rule": "random"})
    assert dropped == {"curvature": "method"}
    assert "curvature" not in kept
    assert method_class("Un-prune").drop_unused({**options, "rule": "influence"})[1] == {"growth": 0.5}
