"""Pruned models as users have them: masks that are found, given, or read from zeros; and how they were pruned."""

from __future__ import annotations

import copy

import pytest
import torch
from own_networks import SmallNet, inputs
from torch import nn
from torch.nn.utils import prune

import expunge
from expunge.core.errors import ExpungeError, ExpungeWarning, FileError, MaskError, ModelError

TRAIN = range(300)


def test_masks_of_torch_prune_are_found(own_cnn, digits):
    model = copy.deepcopy(own_cnn)
    for layer in (model.features[0], model.head):
        prune.l1_unstructured(layer, "weight", amount=0.5)
    model(torch.zeros(2, 1, 8, 8))
    names = list(model.state_dict())
    adopted = expunge.adopt(model, digits, train=TRAIN)
    assert adopted.trained.mask is not None
    assert round(adopted.trained.mask.sparsity, 2) == 0.5
    for name, layer in (("features.0.weight", model.features[0]), ("head.weight", model.head)):
        assert torch.equal(adopted.trained.mask.kept[name], layer.weight_mask.bool())
    x, _ = inputs(digits, range(4))
    assert torch.equal(adopted.trained.model(x), copy.deepcopy(own_cnn).eval()(x)) is False
    assert names == list(model.state_dict())  # the hooks of the user's model stay
    result = adopted.forget([1, 2], "FT", epochs=1)
    weight = result.model.head.weight[~model.head.weight_mask.bool()]
    assert not weight.any()
    assert not torch.signbit(weight).any()
    with pytest.raises(MaskError, match=r"masks of torch\.nn\.utils\.prune already"):
        expunge.adopt(model, digits, train=TRAIN, mask="zeros")


def test_a_model_of_torch_prune_can_be_unpruned_once_it_is_said_how_it_was_pruned(own_cnn, digits):
    model = copy.deepcopy(own_cnn)
    for layer in (m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))):
        prune.l1_unstructured(layer, "weight", amount=0.5)
    with pytest.raises(MaskError) as refused:
        expunge.adopt(model, digits, train=TRAIN).forget([1, 2], "Un-prune", rule="gradient", initial="zero")
    assert "expunge.sparsity.PrunedBy(criterion=" in str(refused.value.hint)
    fields = {"criterion": "magnitude", "scope": "layer", "layers": ["conv", "linear"]}
    one = expunge.sparsity.PrunedBy(criterion="magnitude", scope="layer", layers=("conv", "linear"))
    options = {"rule": "gradient", "initial": "zero", "method_options": {"epochs": 1}}
    hashes = set()
    for pruned in (one, fields):
        adopted = expunge.adopt(model, digits, train=TRAIN, pruned=pruned)
        assert adopted.trained.mask.provenance.criterion == "magnitude"
        result = adopted.forget([1, 2], "Un-prune", options=options)
        hashes.add(result.trained.hash)
        old, new = adopted.trained.mask.kept, result.trained.mask.kept
        lost, kept = sum(int((old[n] & ~new[n]).sum()) for n in old), sum(int(old[n].sum()) for n in old)
        assert f"the new mask prunes {lost:,} of {kept:,} kept weights" in result.text()
    assert len(hashes) == 1


def test_check_and_methods_refuse_what_forget_refuses_because_no_schedule_is_recorded(own_cnn, digits):
    model = copy.deepcopy(own_cnn)
    prune.l1_unstructured(model.head, "weight", amount=0.5)
    declared = {"criterion": "magnitude", "scope": "layer", "layers": ["linear"]}
    recipe = expunge.get_recipe("one-cycle", epochs=1)
    adopted = expunge.adopt(model, digits, train=TRAIN, pruned=declared, factory=SmallNet, recipe=recipe)
    with pytest.raises(MaskError, match="does not record how it was made") as refused:
        adopted.forget([1, 2], "Retrain", mask="re-prune")
    found = adopted.check("Retrain", [1, 2], mask="re-prune")
    assert not found.usable
    assert any("does not record how it was made" in finding.message for finding in found.findings)
    assert "mask=same" in str(refused.value.hint)
    assert adopted.check("Retrain", [1, 2], mask="same").usable
    assert adopted.forget([1, 2], "Retrain", mask="same").guarantee == "empirical"


@pytest.mark.parametrize(
    ("pruned", "said"),
    [
        ("magnitude", "is 'magnitude', which does not say how the model was pruned"),
        ("zeros", "is 'zeros'"),
        (0.5, "is 0.5"),
        ({"criteron": "magnitude"}, "pruned: has no field 'criteron'"),
        ({3: "magnitude"}, "has no field 3"),
        ({"criterion": 3}, "unknown criterion 3"),
        ({"criterion": "magnitude", "scope": ["global"]}, "scope"),
        ({"criterion": "magnitude", "layers": "conv"}, "layers"),
    ],
)
def test_what_does_not_say_how_a_model_was_pruned_is_refused(own_cnn, digits, pruned, said):
    model = copy.deepcopy(own_cnn)
    prune.l1_unstructured(model.head, "weight", amount=0.5)
    with pytest.raises(ExpungeError, match=said):
        expunge.adopt(model, digits, train=TRAIN, pruned=pruned)


def test_zeros_masks_and_files_of_a_sparse_model(own_cnn, digits, tmp_path):
    model, kept = copy.deepcopy(own_cnn), own_cnn.head.weight.abs() > own_cnn.head.weight.abs().median()
    with torch.no_grad():
        model.head.weight.mul_(kept)
    with pytest.warns(ExpungeWarning, match="exactly zero"):
        expunge.adopt(model, digits, train=TRAIN)
    zeros = expunge.adopt(model, digits, train=TRAIN, mask="zeros")
    assert torch.equal(zeros.trained.mask.kept["head.weight"], kept)
    zeros.trained.mask.save(tmp_path / "mask.safetensors")
    for mask in ({"head.weight": kept}, zeros.trained.mask, tmp_path / "mask.safetensors"):
        adopted = expunge.adopt(model, digits, train=TRAIN, mask=mask)
        assert torch.equal(adopted.trained.mask.kept["head.weight"], kept)
        assert not torch.signbit(adopted.model.head.weight[~kept]).any()
    with pytest.raises(ModelError, match="that the mask prunes are not zero"):
        expunge.adopt(own_cnn, digits, train=TRAIN, mask={"head.weight": kept})
    for mask in ({"head.weight": kept[:, :3]}, {"no.weight": kept}, 3, "zeroes"):
        with pytest.raises((MaskError, FileError)):
            expunge.adopt(model, digits, train=TRAIN, mask=mask)
