"""Models that arrive pruned, through the command line: what `check` says, what `forget` makes of them."""

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
TOLD = "model.pruned={criterion: magnitude, layers: [linear]}"


def brought(line: Line, elsewhere: Path, form: str) -> list[str]:
    """Overrides that bring a model at 50 % in one form."""
    model = elsewhere / "pruned"
    mask = Mask.load(model / "mask.safetensors")
    weights = load_file((elsewhere / "trained" if form == "2:4" else model) / "model.safetensors")
    given = [f"split.file={model / 'split.json'}"]
    path = line.place / f"{form.replace(' ', '-')}.safetensors"
    if form == "torch-prune":
        save_file(to_torch_prune(weights, mask), path)
    elif form == "baked zeros":
        save_file({n: t * mask.kept[n] if n in mask.kept else t for n, t in weights.items()}, path)
        given.append("model.mask=zeros")
    elif form == "mask file":
        save_file(weights, path)
        given.append(f"model.mask={model / 'mask.safetensors'}")
    elif form == "2:4":
        names = [name for name, tensor in weights.items() if tensor.dim() > 1]
        keep = {name: torch.arange(weights[name].shape[1]) % 4 < 2 for name in names}
        save_file({n: t.masked_fill(~keep[n], 0.0) if n in keep else t for n, t in weights.items()}, path)
        given.append("model.mask=zeros")
    return [*given, f"model.weights={path}"]


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("torch-prune", "torch.nn.utils.prune tensors (weight_orig, weight_mask): 50.00 % of"),
        ("baked zeros", "zeros in the weights, read as a mask: 50.00 % of"),
        ("mask file", "a mask file: 50.00 % of"),
        ("2:4", "granularity 2:4"),
    ],
)
def test_check_says_in_which_form_a_model_arrives(line: Line, elsewhere: Path, form: str, says: str) -> None:
    given = brought(line, elsewhere, form)
    told = [] if form == "mask file" else [TOLD]
    said = line("check", "config.yaml", *given, *told)
    assert said.code == 0, said.out
    assert says in said.out
    assert "made by magnitude in linear layers" in said.out
    assert "warning  mask" not in said.out
    assert ("semi-structured" in said.out) == (form == "2:4")
    if told:
        silent = line("check", "config.yaml", *given)
        assert silent.code == 0
        assert "Un-prune would refuse to guess" in silent.out
        assert "hint: model.pruned={criterion" in silent.out


def test_zeros_that_nobody_called_a_mask(line: Line, elsewhere: Path) -> None:
    given = [g for g in brought(line, elsewhere, "baked zeros") if not g.startswith("model.mask")]
    said = line("check", "config.yaml", *given)
    assert said.code == 0
    assert "none: baked-zeros" in said.out
    assert "warning  pruning" in said.out
    assert "model.mask=zeros" in said.out
    dense = elsewhere / "trained"
    said = line(
        "check", "config.yaml", f"model.weights={dense / 'model.safetensors'}", f"split.file={dense}/split.json"
    )
    assert "none: dense, 0.00 %" in said.out
    assert "warning  pruning" not in said.out


def test_a_layer_that_arrives_dead_is_warned_of(line: Line, elsewhere: Path) -> None:
    given = brought(line, elsewhere, "torch-prune")
    weights = load_file(line.place / "torch-prune.safetensors")
    name = next(name for name in weights if name.endswith("_mask"))
    save_file({**weights, name: torch.zeros_like(weights[name])}, line.place / "torch-prune.safetensors")
    said = line("check", "config.yaml", *given)
    assert said.code == 0
    assert f"every weight of {name.removesuffix('_mask')} is masked (1 such layers)" in said.out


def test_a_smaller_network(line: Line, elsewhere: Path) -> None:
    from expunge.models import load_trained
    from expunge.sparsity import Rule, make_mask

    trained = load_trained(elsewhere / "trained")
    rule = Rule("filter-l2", "filter", "global", ("linear",), 0.25)
    mask, _ = make_mask(trained.model, rule, input_shape=(1, 8, 8))
    small = shrink(trained.model, mask, (1, 8, 8))
    save_small_model(small, trained, line.place / "small.safetensors")
    given = ["model.weights=small.safetensors", f"split.file={elsewhere / 'trained/split.json'}"]
    said = line("check", "config.yaml", *given, "model.pruned={criterion: filter-l2, layers: [linear]}")
    assert said.code == 0, said.out
    assert "a physically smaller network, restored to the masked network" in said.out
    assert "3 coupled channels can be removed physically" in said.out
    assert line(*FORGET, *given).code == 0


@pytest.mark.parametrize("form", ["torch-prune", "baked zeros", "2:4"])
def test_a_pruned_model_is_unlearned(line: Line, elsewhere: Path, form: str) -> None:
    """Masked weights are +0.0 in what comes out, and the mask lies beside them."""
    said = line(*FORGET, *brought(line, elsewhere, form), TOLD)
    assert said.code == 0, said.err
    out = line.place / "runs/config/unlearned"
    mask, weights = Mask.load(out / "mask.safetensors"), load_file(out / "model.safetensors")
    assert 0.45 < mask.sparsity < 0.55
    for name, alive in mask.kept.items():
        dead = weights[name][~alive]
        assert not dead.any()
        assert not torch.signbit(dead).any()
    assert mask.provenance.criterion == "magnitude"


def nothing_written(line: Line, *arguments: str, says: str) -> None:
    before = {path for path in line.place.rglob("*") if ".expunge" not in path.parts}
    said = line(*arguments)
    assert said.code == 2, said.err
    assert says in said.err, said.err
    assert "Traceback" not in said.err
    assert {path for path in line.place.rglob("*") if ".expunge" not in path.parts} == before
    done = {p.parent.name for p in (line.place / ".expunge").rglob("*")}
    assert not done & {"adopt", "train", "forget", "score"}


def test_what_is_refused(line: Line, elsewhere: Path) -> None:
    hooked = brought(line, elsewhere, "torch-prune")
    weights = load_file(line.place / "torch-prune.safetensors")
    torn = {name: t for name, t in weights.items() if name != next(n for n in weights if n.endswith("_orig"))}
    save_file(torn, line.place / "torn.safetensors")
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
        ([*hooked, TOLD, "method.name=Un-prune", "method.options={}"], "neither the original's initial weights"),
        ([*hooked, "model.pruned={criterion: magnitud}"], "did you mean 'magnitude'"),
        ([*hooked, "model.pruned={layers: [dense]}"], "unknown layer type 'dense'"),
        ([*dense, "model.mask=zeros"], "the model is dense"),
        ([*dense, "sparsity={schedule: imp, layers: [linear]}"], "no rewind checkpoint"),
        ([*dense, "sparsity={schedule: at-init, layers: [linear]}"], "no initial weights on record"),
        (["model.pruned={criterion: magnitude}"], "tells of a weights file"),
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
    before = set(line.place.iterdir())
    said = line(*FORGET, *overrides)
    assert said.code == 2, said.err
    assert says in said.err, said.err
    assert "Traceback" not in said.err
    assert {path.name for path in set(line.place.iterdir()) - before} <= {".expunge"}
    assert not list(line.place.glob(".expunge/entries/forget/*Un-prune*"))
    assert not list((line.place / ".expunge").glob("entries/*/.*")), "a stage was left half-written"
