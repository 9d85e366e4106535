"""Adoption: pruned models in every format become trained models with the same outputs and a mask."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune as torch_prune

import expunge
from expunge.core.errors import ConfigError, FileError, MaskError, ModelError
from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained, plain_state
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.models import Architecture
from expunge.sparsity import PrunedBy, Rule, adopt_weights, import_model, make_mask, rule_of, save_small_model, shrink
from expunge.training import Runtime

ALL = ("conv", "linear")


def blueprint(trained: Trained) -> Architecture:
    return Architecture.from_json(trained.provenance.architecture)


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, str(path))
    return path


def masked(trained: Trained, **rule: object) -> tuple[nn.Module, Mask]:
    """Prune a copy without any training; return it with its mask."""
    given = {"layers": ALL, **rule}
    mask, _ = make_mask(trained.model, Rule(**given), input_shape=blueprint(trained).input_shape)  # type: ignore[arg-type]
    copied = copy.deepcopy(trained.model)
    mask.apply_(copied)
    return copied, mask


def same_outputs(one: nn.Module, other: nn.Module, shape: tuple[int, ...], tolerance: float = 0.0) -> None:
    x = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(one.eval()(x), other.eval()(x), rtol=tolerance, atol=tolerance)


def test_torch_prune_tensors(dense: Trained, digits: Records, tmp_path: Path) -> None:
    external = copy.deepcopy(dense.model)
    layers = [m for m in external.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    torch_prune.global_unstructured([(m, "weight") for m in layers], torch_prune.L1Unstructured, amount=0.7)
    path = write(tmp_path / "w.safetensors", external.state_dict())
    declared = PrunedBy("magnitude", "global")
    adopted = adopt_weights(blueprint(dense), path, digits, dense.split, pruned=declared)
    same_outputs(adopted.model, external, digits.input_shape)
    assert adopted.mask is not None
    assert adopted.mask.sparsity == pytest.approx(0.7, abs=1e-3)
    assert adopted.mask.count_violations(adopted.model) == {}
    assert rule_of(adopted.mask) == Rule("magnitude", "weight", "global", ALL, adopted.mask.sparsity)
    assert "torch.nn.utils.prune tensors" in adopted.provenance.history[0]
    assert expunge.adopt_weights is adopt_weights
    # only some layers are pruned: no layer type is recorded for a mask that does not name all of its weights
    external = copy.deepcopy(dense.model)
    torch_prune.l1_unstructured(external.classifier, "weight", amount=0.5)
    torch_prune.l1_unstructured(external.blocks[0][0], "weight", amount=0.5)
    path = write(tmp_path / "some.safetensors", external.state_dict())
    found = import_model(blueprint(dense), path)
    assert found.mask is not None
    assert set(found.mask.kept) == {"classifier.weight", "blocks.0.0.weight"}
    assert found.mask.provenance.layers == ()
    with pytest.raises(MaskError, match="does not record by which criterion"):
        rule_of(found.mask)


def test_prefixes_and_input_normalisation(digits: Records, digits_split: expunge.Split, tmp_path: Path) -> None:
    arch = expunge.architecture("small-cnn", digits, digits_split, normalise="training", widths=(4,))
    external = arch.build(3)
    torch_prune.l1_unstructured(external.classifier, "weight", amount=0.5)
    state = {f"module.{name}": tensor for name, tensor in external.state_dict().items()}
    adopted = adopt_weights(arch, write(tmp_path / "w.safetensors", state), digits, digits_split)
    same_outputs(adopted.model, external, digits.input_shape)
    assert adopted.mask is not None
    assert set(adopted.mask.kept) == {"classifier.weight"}


def test_baked_zeros(dense: Trained, digits: Records, tmp_path: Path) -> None:
    """Zeros as a product with a mask leaves them: half of them are -0.0."""
    external, mask = masked(dense, sparsity=0.6)
    state = plain_state(dense.model)
    state = {name: t * mask.kept[name] if name in mask.kept else t for name, t in state.items()}
    assert any(bool(torch.signbit(t[t == 0]).any()) for t in state.values() if t.is_floating_point())
    path = write(tmp_path / "w.safetensors", state)
    without_mask = import_model(blueprint(dense), path)
    assert (without_mask.mask, without_mask.detected.format) == (None, "baked-zeros")
    declared = PrunedBy("magnitude", "global", ALL)
    adopted = adopt_weights(blueprint(dense), path, digits, dense.split, mask="zeros", pruned=declared)
    assert adopted.mask is not None
    assert adopted.mask.hash() == mask.hash()
    assert adopted.mask.count_violations(adopted.model) == {}
    same_outputs(adopted.model, external, digits.input_shape)
    plain = write(tmp_path / "plain.safetensors", plain_state(dense.model))
    assert import_model(blueprint(dense), plain).detected.format == "dense"
    with pytest.raises(MaskError, match="the model is dense"):
        adopt_weights(blueprint(dense), plain, digits, dense.split, mask="zeros")


def test_a_mask_file(dense: Trained, digits: Records, tmp_path: Path) -> None:
    _, mask = masked(dense, sparsity=0.6)
    mask.save(tmp_path / "m.safetensors")
    state = plain_state(dense.model)
    path = write(tmp_path / "w.safetensors", {n: t * mask.kept[n] if n in mask.kept else t for n, t in state.items()})
    adopted = adopt_weights(blueprint(dense), path, digits, dense.split, mask=tmp_path / "m.safetensors")
    assert adopted.mask is not None
    assert adopted.mask.count_violations(adopted.model) == {}
    assert rule_of(adopted.mask) == rule_of(mask)
    whole = write(tmp_path / "whole.safetensors", state)
    with pytest.raises(ModelError, match="masked weights in"):
        adopt_weights(blueprint(dense), whole, digits, dense.split, mask=tmp_path / "m.safetensors")
    with pytest.raises(FileError, match="is a mask, not the weights"):
        adopt_weights(blueprint(dense), tmp_path / "m.safetensors", digits, dense.split)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_patterns(dense: Trained, digits: Records, tmp_path: Path, pattern: str) -> None:
    """The first convolution has one input channel, so no pattern fits it; it is recorded as left out."""
    external, mask = masked(dense, granularity=pattern)
    path = write(tmp_path / "w.safetensors", plain_state(external))
    declared = PrunedBy("magnitude", layers=ALL)
    found = import_model(blueprint(dense), path, mask="zeros", pruned=declared)
    assert found.mask is not None
    assert found.mask.hash() == mask.hash()
    assert rule_of(found.mask) == rule_of(mask)
    assert found.mask.provenance.details["left_out"] == ["blocks.0.0.weight"]


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_whole_channels(dense: Trained, digits: Records, tmp_path: Path, sparsity: float) -> None:
    """Zero rows with their BatchNorm are coupled channels, which can be removed. Zero rows alone are single weights."""
    external, mask = masked(dense, granularity="filter", sparsity=sparsity, layers=("conv",))
    path = write(tmp_path / "w.safetensors", plain_state(external))
    found = import_model(blueprint(dense), path, mask="zeros", pruned=PrunedBy("magnitude", layers=("conv",)))
    assert found.mask is not None
    assert found.mask.provenance.granularity == "filter"
    assert found.mask.hash() == mask.hash()
    assert rule_of(found.mask) == rule_of(mask)
    rows = copy.deepcopy(dense.model)
    for layer in (m for m in rows.modules() if isinstance(m, nn.Conv2d)):
        torch_prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
    path = write(tmp_path / "rows.safetensors", rows.state_dict())
    found = import_model(blueprint(dense), path)
    assert found.mask is not None
    assert found.mask.provenance.granularity == "weight"
    adopted = adopt_weights(blueprint(dense), path, digits, dense.split)
    same_outputs(adopted.model, rows, digits.input_shape)


def test_physically_smaller(dense: Trained, digits: Records, tmp_path: Path) -> None:
    external, mask = masked(dense, granularity="filter", sparsity=0.5, layers=("conv",))
    small = shrink(external, mask, digits.input_shape)
    save_small_model(small, dense, tmp_path / "small.safetensors")
    adopted = adopt_weights(
        blueprint(dense), tmp_path / "small.safetensors", digits, dense.split, pruned=PrunedBy("magnitude")
    )
    same_outputs(adopted.model, small.model, digits.input_shape, tolerance=1e-5)
    assert adopted.mask is not None
    assert adopted.mask.provenance.granularity == "filter"
    assert adopted.mask.hash() == mask.hash()
    assert adopted.mask.count_violations(adopted.model) == {}
    reshrunk = shrink(adopted.model, adopted.mask, digits.input_shape)
    assert reshrunk.parameters_after == small.parameters_after
    other = dataclasses.replace(blueprint(dense), options={"widths": (8, 32)})
    with pytest.raises(ModelError, match="cut from one with options"):
        adopt_weights(other, tmp_path / "small.safetensors", digits, dense.split)
    # a smaller network from another tool, without a record of what was cut
    path = write(tmp_path / "external.safetensors", plain_state(small.model))
    with pytest.raises(ModelError, match="physically smaller"):
        adopt_weights(blueprint(dense), path, digits, dense.split)


def test_an_imported_model_is_unlearned_and_unpruned(
    dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime, tmp_path: Path
) -> None:
    """The mask holds through training; un-pruning works if the rule is declared, and does not guess it otherwise."""
    external = copy.deepcopy(dense.model)
    layers = [m for m in external.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    torch_prune.global_unstructured([(m, "weight") for m in layers], torch_prune.L1Unstructured, amount=0.6)
    path = write(tmp_path / "w.safetensors", external.state_dict())
    recipe = dense.provenance.recipe
    declared = PrunedBy("magnitude", "global", ALL)
    known = adopt_weights(blueprint(dense), path, digits, dense.split, pruned=declared, recipe=recipe)
    unknown = adopt_weights(blueprint(dense), path, digits, dense.split, recipe=recipe)
    context = Context(digits, cpu, seed=1)
    outcome = get_method("FT", epochs=1).forget(unknown, request_20, context)
    assert unknown.mask is not None
    assert unknown.mask.count_violations(outcome.trained.model) == {}
    method = get_method("Un-prune", method_options={"epochs": 1}, initial="random")
    after = method.forget(known, request_20, context).trained
    assert after.mask is not None
    assert known.mask is not None
    assert after.mask.kept_count == known.mask.kept_count
    with pytest.raises(MaskError, match="does not record by which criterion"):
        method.forget(unknown, request_20, context)
    with pytest.raises(expunge.ExpungeError, match="neither the original's initial weights"):
        get_method("Un-prune", method_options={"epochs": 1}).forget(known, request_20, context)


def test_two_masks_and_wrong_names_are_refused(dense: Trained, digits: Records, tmp_path: Path) -> None:
    external = copy.deepcopy(dense.model)
    torch_prune.l1_unstructured(external.classifier, "weight", amount=0.5)
    path = write(tmp_path / "w.safetensors", external.state_dict())
    with pytest.raises(MaskError, match="has its own mask"):
        import_model(blueprint(dense), path, mask="zeros")
    for declared, message in (
        (PrunedBy("magnitud"), "did you mean 'magnitude'"),
        (PrunedBy(layers=("cnov",)), "did you mean 'conv'"),
        (PrunedBy(scope="globl"), "global"),
    ):
        with pytest.raises(ConfigError, match=message):
            import_model(blueprint(dense), path, pruned=declared)
    other = Architecture("mlp", {}, digits.input_shape, 10)
    with pytest.raises(MaskError, match="another architecture"):
        import_model(other, path)
    broken = dict(external.state_dict())
    broken["classifier.weight_mask"] = broken["classifier.weight_mask"] * 0.5
    with pytest.raises(MaskError, match="other than 0 and 1"):
        import_model(blueprint(dense), write(tmp_path / "b.safetensors", broken))
