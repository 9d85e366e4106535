"""Import of pruned models through the command line: findings of `check`, results of `forget`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import Line
from safetensors.torch import load_file, save_file

from expunge.core.mask import Mask
from expunge.sparsity import save_small_model, shrink
from expunge.sparsity.interop.formats import to_torch_prune

FORGET = ("forget", "config.yaml")
DECLARED = "model.pruned={criterion: magnitude, layers: [linear]}"


def import_overrides(line: Line, elsewhere: Path, format: str) -> list[str]:
    """Overrides that import a model at 50 % sparsity in one format."""
    model = elsewhere / "pruned"
    mask = Mask.load(model / "mask.safetensors")
    weights = load_file((elsewhere / "trained" if format == "2:4" else model) / "model.safetensors")
    given = [f"split.file={model / 'split.json'}"]
    path = line.directory / f"{format.replace(' ', '-')}.safetensors"
    if format == "torch-prune":
        save_file(to_torch_prune(weights, mask), path)
    elif format == "baked zeros":
        save_file({n: t * mask.kept[n] if n in mask.kept else t for n, t in weights.items()}, path)
        given.append("model.mask=zeros")
    elif format == "mask file":
        save_file(weights, path)
        given.append(f"model.mask={model / 'mask.safetensors'}")
    elif format == "2:4":
        names = [name for name, tensor in weights.items() if tensor.dim() > 1]
        keep = {name: torch.arange(weights[name].shape[1]) % 4 < 2 for name in names}
        save_file({n: t.masked_fill(~keep[n], 0.0) if n in keep else t for n, t in weights.items()}, path)
        given.append("model.mask=zeros")
    return [*given, f"model.weights={path}"]


@pytest.mark.parametrize(
    ("format", "says"),
    [
        ("torch-prune", "torch.nn.utils.prune tensors (weight_orig, weight_mask): 50.00 % of"),
        ("baked zeros", "zeros in the weights, read as a mask: 50.00 % of"),
        ("mask file", "a mask file: 50.00 % of"),
        ("2:4", "granularity 2:4"),
    ],
)
def test_check_reports_the_format_of_an_imported_model(line: Line, elsewhere: Path, format: str, says: str) -> None:
    given = import_overrides(line, elsewhere, format)
    declared = [] if format == "mask file" else [DECLARED]
    result = line("check", "config.yaml", *given, *declared)
    assert result.code == 0, result.out
    assert says in result.out
    assert "made by magnitude in linear layers" in result.out
    assert "warning  mask" not in result.out
    assert ("semi-structured" in result.out) == (format == "2:4")
    if declared:
        silent = line("check", "config.yaml", *given)
        assert silent.code == 0
        assert "Un-prune would stop with an error" in silent.out
        assert "hint: declare it, for example model.pruned={criterion" in silent.out


def test_zeros_that_are_not_declared_as_a_mask(line: Line, elsewhere: Path) -> None:
    given = [g for g in import_overrides(line, elsewhere, "baked zeros") if not g.startswith("model.mask")]
    result = line("check", "config.yaml", *given)
    assert result.code == 0
    assert "not declared as pruned" in result.out
    assert "warning  pruning" in result.out
    assert "model.mask=zeros" in result.out
    dense = elsewhere / "trained"
    result = line(
        "check", "config.yaml", f"model.weights={dense / 'model.safetensors'}", f"split.file={dense}/split.json"
    )
    assert "none: dense, 0.00 %" in result.out
    assert "warning  pruning" not in result.out


def test_a_completely_pruned_layer_is_a_warning(line: Line, elsewhere: Path) -> None:
    given = import_overrides(line, elsewhere, "torch-prune")
    weights = load_file(line.directory / "torch-prune.safetensors")
    name = next(name for name in weights if name.endswith("_mask"))
    save_file({**weights, name: torch.zeros_like(weights[name])}, line.directory / "torch-prune.safetensors")
    result = line("check", "config.yaml", *given)
    assert result.code == 0
    assert f"every weight of {name.removesuffix('_mask')} is pruned (1 such layers)" in result.out


def test_a_smaller_network(line: Line, elsewhere: Path) -> None:
    from expunge.models import load_trained
    from expunge.sparsity import Rule, make_mask

    trained = load_trained(elsewhere / "trained")
    rule = Rule("filter-l2", "filter", "global", ("linear",), 0.25)
    mask, _ = make_mask(trained.model, rule, input_shape=(1, 8, 8))
    small = shrink(trained.model, mask, (1, 8, 8))
    save_small_model(small, trained, line.directory / "small.safetensors")
    given = ["model.weights=small.safetensors", f"split.file={elsewhere / 'trained/split.json'}"]
    result = line("check", "config.yaml", *given, "model.pruned={criterion: filter-l2, layers: [linear]}")
    assert result.code == 0, result.out
    assert "a physically smaller network, restored to the masked network" in result.out
    assert "3 coupled channels can be removed physically" in result.out
    assert line(*FORGET, *given).code == 0


@pytest.mark.parametrize("format", ["torch-prune", "baked zeros", "2:4"])
def test_a_pruned_model_is_unlearned(line: Line, elsewhere: Path, format: str) -> None:
    """Masked weights are +0.0 in what comes out, and the mask lies beside them."""
    result = line(*FORGET, *import_overrides(line, elsewhere, format), DECLARED)
    assert result.code == 0, result.err
    out = line.directory / "runs/config/unlearned"
    mask, weights = Mask.load(out / "mask.safetensors"), load_file(out / "model.safetensors")
    assert 0.45 < mask.sparsity < 0.55
    for name, kept in mask.kept.items():
        pruned = weights[name][~kept]
        assert not pruned.any()
        assert not torch.signbit(pruned).any()
    assert mask.provenance.criterion == "magnitude"


def nothing_written(line: Line, *arguments: str, says: str) -> None:
    before = {path for path in line.directory.rglob("*") if ".expunge" not in path.parts}
    result = line(*arguments)
    assert result.code == 2, result.err
    assert says in result.err, result.err
    assert "Traceback" not in result.err
    assert {path for path in line.directory.rglob("*") if ".expunge" not in path.parts} == before
    done = {p.parent.name for p in (line.directory / ".expunge").rglob("*")}
    assert not done & {"adopt", "train", "forget", "score"}


def test_what_is_refused(line: Line, elsewhere: Path) -> None:
    hooked = import_overrides(line, elsewhere, "torch-prune")
    weights = load_file(line.directory / "torch-prune.safetensors")
    torn = {name: t for name, t in weights.items() if name != next(n for n in weights if n.endswith("_orig"))}
    save_file(torn, line.directory / "torn.safetensors")
    dense = [
        f"model.weights={elsewhere / 'trained/model.safetensors'}",
        f"split.file={elsewhere / 'trained/split.json'}",
    ]
    unprune = "method={name: Un-prune, options: {initial: random}}"
    for arguments, says in (
        ([*hooked, "model.mask=zeros"], "has its own mask"),
        ([*hooked, "model.weights=torn.safetensors"], "has no matching weight_orig"),
        ([*hooked, "sparsity={schedule: one-shot, layers: [linear]}"], "the model is sparse already"),
        ([*hooked, unprune], "does not record by which criterion"),
        ([*hooked, DECLARED, "method.name=Un-prune", "method.options={}"], "neither the original's initial weights"),
        ([*hooked, "model.pruned={criterion: magnitud}"], "did you mean 'magnitude'"),
        ([*hooked, "model.pruned={layers: [dense]}"], "unknown layer type 'dense'"),
        ([*dense, "model.mask=zeros"], "the model is dense"),
        ([*dense, "sparsity={schedule: imp, layers: [linear]}"], "no rewind checkpoint"),
        ([*dense, "sparsity={schedule: at-init, layers: [linear]}"], "no recorded initial weights"),
        (["model.pruned={criterion: magnitude}"], "describes a weights file"),
        (["method={name: Un-prune, options: {rule: influence}}", "sparsity={schedule: imp, layers: [linear]}"],
         "ranked weights that were already sparse"),
        (["method={name: Un-prune, options: {rule: influence}}", "sparsity={layers: [linear]}"],
         "sparsity.keep_weights=true"),
    ):  # fmt: skip
        nothing_written(line, *FORGET, *arguments, says=says)
        assert line("check", "config.yaml", *arguments).code in (1, 2), arguments


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sparsity={sparsity: 0.999, layers: [linear]}"], "loses every weight"),
        (["sparsity={sparsity: 0.99, layers: [linear], granularity: filter}"], "loses every weight"),
        (["sparsity={sparsity: 0.9, layers: [linear], granularity: '2:4'}"], "has sparsity 0.5 and no other"),
        (["sparsity={layers: [linear], granularity: '4:2'}"], "n:m needs 0 < n < m"),
        (
            ["sparsity={sparsity: 0.5, layers: [linear], schedule: gradual}", "training.epochs=1"],
            "is too short to prune gradually",
        ),
        (["sparsity={layers: [linear], criterion: FPGM}"], "scores channels, not single weights"),
        (
            ["sparsity={sparsity: 0.5, layers: [linear]}", "method={name: Un-prune, options: {initial_hash: abc}}"],
            "the initial weights do not have the hash",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_pruning_that_cannot_be_done_leaves_no_result(line: Line, overrides: list[str], says: str) -> None:
    """Some of it is known after training only: the message is the same, and no directory of results appears."""
    before = set(line.directory.iterdir())
    result = line(*FORGET, *overrides)
    assert result.code == 2, result.err
    assert says in result.err, result.err
    assert "Traceback" not in result.err
    assert {path.name for path in set(line.directory.iterdir()) - before} <= {".expunge"}
    assert not list(line.directory.glob(".expunge/entries/forget/*Un-prune*"))
    assert not list((line.directory / ".expunge").glob("entries/*/.*")), "a stage was left half-written"
