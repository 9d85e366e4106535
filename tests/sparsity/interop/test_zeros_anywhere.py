"""`mask: zeros` covers every parameter: zeros in any layer stay zero, and the model is never called dense."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from any_layers import AnyLayers
from safetensors.torch import save_file
from torch import nn

import expunge
from expunge.core.errors import MaskError
from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.trained import clone_model
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.models import Architecture, describe_model
from expunge.sparsity import PrunedBy, import_model, mask_from_zeros, rule_of
from expunge.training import Runtime

#: A kind of network and its parameter that is pruned.
PLACES = [
    ("transposed", "first.weight"),
    ("transposed1d", "first.weight"),
    ("embedding", "first.weight"),
    ("lstm", "first.weight_hh_l0"),
    ("gru", "first.weight_ih_l0"),
    ("attention", "first.in_proj_weight"),
    ("raw", "table"),
    ("transposed", "first.bias"),
    ("attention", "first.in_proj_bias"),
    ("encoder", "first.linear1.weight"),
]


def prune_half(model: nn.Module, name: str) -> torch.Tensor:
    """Set every second entry of a parameter to -0.0; return which entries are kept."""
    parameter = dict(model.named_parameters())[name]
    kept = (torch.arange(parameter.numel()) % 2 == 0).reshape(parameter.shape)
    with torch.no_grad():
        parameter[parameter == 0] = 0.5  # biases that start at 0
        parameter[~kept] = -0.0
    return kept


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return AnyLayers(kind)


def blueprint(kind: str, options: dict[str, object] | None = None) -> Architecture:
    return Architecture("any_layers:make", {"kind": kind, **(options or {})}, (1, 8, 8), 10)


@pytest.mark.parametrize(("kind", "name"), PLACES)
def test_zeros_are_found_and_stay_zero(
    kind: str,
    name: str,
    digits: Records,
    digits_split: expunge.Split,
    request_20: ForgetRequest,
    cpu: Runtime,
    tmp_path: Path,
) -> None:
    model = build(kind)
    kept = prune_half(model, name)
    save_file(model.state_dict(), str(tmp_path / "w.safetensors"))
    adopted = expunge.adopt_weights(
        blueprint(kind), tmp_path / "w.safetensors", digits, digits_split, mask="zeros", recipe=None
    )
    assert adopted.mask is not None
    assert torch.equal(adopted.mask.kept[name], kept)
    outcome = get_method("FT", epochs=1, learning_rate=0.1).forget(adopted, request_20, Context(digits, cpu, seed=0))
    after = dict(outcome.trained.model.named_parameters())[name].detach()
    assert int((after == 0).sum()) == int((~kept).sum())
    assert not torch.signbit(after[~kept]).any()


@pytest.mark.parametrize(("kind", "name"), PLACES)
def test_such_a_model_is_not_called_dense(kind: str, name: str, tmp_path: Path) -> None:
    model = build(kind)
    kept = prune_half(model, name)
    findings = describe_model(model, (1, 8, 8), 10).findings
    texts = [f.message for f in findings if f.subject == "pruning" and f.level == "warning"]
    assert any(name in text or "already pruned" in text for text in texts)
    assert not any(f.message.startswith("dense") for f in findings)
    save_file(model.state_dict(), str(tmp_path / "w.safetensors"))
    if kept.dim() > 1:
        assert import_model(blueprint(kind), tmp_path / "w.safetensors").detected.format == "baked-zeros"


def test_zeros_outside_the_mask_are_reported() -> None:
    model = build("transposed")
    kept = prune_half(model, "first.weight")
    names_other = Mask({"head.weight": torch.ones(10, 128, dtype=torch.bool)}, expunge.core.MaskProvenance("magnitude"))
    warned = [
        f.message for f in describe_model(model, (1, 8, 8), 10, mask=names_other).findings if f.level == "warning"
    ]
    assert any("that the mask does not prune in first.weight (50.0%)" in text for text in warned)
    covered = Mask({"first.weight": kept}, expunge.core.MaskProvenance("magnitude"))
    facts = describe_model(model, (1, 8, 8), 10, mask=covered)
    assert not facts.sparse
    assert [f.message for f in facts.findings if f.subject == "pruning"] == [
        "already pruned: the mask keeps 50.0% of 18 weights"
    ]


def test_a_scale_or_bias_of_zeros_is_an_initial_value(tmp_path: Path) -> None:
    """Network slimming prunes single scales; a scale that is 0 everywhere was initialised so (or never trained)."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = 0
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([0.0, 1, 2, 3]))
    mask = mask_from_zeros(model, ("conv",))
    assert set(mask.kept) == {"0.weight", "1.bias"}
    assert mask.kept["1.bias"].tolist() == [False, True, True, True]
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.0, 1, 0, 1]))
    assert mask_from_zeros(model, ("conv",)).kept["1.weight"].tolist() == [False, True, False, True]


def test_initial_zeros_are_named_by_the_import(tmp_path: Path) -> None:
    model = build("attention")  # its biases start at 0
    with torch.no_grad():
        model.head.weight[0, :9] = 0
    save_file(model.state_dict(), str(tmp_path / "w.safetensors"))
    mask = import_model(blueprint("attention"), tmp_path / "w.safetensors", mask="zeros").mask
    assert mask is not None
    assert mask.provenance.details["zero_parameters"] == ["first.in_proj_bias", "first.out_proj.bias"]
    assert set(mask.kept) == {"first.out_proj.weight", "head.weight"}


def test_a_tensor_of_zeros_is_refused(tmp_path: Path) -> None:
    model = build("transposed")
    with torch.no_grad():
        model.first.weight.zero_()
    with pytest.raises(MaskError, match=r"first\.weight: every weight of the tensor is zero"):
        mask_from_zeros(model, ("linear",))


def test_a_rule_is_not_recorded_for_what_it_does_not_explain(tmp_path: Path) -> None:
    model = build("transposed")
    prune_half(model, "first.weight")
    prune_half(model, "head.weight")
    save_file(model.state_dict(), str(tmp_path / "w.safetensors"))
    found = import_model(blueprint("transposed"), tmp_path / "w.safetensors", mask="zeros")
    assert found.mask is not None
    assert found.mask.provenance.layers == ()
    with pytest.raises(MaskError):
        rule_of(found.mask)
    declared = PrunedBy("magnitude", layers=("linear",))
    found = import_model(blueprint("transposed"), tmp_path / "w.safetensors", mask="zeros", pruned=declared)
    assert found.mask is not None
    assert set(found.mask.kept) == {"first.weight", "head.weight"}
    assert found.mask.provenance.layers == ("linear",)


def test_zeros_elsewhere_do_not_hide_a_pattern(tmp_path: Path) -> None:
    model = build("transposed")
    kept = prune_half(model, "head.weight")  # every second: 1:2
    with torch.no_grad():
        model.first.bias[0] = 0
    save_file(model.state_dict(), str(tmp_path / "w.safetensors"))
    mask = import_model(blueprint("transposed"), tmp_path / "w.safetensors", mask="zeros").mask
    assert mask is not None
    assert (mask.provenance.granularity, set(mask.kept)) == ("1:2", {"head.weight", "first.bias"})
    assert torch.equal(mask.kept["head.weight"], kept)


def half_file(model: nn.Module, path: Path, dtype: torch.dtype) -> Path:
    save_file({name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, str(path))
    return path


def test_weights_that_float16_rounded_to_zero_are_not_pruned(tmp_path: Path) -> None:
    """A dense model with small weights: a third of the zeros of float16 are nonzero in float32."""
    model = build("raw")
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(10, 5) * 3e-8)
    path = half_file(model, tmp_path / "w.safetensors", torch.float16)
    with pytest.raises(MaskError, match="zeros are weights that float16 rounded to 0"):
        import_model(blueprint("raw"), path, mask="zeros")


def test_pruned_float16_weights_are_read_with_a_note(tmp_path: Path) -> None:
    model = build("raw")
    kept = prune_half(model, "table")
    path = half_file(model, tmp_path / "w.safetensors", torch.float16)
    found = import_model(blueprint("raw"), path, mask="zeros")
    assert found.mask is not None
    assert torch.equal(found.mask.kept["table"], kept)
    details = found.mask.provenance.details["rounded_zeros"]
    assert (details["dtype"], details["zeros"], details["expected"]) == ("float16", int((~kept).sum()), 0)
    assert details["below"] == pytest.approx(2.98e-8, rel=1e-3)  # half of 2^-24
    assert "weights below 3e-08 in float16" in found.describe()
    undeclared = import_model(blueprint("raw"), path)
    assert undeclared.mask is None
    assert undeclared.describe().startswith("not declared as pruned, ")
    path = half_file(model, tmp_path / "b.safetensors", torch.bfloat16)  # the exponents of float32
    found = import_model(blueprint("raw"), path, mask="zeros")
    assert found.mask is not None
    assert "rounded_zeros" not in found.mask.provenance.details


def test_the_estimate_of_rounded_zeros(tmp_path: Path) -> None:
    """Against a count: weights of a known density, converted to float16."""
    from expunge.sparsity.interop.formats import count_rounded_zeros

    weights = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-4
    half = weights.half()
    truth = int(((half == 0) & (weights != 0)).sum())
    found = count_rounded_zeros({"w": half})
    assert found is not None
    assert found["zeros"] == truth > 200
    assert found["expected"] == pytest.approx(truth, rel=0.15)
    assert count_rounded_zeros({"w": weights.float()}) is None


def test_clones_keep_the_zeros() -> None:
    model = build("gru")
    kept = prune_half(model, "first.weight_hh_l0")
    mask = mask_from_zeros(model, ())
    assert torch.equal(mask.kept["first.weight_hh_l0"], kept)
    copied = clone_model(model)
    mask.apply_(copied)
    assert mask.count_violations(copied) == {}
