"""Formats of pruned models: import, export, detection."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune as torch_prune

from expunge.core.errors import MaskError
from expunge.core.trained import plain_state
from expunge.sparsity import Rule, make_mask
from expunge.sparsity.interop.formats import (
    detect_format,
    export_dense,
    find_pattern,
    from_torch_prune,
    is_torch_prune,
    mask_from_zeros,
    to_torch_prune,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 3))


def hooked(amount: float = 0.5) -> nn.Sequential:
    model = network()
    torch_prune.global_unstructured(
        [(model[0], "weight"), (model[3], "weight")], torch_prune.L1Unstructured, amount=amount
    )
    return model


def test_torch_prune_state_dicts_round_trip():
    model = hooked()
    state = model.state_dict()
    assert is_torch_prune(state)
    assert detect_format(state).format == "torch-prune"
    plain, mask = from_torch_prune(state, layers=("conv", "linear"), criterion="magnitude")
    copied = network()
    copied.load_state_dict(plain)
    x = torch.randn(5, 4, 4, 4)
    assert torch.equal(copied(x), model(x))
    assert mask.count_violations(copied) == {}
    assert mask.sparsity == pytest.approx(0.5, abs=1e-3)
    back = to_torch_prune(plain_state(copied), mask)
    assert set(back) == set(state)
    restored = hooked(0.1)
    restored.load_state_dict(back)
    assert torch.equal(restored(x), model(x))


def test_baked_zeros_and_dense():
    model = hooked()
    torch_prune.remove(model[0], "weight")
    torch_prune.remove(model[3], "weight")
    found = detect_format(model.state_dict())
    assert (found.format, found.granularity) == ("baked-zeros", "weight")
    mask = mask_from_zeros(model, ("conv", "linear"))
    assert mask.sparsity == pytest.approx(found.sparsity)
    assert detect_format(network().state_dict()).format == "dense"
    with pytest.raises(MaskError, match="dense"):
        mask_from_zeros(network())
    with torch.no_grad():
        model[0].weight.zero_()
    with pytest.raises(MaskError, match="passes nothing on"):
        mask_from_zeros(model)


def test_structure_is_detected():
    model = network()
    for granularity in ("2:4", "1:4", "filter"):
        rule = Rule("magnitude", granularity, "layer", ("conv", "linear"), 0.5 if granularity == "filter" else None)
        mask, _ = make_mask(model, rule, input_shape=(4, 4, 4))
        copied = network()
        mask.apply_(copied)
        assert detect_format(copied.state_dict()).granularity == granularity


def test_exports(tmp_path):
    model = network()
    mask, _ = make_mask(model, Rule("magnitude", "2:4", layers=("conv", "linear")))
    export_dense(model, mask, tmp_path / "dense.safetensors")
    copied = network()
    copied.load_state_dict(load_file(tmp_path / "dense.safetensors"))
    assert mask.count_violations(copied) == {}
    assert mask.count_violations(model) != {}  # the caller's model is not modified


def test_damaged_masks_are_named():
    state = dict(hooked().state_dict())
    with pytest.raises(MaskError, match="other than 0 and 1"):
        from_torch_prune({**state, "0.weight_mask": state["0.weight_mask"] * 0.5})
    with pytest.raises(MaskError, match="shape"):
        from_torch_prune({**state, "0.weight_mask": torch.ones(2, 2)})
    with pytest.raises(MaskError, match="no matching weight_orig"):
        from_torch_prune({k: v for k, v in state.items() if k != "0.weight_orig"})
    with pytest.raises(MaskError, match="not those of"):
        from_torch_prune(network().state_dict())
    _, mask = from_torch_prune(state)
    with pytest.raises(MaskError, match="does not have"):
        to_torch_prune({"a": torch.zeros(1)}, mask)


@pytest.mark.parametrize("other", ["weight", "module.weight", "_orig_mod.weight_orig"])
def test_two_copies_of_a_pruned_weight_are_refused(other: str) -> None:
    state = dict(torch_prune.l1_unstructured(nn.Linear(8, 4), "weight", amount=0.5).state_dict())
    state[other] = torch.ones(4, 8)
    if other.endswith("_orig"):
        state[other.replace("_orig", "_mask").replace("_mask_mod", "_orig_mod")] = torch.ones(4, 8)
    with pytest.raises(MaskError, match="weight: two weights"):
        from_torch_prune(state)


def test_patterns_have_groups_of_at_most_16_weights():
    for m in range(2, 20):
        kept = torch.zeros(3, 2 * m, dtype=torch.bool)
        kept[:, ::m] = True
        assert find_pattern({"weight": kept}) == ((1, m) if m <= 16 else None)
