"""Networks are drawn once: copies have the bits of a fresh draw and share nothing with each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from expunge.core.hashing import hash_tensors
from expunge.core.registry import MODELS
from expunge.models import Architecture, architecture, register_model
from expunge.models.architecture import _DRAWN
from expunge.models.drawn import KEPT, DrawnNetworks

NETWORK = Architecture("small-cnn", {"widths": (4,)}, (1, 8, 8), 10)


def draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the networks that were drawn."""
    _DRAWN._networks.clear()
    found: list[int] = []
    get = DrawnNetworks.get

    def counted(self: DrawnNetworks, blueprint: object, seed: int, draw: Callable[[], nn.Module]) -> nn.Module:
        return get(self, blueprint, seed, lambda: (found.append(seed), draw())[1])

    monkeypatch.setattr(DrawnNetworks, "get", counted)
    return found


def test_equal_networks_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = draws(monkeypatch)
    one, other = NETWORK.build(3), Architecture.from_json(NETWORK.to_json()).build(3)
    assert len(found) == 1
    assert hash_tensors(one.state_dict()) == hash_tensors(other.state_dict())
    assert NETWORK.build_blank().state_dict().keys() == one.state_dict().keys()
    assert len(found) == 1
    NETWORK.build(4)
    Architecture("small-cnn", {"widths": (5,)}, (1, 8, 8), 10).build(3)
    assert len(found) == 3


def test_a_copy_has_the_bits_of_a_draw_and_is_independent() -> None:
    _DRAWN._networks.clear()
    drawn = hash_tensors(NETWORK.build(7).state_dict())
    changed = NETWORK.build(7).eval()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    again = NETWORK.build(7)
    assert hash_tensors(again.state_dict()) == drawn
    assert all(module.training for module in again.modules())
    _DRAWN._networks.clear()
    assert hash_tensors(NETWORK.build(7).state_dict()) == drawn


def test_few_networks_are_kept_and_a_blank_is_not_drawn_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    found = draws(monkeypatch)
    for seed in range(5):
        NETWORK.build(seed)
    assert len(_DRAWN._networks) == KEPT
    NETWORK.build_blank()
    assert len(found) == 5


def test_a_network_that_is_registered_again_is_drawn_again() -> None:
    def define(width: int) -> type[nn.Module]:
        class Net(nn.Module):
            def __init__(self, input_shape: tuple[int, ...], classes: int, normalise: nn.Module) -> None:
                super().__init__()
                self.layers = nn.Sequential(nn.Linear(*input_shape, width), nn.Linear(width, classes))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.layers(x)

        return Net

    with MODELS.temporary():
        for width in (3, 4):
            register_model("for-this-test")(define(width))
            model = Architecture("for-this-test", {}, (2,), 2).build(0)
            assert model.get_parameter("layers.0.weight").shape == (width, 2)


def test_names_ignore_case_and_are_recorded_as_registered() -> None:
    from expunge.data import load_records

    found = architecture("MLP", load_records("digits"), widths=(4,), normalise="none")
    assert found.name == "mlp"
    assert found == architecture("mlp", load_records("Digits"), widths=(4,), normalise="none")
