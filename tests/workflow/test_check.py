"""`check`: every section is checked, and its errors are those that stop a run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import ExpungeError
from expunge.core.registry import SOURCES
from expunge.experiments import load_config, load_plan
from expunge.experiments.config.run_config import check_config
from expunge.workflow import check_inputs, check_plan_cells, check_run, forget

BASE: dict[str, Any] = {
    "data": {"source": "digits"},
    "model": {"name": "small-cnn", "options": {"widths": [4, 8]}},
    "training": {"recipe": "one-cycle"},
    "sparsity": {"sparsity": 0.5},
    "forget": {"by": "random", "count": 5, "hold": ["digits-0000"]},
    "method": {"name": "ft"},
    "runtime": {"device": "cpu"},
}


def levels(values: dict[str, Any]) -> dict[str, str]:
    """The worst level of each subject."""
    order = ("ok", "warning", "error")
    found: dict[str, str] = {}
    for finding in check_run(check_config(values)).findings:
        found[finding.subject] = max(found.get(finding.subject, "ok"), finding.level, key=order.index)
    return found


def test_a_complete_configuration() -> None:
    values = {**BASE, "forget": {"by": "random", "count": 5}}
    check = check_run(check_config(values))
    check_inputs(check_config(values))
    assert (check.usable, check.exit_code) == (True, 0)
    assert {"data", "split", "forget", "training", "sparsity", "method", "runtime"} <= set(levels(values))
    assert levels(values)["method"] == "warning"  # BatchNorm buffers follow the batches
    assert levels({**values, "method": {"name": "FT", "options": {"batch_norm": "frozen"}}})["method"] == "ok"
    assert check.text().endswith("this would run")
    assert check.to_json()["usable"] is True


@pytest.mark.parametrize(
    ("subject", "change"),
    [
        ("data", {"data": {"source": "digitz"}}),
        ("data", {"data": {"source": "mnist", "dir": "/nowhere"}}),
        ("split", {"split": {"file": "/nowhere.json"}}),
        ("split", {"split": {"group": "subject"}}),
        ("forget", {"forget": {"by": "ids", "ids": ["nobody"]}}),
        ("forget", {"forget": {"by": "random", "count": 0}}),
        ("forget", {"forget": {"by": "random", "fraction": 1.0}}),
        ("model", {"model": {"name": "vgg"}}),
        ("model", {"model": {"name": "small-cnn", "options": {"depth": 3}}}),
        ("model", {"model": {"name": "cnn1d"}}),
        ("model", {"model": {"name": "small-cnn", "weights": "/nowhere.safetensors"}}),
        ("training", {"training": {"recipe": "one-cycle", "epochs": -1}}),
        ("sparsity", {"sparsity": {"schedule": "imp-like"}}),
        ("sparsity", {"sparsity": {"layers": ["attention"]}}),
        ("sparsity", {"model": {"name": "mlp"}}),
        ("sparsity", {"sparsity": {"schedule": "imp", "options": {"rounds": 3}}}),
        ("sparsity", {"sparsity": {"schedule": "imp", "options": {"rate": "abc"}}}),
        ("sparsity", {"sparsity": {"schedule": "at-init", "criterion": "SynFlow", "options": {"rounds": 2.7}}}),
        ("sparsity", {"sparsity": {"schedule": "gradual", "keep_weights": True}}),
        ("sparsity", {"sparsity": {"schedule": "at-init", "epochs": "full"}}),
        ("sparsity", {"sparsity": {"criterion": "FPGM"}}),
        ("sparsity", {"sparsity": {"granularity": "2:4", "schedule": "gradual"}}),
        ("sparsity", {"sparsity": {"granularity": "3:7"}}),
        ("sparsity", {"sparsity": {"scope": "layer", "sparsity": 0.999}}),
        (
            "sparsity",
            {
                "model": {"name": "mlp"},
                "sparsity": {"granularity": "filter", "criterion": "batchnorm", "layers": ["linear"]},
            },
        ),
        ("method", {"method": {"name": "Un-prune", "options": {"method_options": 3}}}),
        ("method", {"method": {"name": "Un-prune", "options": {"initial_hash": "abc"}}}),
        ("method", {"method": {"name": "GAA"}}),
        ("method", {"method": {"name": "GA", "options": {"epoch": 1}}}),
        ("runtime", {"runtime": {"device": "cuda:99"}}),
    ],
)
def test_what_is_called_an_error_is_refused(subject: str, change: dict[str, Any]) -> None:
    values = {**BASE, "forget": {"by": "random", "count": 5}, **change}
    found = levels(values)
    assert found[subject] == "error", found
    check = check_run(check_config(values))
    assert check.exit_code == 1
    assert next(finding for finding in check.findings if finding.level == "error").message in check.text()
    with pytest.raises(ExpungeError):
        check_inputs(check_config(values))


def test_one_mistake_does_not_hide_another() -> None:
    values = {**BASE, "data": {"source": "digitz"}, "method": {"name": "GAA"}, "training": {"recipe": "two-cycle"}}
    assert {subject for subject, level in levels(values).items() if level == "error"} == {"data", "training", "method"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sparsity": 0.5}, "162 of 324 weights are kept, in 2 layers"),
        ({"granularity": "filter", "criterion": "filter-l2", "sparsity": 0.5}, "6 of 12 coupled channels are kept"),
        ({"granularity": "2:4"}, "144 of 288 weights are kept, in 1 layer"),
        ({"granularity": "2:6", "layers": ["conv", "linear"]}, "no layer has an input axis that is a multiple of 6"),
    ],
)
def test_what_would_be_kept_is_counted_in_pruned_units(change: dict[str, Any], says: str) -> None:
    values = {**BASE, "forget": {"by": "random", "count": 5}, "sparsity": change}
    text = check_run(check_config(values)).text()
    assert says in text, text


def test_how_it_would_be_pruned_is_named() -> None:
    change = {"criterion": "snip", "granularity": "2:4", "schedule": "omp", "layers": ["linear"]}
    text = check_run(check_config({**BASE, "forget": {"by": "random", "count": 5}, "sparsity": change})).text()
    assert "sparsity: criterion SNIP, granularity 2:4, scope group, schedule omp, layers linear" in text, text


SOURCE = """
import numpy as np
from expunge.data import DataDir, Records, register_source


@register_source("plain-for-check"{files})
def load(directory: DataDir) -> Records:
    \"\"\"Points.\"\"\"
    points = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
    return Records("points", [f"p-{{i}}" for i in range(120)], [i % 2 for i in range(120)], ("no", "yes"), points)
"""


@pytest.mark.parametrize("files", ["", ", files=lambda directory: []"])
def test_a_source_that_does_not_say_what_it_reads(files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning of `check`, for a configuration and for a plan; and a note of the scores, as every caution."""
    monkeypatch.chdir(tmp_path)
    Path("points.py").write_text(SOURCE.format(files=files))
    body = "data: {source: 'points:load'}\nmodel: {name: mlp, options: {widths: [4]}}\n"
    body += "training: {recipe: one-cycle, epochs: 1}\nforget: {by: random, count: 5}\n"
    Path("run.yaml").write_text(body + "method: {name: FT, options: {epochs: 1}}\n")
    base = "".join(f"  {line}\n" for line in body.splitlines())
    Path("plan.yaml").write_text(f"name: small\nbase:\n{base}grid: {{method: [{{name: Retrain}}]}}\n")
    says = "does not say which files it reads"
    with SOURCES.temporary():
        config = load_config("run.yaml")
        text = check_run(config).text()
        result = forget(config, "out")
        plan_text = check_plan_cells(load_plan("plan.yaml")).text()
    sys.modules.pop("points", None)
    assert (says in text, says in plan_text) == (not files, not files), text
    assert any(says in note for note in result.scores["notes"]) == (not files)


def test_growth_from_initial_weights_that_an_adopted_model_does_not_have(tmp_path: Path) -> None:
    """Pruned here, one-shot: missing initial weights for un-pruning are reported before anything runs."""
    from safetensors.torch import save_file

    from expunge import architecture, load_records

    network = architecture("mlp", load_records("digits"), normalise="none", widths=[8]).build(0)
    save_file({name: t.contiguous() for name, t in network.state_dict().items()}, str(tmp_path / "w.safetensors"))
    values = {
        **BASE,
        "forget": {"by": "random", "count": 5},
        "model": {
            "name": "mlp",
            "options": {"widths": [8]},
            "normalise": "none",
            "weights": str(tmp_path / "w.safetensors"),
        },
        "sparsity": {"sparsity": 0.5, "layers": ["linear"], "schedule": "one-shot"},
        "method": {"name": "Un-prune"},
    }
    check = check_run(check_config(values))
    assert "nothing says that the weights were trained on these" in check.text()  # the split is drawn
    assert "neither the original's initial weights nor their seed is available" in check.text()
    assert not check.usable
    with pytest.raises(ExpungeError, match="neither the original's"):
        check_inputs(check_config(values))
    drawn = {**values, "method": {"name": "Un-prune", "options": {"initial": "random"}}}
    assert check_run(check_config(drawn)).usable


def test_a_mask_that_names_fewer_tensors_than_its_layers(tmp_path: Path) -> None:
    """The first convolution was left dense: un-pruning would re-prune the other one alone, and `check` reports it."""
    from safetensors.torch import save_file
    from torch import nn
    from torch.nn.utils import prune

    from expunge import architecture, load_records

    network = architecture("small-cnn", load_records("digits"), normalise="none", widths=[4, 8]).build(0)
    first, second = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    prune.l1_unstructured(second, "weight", amount=0.5)
    values = {**BASE, "forget": {"by": "random", "count": 5}, "sparsity": None}
    model = {"name": "small-cnn", "options": {"widths": [4, 8]}, "normalise": "none"}
    model |= {"weights": str(tmp_path / "w.safetensors")}
    declared = {"criterion": "magnitude", "scope": "layer", "layers": ["conv"]}

    def text() -> str:
        save_file({name: t.contiguous() for name, t in network.state_dict().items()}, str(tmp_path / "w.safetensors"))
        return check_run(check_config({**values, "model": {**model, "pruned": declared}})).text()

    assert "it names 1 of the 2 weight tensors there" in text()
    assert "un-pruning would re-prune the 1 named tensor," in text()
    prune.l1_unstructured(first, "weight", amount=0.5)
    assert "un-pruning would apply the same rule" in text()
    prune.random_unstructured(network.classifier, "bias", amount=0.5)
    assert "classifier.bias is masked too" in text()
    prune.l1_unstructured(first, "weight", amount=0.5)  # of what is left: now 75 % of the first, 50 % of the second
    assert "the recorded scope is layer" in text()
    assert "this would not run" in text()


def test_a_network_that_cannot_be_patched_is_reported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, before anything is trained; other methods and networks pass."""
    text = (
        "from torch import nn\ndef make(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), %s, nn.Linear(8, classes))\n"
    )
    for name, layer in (("curved", "nn.GELU()"), ("bent", "nn.ReLU()")):
        (tmp_path / f"net_{name}.py").write_text(text % layer)
    monkeypatch.chdir(tmp_path)
    values = {**BASE, "sparsity": None, "forget": {"by": "random", "count": 5}, "method": {"name": "patch"}}
    curved = {**values, "model": {"name": "net_curved:make"}}
    own = ["net_curved", "net_bent"]
    check = check_run(check_config(curved, trust=own))
    assert not check.usable
    (wrong,) = (finding for finding in check.findings if finding.level == "error")
    assert wrong.subject == "method"
    assert "GELU is not piecewise linear" in wrong.message
    with pytest.raises(ExpungeError, match="GELU"):
        check_inputs(check_config(curved, trust=own))
    assert levels({**curved, "method": {"name": "GA"}})["method"] != "error"
    assert check_run(check_config({**values, "model": {"name": "net_bent:make"}}, trust=own)).usable


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"name": "FT", "options": {"only": ["layer9"]}}, "layer9"),
        ({"name": "SSD", "options": {"only": ["layer9"]}}, "layer9"),
        ({"name": "CF-k", "options": {"layers": 50}}, "fewer than 50"),
        ({"name": "Un-prune", "options": {"method_options": {"only": ["layer9"]}}}, "layer9"),
        ({"name": "then", "options": {"steps": ["FT", "mixed-privacy"]}}, "was not trained by this|cannot be pruned"),
    ],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_state_that_a_model_to_be_trained_would_lack(method: dict[str, Any], says: str, sparse: bool) -> None:
    """Found before the training, whether the model is pruned or not: `check`, the costs and the run decide together."""
    values = {**BASE, "forget": {"by": "random", "count": 5}, "method": method}
    if not sparse:
        del values["sparsity"]
    config = check_config(values)
    assert re.search(says, check_run(config).text())
    with pytest.raises(ExpungeError, match=says):
        check_inputs(config)
    with pytest.raises(ExpungeError, match=says):
        forget(config, "never")
    row = next(row for row in check_run(config, costs=True, probe=False).methods if row.name == method["name"])
    assert not row.works


def test_a_method_with_a_training_of_its_own_needs_no_state_before_it() -> None:
    values = {**BASE, "forget": {"by": "random", "count": 5}, "method": {"name": "mixed-privacy"}}
    values["model"] = {"name": "mlp", "options": {"widths": [8]}}
    del values["sparsity"]
    assert "not trained by this method" not in check_run(check_config(values)).text()


def test_checkpoints_that_training_would_store_are_not_counted_as_recomputed() -> None:
    values = {**BASE, "forget": {"by": "random", "count": 5}, "method": {"name": "Replay"}}
    del values["sparsity"]
    passes = []
    for keep in ([], [0.2]):
        config = check_config({**values, "training": {"recipe": "one-cycle", "keep_epochs": keep}})
        rows = check_run(config, costs=True, probe=False).methods
        passes.append(next(row for row in rows if row.name == "Replay"))
    assert passes[0].passes > passes[1].passes
    assert (passes[0].at_most, passes[1].at_most) == (True, False)


def test_a_plan_announces_the_guarantee_of_its_cells(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(
        "name: small\n"
        "base: {data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, "
        "forget: {by: class, index: 3}}\n"
        "grid:\n"
        "  method: [{name: Retrain}, {name: FT}]\n"
        "  sparsity: [null, {sparsity: 0.5, layers: [linear]}]\n"
    )
    found = check_plan_cells(load_plan(tmp_path / "plan.yaml")).findings
    said = sorted(finding.message for finding in found if "guarantee" in finding.message)
    assert said == [
        "1 cell: FT, guarantee empirical",
        "1 cell: FT, guarantee empirical",
        "1 cell: Retrain, guarantee empirical",
        "1 cell: Retrain, guarantee exact",
    ]


def test_a_method_that_cannot_change_the_model_is_a_warning(workplace: Path) -> None:
    frozen = {"name": "FT", "options": {"epochs": 0}}
    values = {**BASE, "method": frozen, "forget": {"by": "random", "count": 5}, "split": {"limit": 100}}
    found = check_run(check_config(values)).findings
    assert "FT changes nothing: 0 epochs" in [f.message for f in found if f.level == "warning"]
    values["training"] = {"recipe": "one-cycle", "epochs": 1}
    assert "FT changed nothing" in forget(check_config(values), "out", store="cache").text()
