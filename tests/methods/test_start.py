"""Where retraining starts: declared, kept or refused, and what the guarantee then says."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from half_frozen import FROZEN, RECIPE, frozen_kept, network, register, values
from safetensors.torch import save_file

from expunge.core.errors import ExpungeError, FileError, MethodError, ModelError
from expunge.core.registry import METHODS, MODELS
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.experiments import load_config
from expunge.methods import Context, get_method
from expunge.models import Architecture, InitialWeights, adopt_plain_weights, architecture, load_trained, save_trained
from expunge.training import Runtime, train
from expunge.workflow import check_run, forget


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    with MODELS.temporary(), METHODS.temporary():
        register()
        yield


@pytest.fixture
def half(digits: Records, digits_split: Split, cpu: Runtime) -> Trained:
    return train(digits, digits_split, network(digits), recipe=RECIPE, seed=1, runtime=cpu)


@pytest.fixture
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=4)


# ---- guarantees


def test_a_frozen_layer_that_was_drawn_from_the_seed_is_exact(
    half: Trained, request_20: ForgetRequest, context: Context
) -> None:
    for seeds in ("original", "new"):
        outcome = get_method("Retrain", seeds=seeds).forget(half, request_20, context)
        assert outcome.guarantee == "exact"
        assert outcome.relative_to is None
        assert "2 frozen tensors kept" in outcome.trained.provenance.history[-1]
        assert "weights" not in outcome.recomputed


def imported(digits: Records, split: Split, directory: Path, blueprint: Architecture, seed: int = 9) -> Trained:
    """A model from elsewhere: its frozen layer is not the one that the network draws."""
    torch.manual_seed(seed)
    model = network(digits).build(seed)
    with torch.no_grad():
        model.head.weight.add_(torch.randn(10, 16))
    save_file(model.state_dict(), directory / "weights.safetensors")
    return adopt_plain_weights(blueprint, directory / "weights.safetensors", digits, split, recipe=RECIPE.to_json())


def test_an_imported_backbone_is_kept_and_not_called_exact(
    digits: Records, digits_split: Split, request_20: ForgetRequest, context: Context, tmp_path: Path
) -> None:
    original = imported(digits, digits_split, tmp_path, network(digits))
    outcome = get_method("Retrain", seeds="new").forget(original, request_20, context)
    assert frozen_kept(original, outcome.trained)
    assert outcome.guarantee == "empirical"
    assert "origin that is not declared (backbone.bias): declare" in outcome.trained.provenance.history[-1]


def test_a_fixed_frozen_layer_is_exact_only_if_it_is_declared(
    digits: Records, digits_split: Split, request_20: ForgetRequest, context: Context, cpu: Runtime
) -> None:
    original = train(digits, digits_split, network(digits, fixed=True), recipe=RECIPE, seed=1, runtime=cpu)
    outcome = get_method("Retrain").forget(original, request_20, context)
    assert (outcome.guarantee, frozen_kept(original, outcome.trained)) == ("empirical", True)


def test_a_trained_layer_that_no_seed_draws_is_exact_only_if_it_is_declared(
    digits: Records, digits_split: Split, request_20: ForgetRequest, context: Context, cpu: Runtime, tmp_path: Path
) -> None:
    """A factory that loads pretrained weights to fine-tune them."""
    start = declare(digits, tmp_path)
    found = []
    for options in ({"file": start.file}, {"initial": start}):
        blueprint = network(digits, frozen=False, **options)
        original = train(digits, digits_split, blueprint, recipe=RECIPE, seed=1, runtime=cpu)
        for seeds in ("original", "new"):
            outcome = get_method("Retrain", seeds=seeds).forget(original, request_20, context)
            noted = "2 tensors of an origin" in outcome.trained.provenance.history[-1]
            noted |= "1 tensor of an origin" in outcome.trained.provenance.history[-1]
            found.append((outcome.guarantee, outcome.relative_to is not None, noted))
    assert found == [("empirical", False, True)] * 2 + [("exact", True, False)] * 2


def declare(digits: Records, directory: Path, seed: int = 9) -> InitialWeights:
    """A pretrained backbone in a file."""
    state = network(digits).build(seed).state_dict()
    save_file({name: state[name] for name in sorted(FROZEN)}, directory / "start.safetensors")
    return InitialWeights.declare(directory / "start.safetensors")


def test_a_declared_start_is_exact_relative_to_it(
    digits: Records, digits_split: Split, request_20: ForgetRequest, context: Context, cpu: Runtime, tmp_path: Path
) -> None:
    start = declare(digits, tmp_path)
    assert start.hash == hashlib.sha256((tmp_path / "start.safetensors").read_bytes()).hexdigest()
    original = train(digits, digits_split, network(digits, initial=start), recipe=RECIPE, seed=1, runtime=cpu)
    assert torch.equal(values(original)["backbone.weight"], network(digits).build(9).backbone.weight)
    save_trained(original, tmp_path / "model")
    loaded = load_trained(tmp_path / "model")
    outcome = get_method("Retrain", seeds="new").forget(loaded, request_20, context)
    assert outcome.guarantee == "exact"
    assert outcome.relative_to == {"file": start.file, "hash": start.hash}
    assert "exact relative to the declared start" in repr(outcome)
    body = outcome.to_json()
    assert body["method"]["relative_to"] == outcome.relative_to
    ft = get_method("FT", epochs=1).forget(loaded, request_20, context)
    assert (ft.guarantee, ft.to_json()["method"]["relative_to"]) == ("empirical", None)


def test_the_start_of_an_imported_model_is_declared(
    digits: Records, digits_split: Split, request_20: ForgetRequest, context: Context, tmp_path: Path
) -> None:
    start = declare(digits, tmp_path)
    original = imported(digits, digits_split, tmp_path, network(digits, initial=start))
    outcome = get_method("Retrain", seeds="new").forget(original, request_20, context)
    assert (outcome.guarantee, frozen_kept(original, outcome.trained)) == ("exact", True)
    other = imported(digits, digits_split, tmp_path, network(digits, initial=start), seed=10)
    with pytest.raises(MethodError, match="differs from that of the declared start"):
        get_method("Retrain", seeds="new").forget(other, request_20, context)


def test_another_file_or_a_wrong_one_is_refused(digits: Records, tmp_path: Path) -> None:
    start = declare(digits, tmp_path)
    wrong = dataclasses.replace(start, hash="0" * 64)
    with pytest.raises(FileError, match="is not the declared start: its SHA-256 is"):
        network(digits, initial=wrong).build(0)
    blueprint = network(digits, initial=start)
    (tmp_path / "start.safetensors").unlink()
    blueprint.build_blank()  # to load a saved model, the file is not needed
    with pytest.raises(FileError):
        blueprint.build(0)
    for tensors, message in (
        ({"other.weight": torch.ones(2)}, "no such tensor"),
        ({"head.weight": torch.ones(11, 16)}, "head.weight is"),
        ({"head.bias": torch.full((10,), torch.nan)}, "NaN"),
    ):
        save_file(tensors, tmp_path / "start.safetensors")
        with pytest.raises(ModelError, match=message):
            network(digits, initial=InitialWeights.declare(tmp_path / "start.safetensors")).build(0)


def test_a_patched_model_is_retrained_as_its_base(mlp: Trained, digits: Records, context: Context) -> None:
    """Before, it started from whatever weights the process had built last, with placeholder patches."""
    first, second = (ForgetRequest(mlp.split.retain[at : at + 2]) for at in (0, 2))
    patched = get_method("patch").forget(mlp, first, context).trained
    outcome = get_method("Retrain").forget(patched, second, context)
    both = ForgetRequest(mlp.split.retain[:4])
    assert outcome.trained.hash == get_method("Retrain").forget(mlp, both, context).trained.hash
    assert (outcome.guarantee, "patches" in outcome.dropped) == ("exact", True)
    assert outcome.trained.provenance.architecture == mlp.provenance.architecture


# ---- starts that are refused


@pytest.mark.parametrize("seeds", ["original", "new"])
def test_a_network_that_starts_from_the_trained_weights_is_refused(
    seeds: str, half: Trained, request_20: ForgetRequest, context: Context, tmp_path: Path, digits: Records
) -> None:
    save_file(half.model.state_dict(), tmp_path / "trained.safetensors")
    blueprint = network(digits, file=str(tmp_path / "trained.safetensors"))
    provenance = dataclasses.replace(half.provenance, architecture=blueprint.to_json())
    loaded = dataclasses.replace(half, provenance=provenance)
    method = get_method("Retrain", seeds=seeds)
    first = next(name for name, parameter in half.model.named_parameters() if parameter.requires_grad)
    with pytest.raises(MethodError, match=rf"weights of the trained model \(\d+ tensors, {re.escape(first)}\)"):
        method.check_state(loaded)
    with pytest.raises(MethodError, match="starts from the weights of the trained model"):
        method.forget(loaded, request_20, context)


def test_a_part_of_the_trained_weights_is_found_after_retraining(
    digits: Records, digits_split: Split, request_20: ForgetRequest, context: Context, cpu: Runtime, tmp_path: Path
) -> None:
    original = train(digits, digits_split, network(digits, frozen=False), recipe=RECIPE, seed=1, runtime=cpu)
    save_file({"backbone.weight": values(original)["backbone.weight"]}, tmp_path / "part.safetensors")
    blueprint = network(digits, frozen=False, file=str(tmp_path / "part.safetensors"))
    provenance = dataclasses.replace(original.provenance, architecture=blueprint.to_json())
    with pytest.raises(MethodError, match=r"1 tensor, backbone\.weight"):
        get_method("Retrain").forget(dataclasses.replace(original, provenance=provenance), request_20, context)


def test_a_retraining_that_changes_nothing_is_refused(
    half: Trained, request_20: ForgetRequest, context: Context
) -> None:
    for change in ({"epochs": 0}, {"learning_rate": 0.0}):
        recipe = {**half.provenance.recipe, **change}
        still = dataclasses.replace(half, provenance=dataclasses.replace(half.provenance, recipe=recipe))
        with pytest.raises(MethodError, match="retraining changed no weight"):
            get_method("Retrain").forget(still, request_20, context)


# ---- commands


TEXT = """
data: {source: digits}
split: {limit: 200}
model: {name: mlp, options: {widths: [6]}%s}
training: {recipe: one-cycle, epochs: 1}
forget: {by: random, count: 5}
method: {name: %s}
runtime: {device: cpu}
"""


def test_a_declared_start_in_a_configuration(tmp_path: Path, digits: Records) -> None:
    start = {"hidden.0.weight": torch.randn(6, 64, generator=torch.Generator().manual_seed(0))}
    save_file(start, tmp_path / "start.safetensors")
    digest = hashlib.sha256((tmp_path / "start.safetensors").read_bytes()).hexdigest()
    declared = f", initial: {{file: {tmp_path / 'start.safetensors'}, hash: {digest}}}"
    (tmp_path / "run.yaml").write_text(TEXT % (declared, "Retrain"))
    config = load_config(tmp_path / "run.yaml")
    assert check_run(config).usable
    result = forget(config, tmp_path / "out", store=tmp_path / "store")
    assert result.outcome["method"]["relative_to"] == {"file": str(tmp_path / "start.safetensors"), "hash": digest}
    assert "guarantee: exact relative to the declared start" in result.text()
    assert "train.initial" in result.outcome["files"]
    assert "relative to the declared start" in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "wrong.yaml").write_text(TEXT % (declared.replace(digest, "ab" * 32), "Retrain"))
    errors = [f.message for f in check_run(load_config(tmp_path / "wrong.yaml")).findings if f.level == "error"]
    assert any("is not the declared start" in message for message in errors)
    with pytest.raises(ExpungeError, match="is not the declared start"):
        forget(load_config(tmp_path / "wrong.yaml"), tmp_path / "other", store=tmp_path / "store")


def test_check_refuses_a_factory_that_loads_the_imported_weights(
    half: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(half.model.state_dict(), weights)
    text = (
        "{data: {source: digits}, split: {limit: 300}, training: {recipe: one-cycle, epochs: 1}, forget: {by: random,"
        f" count: 5}}, method: {{name: FT}}, model: {{name: half-frozen, weights: {weights}, normalise: none%s}}}}"
    )
    found = []
    for options in ("", f", options: {{file: {weights}}}"):
        (tmp_path / "run.yaml").write_text(text % options)
        findings = check_run(load_config(tmp_path / "run.yaml")).findings
        found.append([f.message for f in findings if f.level == "error"])
    assert found[0] == []
    assert "starts from the weights of the trained model" in found[1][0]


def test_the_option_initial_of_a_network(digits: Records, tmp_path: Path) -> None:
    start = declare(digits, tmp_path)
    made = architecture("half-frozen", digits, normalise="none", initial={"file": start.file, "hash": start.hash})
    assert made.initial == start
    assert Architecture.from_json(made.to_json()) == made
    assert "initial" not in architecture("half-frozen", digits, normalise="none").to_json()
