"""A mask is what the rule that it states would make, or it is refused where it arrives."""

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
    Rule,
    make_mask,
    prune,
    prune_again,
    ranked_sparsity,
    read_arrived,
    rule_of,
    scope_names,
)
from expunge.sparsity.interop.formats import export_dense, pattern_of, recognise, to_torch_prune
from expunge.sparsity.masks.consistency import check_stated, ranked_counts
from expunge.training import Runtime

ALL = ("conv", "linear")
NET = Architecture("small-cnn", {"widths": (6, 10)}, (2, 8, 8), 5)


def made(model: nn.Module, rule: Rule) -> Mask:
    return make_mask(model, rule, input_shape=NET.input_shape)[0]


def restated(mask: Mask, **changes: Any) -> Mask:
    return Mask(mask.alive, dataclasses.replace(mask.provenance, **changes))


@pytest.mark.parametrize(("granularity", "scope"), list(itertools.product(("weight", "filter", "1:2"), scope_names())))
def test_masks_of_our_own_are_what_they_say(granularity: str, scope: str) -> None:
    """However odd the numbers: rounding alone is no contradiction."""
    model = NET.build(1)
    for sparsity, layers in itertools.product((0.0, 0.13, 0.3, 0.47), (("conv",), ALL)):
        wanted = None if ":" in granularity else sparsity
        check_stated(made(model, Rule("magnitude", granularity, scope, layers, wanted)), model, NET.input_shape)


def test_what_contradicts_itself_is_refused() -> None:
    model = NET.build(1)
    mask = made(model, Rule("magnitude", "weight", "global", ALL, 0.7))
    counts = ranked_counts(mask, model, ALL, NET.input_shape)
    assert {name: total for name, (_, total) in counts.items()} == {n: t.numel() for n, t in mask.alive.items()}
    check_stated(mask, model, NET.input_shape)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"scope": "layer"}, "the stated scope is layer"),
        ({"scope": "erk"}, r"the stated scope is erk, by which \d+ weights of the layer would live, and \d+ do"),
        ({"details": {"sparsity": 0.2}}, "made with sparsity 0.2, and"),
        ({"granularity": "filter"}, "0 of 16 coupled channels|coupled channels are masked"),
        ({"granularity": "1:2", "details": {"sparsity": 0.5}}, "the mask is not 1:2"),
    ]
    for changes, says in wrong:
        with pytest.raises(MaskError, match=says):
            check_stated(restated(mask, **changes), model, NET.input_shape)
    with pytest.raises(ConfigError, match="unknown scope"):
        check_stated(restated(mask, scope="layr"), model, NET.input_shape)
    # nothing is stated that un-pruning could repeat, so nothing is contradicted
    check_stated(restated(mask, scope="layer", criterion="unknown"), model, NET.input_shape)
    check_stated(restated(mask, scope="layer", layers=()), model, NET.input_shape)


def test_a_wrong_statement_is_refused_at_adoption(tmp_path: Path) -> None:
    model = NET.build(1)
    mask = made(model, Rule("magnitude", "weight", "global", ALL, 0.7))
    path = tmp_path / "w.safetensors"
    export_dense(model, mask, path)
    read_arrived(NET, path, mask="zeros", pruned=PrunedBy("magnitude", "global", ALL))
    with pytest.raises(MaskError, match="the stated scope is layer"):
        read_arrived(NET, path, mask="zeros", pruned=PrunedBy("magnitude", "layer", ALL))
    restated(mask, details={"sparsity": 0.2}).save(tmp_path / "m.safetensors")
    with pytest.raises(MaskError, match=r"made with sparsity 0\.2"):
        read_arrived(NET, path, mask=tmp_path / "m.safetensors")


def test_a_layer_left_out_of_the_mask_is_no_contradiction(tmp_path: Path) -> None:
    """The first layer was left dense, and the mask does not name it: the other layers alone are compared."""
    from safetensors.torch import save_file

    model = NET.build(1)
    mask = made(model, Rule("magnitude", "weight", "layer", ALL, 0.7))
    some = Mask({n: a for n, a in mask.alive.items() if n != "blocks.0.0.weight"}, mask.provenance)
    assert 0 < len(some.alive) < len(mask.alive)
    save_file(to_torch_prune(plain_state(model), some), str(tmp_path / "w.safetensors"))
    found = read_arrived(NET, tmp_path / "w.safetensors", pruned=PrunedBy("magnitude", "layer", ALL)).mask
    assert found is not None
    assert set(found.alive) == set(some.alive)


def test_the_owner_completes_a_mask_file_that_does_not_say(tmp_path: Path) -> None:
    model = NET.build(1)
    mask = made(model, Rule("magnitude", "weight", "layer", ALL, 0.7))
    path = tmp_path / "w.safetensors"
    export_dense(model, mask, path)
    Mask(mask.alive, MaskProvenance("unknown")).save(tmp_path / "unknown.safetensors")
    told = PrunedBy("magnitude", "layer", ALL)
    found = read_arrived(NET, path, mask=tmp_path / "unknown.safetensors", pruned=told).mask
    assert found is not None
    assert rule_of(found) == Rule("magnitude", "weight", "layer", ALL, mask.sparsity)
    plain = read_arrived(NET, path, mask=tmp_path / "unknown.safetensors").mask
    assert plain is not None
    assert plain.provenance.criterion == "unknown"
    mask.save(tmp_path / "known.safetensors")
    assert read_arrived(NET, path, mask=tmp_path / "known.safetensors", pruned=told).mask is not None
    with pytest.raises(MaskError, match=r"criterion magnitude, model\.pruned says SNIP"):
        read_arrived(NET, path, mask=tmp_path / "known.safetensors", pruned=PrunedBy("SNIP", "layer", ALL))


@pytest.mark.parametrize("scope", ["layer", "erk"])
@pytest.mark.parametrize("around", [False, True])
def test_a_mask_that_a_method_thinned_arrives(
    dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime, tmp_path: Path,
    scope: str, around: bool,
) -> None:  # fmt: skip
    """Its shares are no rule's any more; those of a mask that nobody thinned are compared as before."""
    sparse = prune(dense, digits, sparsity=0.6, layers=ALL, scope=scope, schedule="one-shot", runtime=cpu)
    options = {"step": "proximal", "gamma": 1.0, "epochs": 3, "learning_rate": 0.05}
    method = get_method("l1-sparse", **options)
    if around:
        method = get_method("Un-prune", rule="magnitude", method="l1-sparse", method_options=options)
    after = method.forget(sparse, request_20, Context(digits, cpu, seed=1)).trained
    assert sparse.mask is not None
    assert after.mask is not None
    assert after.mask.kept < sparse.mask.kept
    after.mask.save(tmp_path / "m.safetensors")
    export_dense(after.model, after.mask, tmp_path / "w.safetensors")
    blueprint = Architecture.from_json(dense.provenance.architecture)
    found = read_arrived(blueprint, tmp_path / "w.safetensors", mask=tmp_path / "m.safetensors").mask
    assert found is not None
    assert found.hash() == after.mask.hash()
    silent = {"sparsity": after.mask.provenance.details["sparsity"]}
    with pytest.raises(MaskError, match=f"the stated scope is {scope}"):
        check_stated(restated(after.mask, details=silent), after.model, digits.input_shape)
    exact = {"sparsity": 0.6, "unpruned": {}}
    with pytest.raises(MaskError, match=r"the stated scope is|made with sparsity 0\.6"):
        check_stated(restated(after.mask, details=exact), after.model, digits.input_shape)


def test_a_thinned_mask_records_the_share_of_what_was_ranked(
    dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    """A masked bias was never ranked, and does not count."""
    sparse = prune(dense, digits, sparsity=0.6, layers=ALL, schedule="one-shot", runtime=cpu)
    assert sparse.mask is not None
    bias = {"classifier.bias": torch.arange(10) % 2 == 0}
    model = clone_model(sparse.model)
    mask = Mask({**sparse.mask.alive, **bias}, sparse.mask.provenance)
    mask.apply_(model)
    shrinking = get_method("l1-sparse", step="proximal", gamma=0.05, epochs=2, learning_rate=0.05)
    told = dataclasses.replace(sparse, model=model, mask=mask)
    after = shrinking.forget(told, request_20, Context(digits, cpu, seed=1)).trained.mask
    assert after is not None
    ranked = [alive for name, alive in after.alive.items() if name not in bias]
    dead = sum(int((~alive).sum()) for alive in ranked)
    assert after.provenance.details["sparsity"] == pytest.approx(dead / sum(alive.numel() for alive in ranked))


def test_the_sparsity_of_a_mask_that_states_none(tmp_path: Path) -> None:
    """Of what its rule ranks: channels, not weights; and neither biases nor layers that took no part."""
    model = NET.build(1)
    channels = made(model, Rule("filter-l2", "filter", "global", ("conv",), 0.25))
    assert abs(channels.sparsity - 0.25) > 0.02  # of the weights it is another share
    weights = made(model, Rule("magnitude", "weight", "global", ("conv",), 0.5))
    bias = {"classifier.bias": torch.zeros(5, dtype=torch.bool)}
    others = {"classifier.weight": torch.zeros(5, 10, dtype=torch.bool)}
    pattern = made(model, Rule("magnitude", "1:2", "global", ALL, None))
    for number, (mask, more, wanted) in enumerate(
        [(channels, {}, 0.25), (weights, bias, 0.5), (weights, {**bias, **others}, 0.5), (pattern, bias, 0.5)]
    ):
        silent = Mask({**mask.alive, **more}, dataclasses.replace(mask.provenance, details={}))
        assert ranked_sparsity(silent, model, NET.input_shape) == pytest.approx(wanted, abs=2e-3)
        if pattern is not mask:  # a bias in one is refused, as it has no pattern
            silent.save(tmp_path / f"{number}.safetensors")
            export_dense(model, silent, tmp_path / "w.safetensors")
            found = read_arrived(NET, tmp_path / "w.safetensors", mask=tmp_path / f"{number}.safetensors").mask
            assert found is not None
            assert rule_of(found).sparsity == pytest.approx(wanted, abs=2e-3)
        if "classifier.weight" not in more and mask is not channels:
            assert rule_of(silent).sparsity == pytest.approx(wanted, abs=2e-3)
    silent = restated(channels, details={})
    with pytest.raises(MaskError, match="which share of the coupled channels"):
        rule_of(silent)
    assert rule_of(silent, 0.25).sparsity == 0.25
    assert rule_of(channels, 0.9).sparsity == 0.25
    assert ranked_sparsity(channels, model, NET.input_shape) == 0.25
    with pytest.raises(MaskError, match="does not say which layers took part"):
        ranked_sparsity(restated(silent, layers=()), model, NET.input_shape)


def test_pruning_again_takes_the_share_of_channels(dense: Trained, digits: Records, cpu: Runtime) -> None:
    how: dict[str, Any] = {"layers": ("conv",), "granularity": "filter", "schedule": "one-shot", "runtime": cpu}
    mask = prune(dense, digits, sparsity=0.25, **how).mask
    assert mask is not None
    silent = restated(mask, details={k: v for k, v in mask.provenance.details.items() if k != "sparsity"})
    again = prune_again(dense, digits, silent, runtime=cpu).mask
    assert again is not None
    assert again.hash() == mask.hash()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"details": {"sparsity": "abc"}}, "sparsity is a share in"),
        ({"details": {"sparsity": 1.5}}, "sparsity is a share in"),
        ({"details": {"score_records": "many"}}, "score_records is a number of records"),
        ({"details": {"options": 3}}, "options is a mapping"),
        ({"layers": "conv"}, "layers is a list of names"),
        ({"granularity": 3}, "granularity is a name"),
    ],
)
def test_a_provenance_of_the_wrong_kind_is_a_damaged_file(tmp_path: Path, changes: Any, says: str) -> None:
    provenance = {"criterion": "magnitude", "layers": ["conv"], **changes}
    with pytest.raises(ValueError, match=says):
        MaskProvenance.from_json(provenance)
    from expunge.core.files import read_tensors, write_tensors

    path = tmp_path / "m.safetensors"
    Mask({"w": torch.ones(3, dtype=torch.bool)}, MaskProvenance("magnitude")).save(path)
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {**metadata, "provenance": provenance})
    with pytest.raises(FileError, match=says):
        Mask.load(path)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("m", [4, 6, 7, 16])
def test_patterns_up_to_16_are_recognised(n: int, m: int) -> None:
    """The smallest m that holds; at random one group more or less, and it is no pattern."""
    if n >= m:
        return
    generator = torch.Generator().manual_seed(n * m)
    places = torch.argsort(torch.rand(40, 3, m, generator=generator), dim=2)
    alive = (places < n).reshape(40, 3 * m)
    found = pattern_of({"w": alive, "dense": torch.ones(4, 3, dtype=torch.bool)})
    assert found is not None
    assert found[0] * m == found[1] * n
    assert m % found[1] == 0
    if found == (n, m):
        assert recognise({"w.weight": alive.float()}).granularity == f"{n}:{m}"
    broken = alive.clone()
    broken[3, 0] ^= True
    assert pattern_of({"w": broken}) is None
    assert pattern_of({"w": torch.ones(4, 4, dtype=torch.bool)}) is None
