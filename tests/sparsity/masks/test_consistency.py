"""Masks are validated on import: a mask that contradicts its recorded rule is refused."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError, FileError, MaskError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained, clone_model, plain_state
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.models import Architecture
from expunge.sparsity import (
    PrunedBy,
    Pruning,
    Rule,
    import_model,
    make_mask,
    prune,
    ranked_sparsity,
    repeat_pruning,
    rule_of,
    scope_names,
)
from expunge.sparsity.interop.formats import detect_format, export_dense, find_pattern, to_torch_prune
from expunge.sparsity.masks.consistency import check_recorded_rule, count_ranked
from expunge.training import Runtime

ALL = ("conv", "linear")
NET = Architecture("small-cnn", {"widths": (6, 10)}, (2, 8, 8), 5)


def made(model: nn.Module, rule: Rule) -> Mask:
    return make_mask(model, rule, input_shape=NET.input_shape)[0]


def with_provenance(mask: Mask, **changes: Any) -> Mask:
    return Mask(mask.kept, dataclasses.replace(mask.provenance, **changes))


@pytest.mark.parametrize(("granularity", "scope"), list(itertools.product(("weight", "filter", "1:2"), scope_names())))
def test_masks_of_expunge_are_consistent(granularity: str, scope: str) -> None:
    """Rounding is not a contradiction, whatever the sparsity."""
    model = NET.build(1)
    for sparsity, layers in itertools.product((0.0, 0.13, 0.3, 0.47), (("conv",), ALL)):
        wanted = None if ":" in granularity else sparsity
        check_recorded_rule(made(model, Rule("magnitude", granularity, scope, layers, wanted)), model, NET.input_shape)


def test_contradictions_are_refused() -> None:
    model = NET.build(1)
    mask = made(model, Rule("magnitude", "weight", "global", ALL, 0.7))
    counts = count_ranked(mask, model, ALL, NET.input_shape)
    assert {name: total for name, (_, total) in counts.items()} == {n: t.numel() for n, t in mask.kept.items()}
    check_recorded_rule(mask, model, NET.input_shape)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"scope": "layer"}, "the recorded scope is layer"),
        (
            {"scope": "erk"},
            r"scope is erk, which would keep \d+ weights of the layer, but the mask keeps \d+",
        ),
        ({"details": {"sparsity": 0.2}}, "recorded sparsity of the mask is 0.2, but"),
        ({"granularity": "filter"}, "0 of 16 coupled channels|coupled channels are pruned"),
        ({"granularity": "1:2", "details": {"sparsity": 0.5}}, "does not have its recorded pattern 1:2"),
    ]
    for changes, message in wrong:
        with pytest.raises(MaskError, match=message):
            check_recorded_rule(with_provenance(mask, **changes), model, NET.input_shape)
    with pytest.raises(ConfigError, match="unknown scope"):
        check_recorded_rule(with_provenance(mask, scope="layr"), model, NET.input_shape)
    # no rule is recorded that un-pruning could repeat, so there is no contradiction
    check_recorded_rule(with_provenance(mask, scope="layer", criterion="unknown"), model, NET.input_shape)
    check_recorded_rule(with_provenance(mask, scope="layer", layers=()), model, NET.input_shape)


def test_wrong_provenance_is_refused_at_import(tmp_path: Path) -> None:
    model = NET.build(1)
    mask = made(model, Rule("magnitude", "weight", "global", ALL, 0.7))
    path = tmp_path / "w.safetensors"
    export_dense(model, mask, path)
    import_model(NET, path, mask="zeros", pruned=PrunedBy("magnitude", "global", ALL))
    with pytest.raises(MaskError, match="the recorded scope is layer"):
        import_model(NET, path, mask="zeros", pruned=PrunedBy("magnitude", "layer", ALL))
    with_provenance(mask, details={"sparsity": 0.2}).save(tmp_path / "m.safetensors")
    with pytest.raises(MaskError, match=r"recorded sparsity of the mask is 0\.2"):
        import_model(NET, path, mask=tmp_path / "m.safetensors")


def test_a_layer_left_out_of_the_mask_is_no_contradiction(tmp_path: Path) -> None:
    """The first layer is dense and the mask does not name it: only the other layers are compared."""
    from safetensors.torch import save_file

    model = NET.build(1)
    mask = made(model, Rule("magnitude", "weight", "layer", ALL, 0.7))
    some = Mask({n: a for n, a in mask.kept.items() if n != "blocks.0.0.weight"}, mask.provenance)
    assert 0 < len(some.kept) < len(mask.kept)
    save_file(to_torch_prune(plain_state(model), some), str(tmp_path / "w.safetensors"))
    found = import_model(NET, tmp_path / "w.safetensors", pruned=PrunedBy("magnitude", "layer", ALL)).mask
    assert found is not None
    assert set(found.kept) == set(some.kept)


def test_the_declaration_completes_a_mask_file_without_criterion(tmp_path: Path) -> None:
    model = NET.build(1)
    mask = made(model, Rule("magnitude", "weight", "layer", ALL, 0.7))
    path = tmp_path / "w.safetensors"
    export_dense(model, mask, path)
    Mask(mask.kept, MaskProvenance("unknown")).save(tmp_path / "unknown.safetensors")
    declared = PrunedBy("magnitude", "layer", ALL)
    found = import_model(NET, path, mask=tmp_path / "unknown.safetensors", pruned=declared).mask
    assert found is not None
    assert rule_of(found) == Rule("magnitude", "weight", "layer", ALL, mask.sparsity)
    plain = import_model(NET, path, mask=tmp_path / "unknown.safetensors").mask
    assert plain is not None
    assert plain.provenance.criterion == "unknown"
    mask.save(tmp_path / "known.safetensors")
    assert import_model(NET, path, mask=tmp_path / "known.safetensors", pruned=declared).mask is not None
    with pytest.raises(MaskError, match=r"criterion magnitude for its mask, but model\.pruned declares SNIP"):
        import_model(NET, path, mask=tmp_path / "known.safetensors", pruned=PrunedBy("SNIP", "layer", ALL))


@pytest.mark.parametrize("scope", ["layer", "erk"])
@pytest.mark.parametrize("around", [False, True])
def test_a_mask_that_a_method_thinned_is_imported(
    dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime, tmp_path: Path,
    scope: str, around: bool,
) -> None:  # fmt: skip
    """Its fractions follow no rule; those of a mask that was not thinned are still compared."""
    sparse = prune(dense, Pruning(sparsity=0.6, layers=ALL, scope=scope, schedule="one-shot"), Context(digits, cpu))
    options = {"step": "proximal", "gamma": 1.0, "epochs": 3, "learning_rate": 0.05}
    method = get_method("l1-sparse", **options)
    if around:
        method = get_method("Un-prune", rule="magnitude", method="l1-sparse", method_options=options)
    after = method.forget(sparse, request_20, Context(digits, cpu, seed=1)).trained
    assert sparse.mask is not None
    assert after.mask is not None
    assert after.mask.kept_count < sparse.mask.kept_count
    assert sparse.mask.provenance.scores_hash is not None
    assert after.mask.provenance.scores_hash is None  # the scores of the old mask do not give the new one
    after.mask.save(tmp_path / "m.safetensors")
    export_dense(after.model, after.mask, tmp_path / "w.safetensors")
    blueprint = Architecture.from_json(dense.provenance.architecture)
    found = import_model(blueprint, tmp_path / "w.safetensors", mask=tmp_path / "m.safetensors").mask
    assert found is not None
    assert found.hash() == after.mask.hash()
    unthinned = {"sparsity": after.mask.provenance.details["sparsity"]}
    with pytest.raises(MaskError, match=f"the recorded scope is {scope}"):
        check_recorded_rule(with_provenance(after.mask, details=unthinned), after.model, digits.input_shape)
    exact = {"sparsity": 0.6, "unpruned": {}}
    with pytest.raises(MaskError, match=r"the recorded scope is|recorded sparsity of the mask is 0\.6"):
        check_recorded_rule(with_provenance(after.mask, details=exact), after.model, digits.input_shape)


def test_a_thinned_mask_records_the_sparsity_of_what_was_ranked(
    dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    """A masked bias was not ranked, so it is not counted."""
    sparse = prune(dense, Pruning(sparsity=0.6, layers=ALL, schedule="one-shot"), Context(digits, cpu))
    assert sparse.mask is not None
    bias = {"classifier.bias": torch.arange(10) % 2 == 0}
    model = clone_model(sparse.model)
    mask = Mask({**sparse.mask.kept, **bias}, sparse.mask.provenance)
    mask.apply_(model)
    shrinking = get_method("l1-sparse", step="proximal", gamma=0.05, epochs=2, learning_rate=0.05)
    with_bias = dataclasses.replace(sparse, model=model, mask=mask)
    after = shrinking.forget(with_bias, request_20, Context(digits, cpu, seed=1)).trained.mask
    assert after is not None
    ranked = [kept for name, kept in after.kept.items() if name not in bias]
    pruned = sum(int((~kept).sum()) for kept in ranked)
    assert after.provenance.details["sparsity"] == pytest.approx(pruned / sum(kept.numel() for kept in ranked))


def test_the_sparsity_of_a_mask_that_records_none(tmp_path: Path) -> None:
    """It is that of what the rule ranks: channels, not weights, and neither biases nor layers that were not pruned."""
    model = NET.build(1)
    channels = made(model, Rule("filter-l2", "filter", "global", ("conv",), 0.25))
    assert abs(channels.sparsity - 0.25) > 0.02  # the fraction of weights is different
    weights = made(model, Rule("magnitude", "weight", "global", ("conv",), 0.5))
    bias = {"classifier.bias": torch.zeros(5, dtype=torch.bool)}
    others = {"classifier.weight": torch.zeros(5, 10, dtype=torch.bool)}
    pattern = made(model, Rule("magnitude", "1:2", "global", ALL, None))
    for number, (mask, more, wanted) in enumerate(
        [(channels, {}, 0.25), (weights, bias, 0.5), (weights, {**bias, **others}, 0.5), (pattern, bias, 0.5)]
    ):
        unrecorded = Mask({**mask.kept, **more}, dataclasses.replace(mask.provenance, details={}))
        assert ranked_sparsity(unrecorded, model, NET.input_shape) == pytest.approx(wanted, abs=2e-3)
        if pattern is not mask:  # a pattern mask with a bias is refused: the bias has no pattern
            unrecorded.save(tmp_path / f"{number}.safetensors")
            export_dense(model, unrecorded, tmp_path / "w.safetensors")
            found = import_model(NET, tmp_path / "w.safetensors", mask=tmp_path / f"{number}.safetensors").mask
            assert found is not None
            assert rule_of(found).sparsity == pytest.approx(wanted, abs=2e-3)
        if "classifier.weight" not in more and mask is not channels:
            assert rule_of(unrecorded).sparsity == pytest.approx(wanted, abs=2e-3)
    unrecorded = with_provenance(channels, details={})
    with pytest.raises(MaskError, match="which fraction of the coupled channels"):
        rule_of(unrecorded)
    assert rule_of(unrecorded, 0.25).sparsity == 0.25
    assert rule_of(channels, 0.9).sparsity == 0.25
    assert ranked_sparsity(channels, model, NET.input_shape) == 0.25
    with pytest.raises(MaskError, match="does not record which layers were pruned"):
        ranked_sparsity(with_provenance(unrecorded, layers=()), model, NET.input_shape)


def test_repeated_pruning_uses_the_fraction_of_channels(dense: Trained, digits: Records, cpu: Runtime) -> None:
    how: dict[str, Any] = {"layers": ("conv",), "granularity": "filter", "schedule": "one-shot"}
    mask = prune(dense, Pruning(sparsity=0.25, **how), Context(digits, cpu)).mask
    assert mask is not None
    unrecorded = with_provenance(mask, details={k: v for k, v in mask.provenance.details.items() if k != "sparsity"})
    repeated = repeat_pruning(dense, unrecorded, Context(digits, cpu)).mask
    assert repeated is not None
    assert repeated.hash() == mask.hash()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"details": {"sparsity": "abc"}}, "sparsity is a fraction in"),
        ({"details": {"sparsity": 1.5}}, "sparsity is a fraction in"),
        ({"details": {"score_records": "many"}}, "score_records is a number of records"),
        ({"details": {"options": 3}}, "options is a mapping"),
        ({"layers": "conv"}, "layers is a list of names"),
        ({"granularity": 3}, "granularity is a name"),
    ],
)
def test_provenance_of_the_wrong_type_is_a_damaged_file(tmp_path: Path, changes: Any, message: str) -> None:
    provenance = {"criterion": "magnitude", "layers": ["conv"], **changes}
    with pytest.raises(ValueError, match=message):
        MaskProvenance.from_json(provenance)
    from expunge.core.files import read_tensors, write_tensors

    path = tmp_path / "m.safetensors"
    Mask({"w": torch.ones(3, dtype=torch.bool)}, MaskProvenance("magnitude")).save(path)
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {**metadata, "provenance": provenance})
    with pytest.raises(FileError, match=message):
        Mask.load(path)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("m", [4, 6, 7, 16])
def test_patterns_up_to_16_are_found(n: int, m: int) -> None:
    """The smallest m is found; if one group keeps one weight more or fewer, there is no pattern."""
    if n >= m:
        return
    generator = torch.Generator().manual_seed(n * m)
    places = torch.argsort(torch.rand(40, 3, m, generator=generator), dim=2)
    kept = (places < n).reshape(40, 3 * m)
    found = find_pattern({"w": kept, "dense": torch.ones(4, 3, dtype=torch.bool)})
    assert found is not None
    assert found[0] * m == found[1] * n
    assert m % found[1] == 0
    if found == (n, m):
        assert detect_format({"w.weight": kept.float()}).granularity == f"{n}:{m}"
    broken = kept.clone()
    broken[3, 0] ^= True
    assert find_pattern({"w": broken}) is None
    assert find_pattern({"w": torch.ones(4, 4, dtype=torch.bool)}) is None
