"""What a file declares is counted before it is allocated or computed: patches, networks, plans, tensors, options."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.core.errors import ConfigError, ModelError, TrustError
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained
from expunge.experiments import load_plan
from expunge.experiments.config.validation import Origins
from expunge.models import Architecture, architecture, save_trained
from expunge.patches.trained_state import FACTORY

MEMORY, SECONDS = 3 * 2**29, 30


def limited(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that has 1.5 GiB of memory for data and 30 s of processor time."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for variable in [name for name in environment if name.startswith("EXPUNGE_MAX")]:
        del environment[variable]
    code = (
        "import sys\nfrom pathlib import Path\nfrom expunge.core.errors import ExpungeError\nat = Path(sys.argv[1])\n"
        f"try:\n    {code}\nexcept ExpungeError as error:\n    print(type(error).__name__, error)\n"
        "else:\n    print('read')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, preexec_fn=limit, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


# ---- patched models

BASE = {"name": "mlp", "options": {"widths": [6]}, "input_shape": [4], "classes": 3}


def patched(**changes: Any) -> dict[str, Any]:
    options = {"base": BASE, "correction": "constant", "gate": "exact", "count": 0, "groups": 0, **changes}
    return {"name": FACTORY, "factory": FACTORY, "options": options, "input_shape": [4], "classes": 3}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 10**8, "groups": 1}, "the patches have .* bytes; the limit is"),
        ({"count": 10**12, "groups": 1}, "is not a number of patches"),
        ({"count": 2, "groups": 10**8}, "100000000 groups of 2 patches"),
        ({"count": True, "groups": 1}, "is not a number of patches"),
        ({"count": "2", "groups": 1}, "is not a number of patches"),
        ({"count": -1}, "is not a number of patches"),
        ({"correction": "x"}, "known: constant, minimal, li2025"),
        ({"gate": None}, "known: exact, soft"),
        ({"base": patched()}, "a model without patches"),
        ({"base": 3}, "a model without patches"),
    ],
)
def test_a_patched_model_is_counted_before_it_is_built(
    changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object, **__: object) -> None:
        raise AssertionError("something was built first")

    blueprint = Architecture.from_json(patched(**changes))
    monkeypatch.setenv("EXPUNGE_MAX_BYTES", "1G")
    monkeypatch.setattr("expunge.patches.trained_state.trace", build)
    monkeypatch.setattr(np, "arange", build)
    with pytest.raises(ModelError, match=words):
        blueprint.build()


def test_a_sent_patched_model(tmp_path: Path) -> None:
    """A model directory of a few kB that declares 10^8 patches: compared with its tensors before it is built."""
    model = Architecture.from_json(BASE).build().eval()
    split = Split(*(np.asarray([f"{part}0"]) for part in "rfvtu"), origin={})
    save_trained(Trained(model, None, split, Provenance(Architecture.from_json(BASE).to_json())), tmp_path / "sent")
    path = tmp_path / "sent" / "trained.json"
    body = json.loads(path.read_text())
    body["provenance"]["architecture"] = patched(count=10**8, groups=1)
    path.write_text(json.dumps(body))
    done = limited("from expunge.models import load_trained; load_trained(at)", str(tmp_path / "sent"))
    assert "ModelError" in done.stdout, done.stderr[-500:]
    assert "records count 100000000, but model.safetensors has 0" in done.stdout


def test_a_configuration_does_not_name_the_entry_of_patched_models() -> None:
    from expunge.data import load_records

    records = load_records("breast-cancer")
    with pytest.raises(TrustError, match="model directories only"):
        architecture(FACTORY, records, **patched()["options"])
    with pytest.raises(TrustError, match="never called"):
        load_records("python", factory=FACTORY, arguments={"input_shape": (4,), "classes": 3, **patched()["options"]})


# ---- networks


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("resnet18", {"width": 256}, (3, 180, 180)),
        ("small-cnn", {"widths": [1300] * 16}, (3, 200, 200)),
        ("vgg16-bn", {}, (3, 352, 352)),
    ],
)
def test_a_forward_pass_is_counted_first(
    name: str, options: dict[str, Any], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(module: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        assert x.device.type == "meta", "the network ran"
        return forward(module, x)

    forward = torch.nn.Conv2d.forward
    monkeypatch.setattr(torch.nn.Conv2d, "forward", refuse)
    with pytest.raises(ModelError, match=r"multiply-adds; the limit is 34,359,738,368"):
        Architecture(name, options, shape, 10).build()


def test_multiply_adds_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """mlp 4-6-3: 4 x 6 + 6 x 3 multiply-adds, and at most a few numbers for the other layers."""
    network = Architecture("mlp", {"widths": [6]}, (4,), 3)
    monkeypatch.setenv("EXPUNGE_MAX_WORK", "41")
    with pytest.raises(ModelError, match="multiply-adds"):
        network.build()
    monkeypatch.setenv("EXPUNGE_MAX_WORK", "80")
    network.build()


# ---- plans

PLAN = """\
name: p
base:
  data: {{source: digits, options: {{x: "{long}"}}}}
  model: {{name: mlp}}
  training: {{recipe: one-cycle}}
  forget: {{by: random, fraction: 0.1}}
  method: {{name: Retrain}}
grid: {{seed: [{seeds}]{more}}}
{variants}"""


def plan(at: Path, *, long: int = 1, seeds: int = 2, more: str = "", variants: str = "") -> Path:
    (at / "plan.yaml").write_text(
        PLAN.format(long="x" * long, seeds=", ".join(map(str, range(seeds))), more=more, variants=variants)
    )
    return at / "plan.yaml"


def test_a_plan_whose_cells_copy_a_long_text(tmp_path: Path) -> None:
    path = plan(tmp_path, long=900_000, seeds=600)
    with pytest.raises(ConfigError, match=r"characters in all cells; the limit is"):
        load_plan(path)


def test_the_largest_plan_takes_little_memory(tmp_path: Path) -> None:
    """500 MB in all cells, of which one is held at a time."""
    path = plan(tmp_path, long=800_000, seeds=600)
    done = limited("from expunge.experiments import load_plan; load_plan(at)", str(path))
    assert done.stdout == "read\n", (done.stdout, done.stderr[-500:])


def test_an_alias_of_a_long_text_counts_as_the_text(tmp_path: Path) -> None:
    aliases = ", ".join(["*x"] * 1000)
    (tmp_path / "a.yaml").write_text(
        f'data: {{source: digits, options: {{x: &x "{"x" * 500_000}", y: [{aliases}]}}}}\n'
    )
    with pytest.raises(ConfigError, match="with every alias expanded, at least"):
        load_plan(tmp_path / "a.yaml")


def test_a_plan_that_sets_many_keys_in_many_cells(tmp_path: Path) -> None:
    keys = ", ".join(f"method.options.k{number}: 1" for number in range(900))
    variants = f"variants: {{v: {{a: {{{keys}}}, b: {{{keys}}}}}}}\n"
    with pytest.raises(ConfigError, match="keys set in all cells; the limit is 1,000,000"):
        load_plan(plan(tmp_path, seeds=1_000, variants=variants))


def test_setting_keys_takes_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are counted, not seconds: twice as many keys, twice as many look-ups."""
    from expunge.experiments.config.run_config import set_key

    counts = {}
    for keys in (100, 200, 400):
        steps = 0

        def trace(frame: object, event: str, argument: object) -> Any:
            nonlocal steps
            steps += 1
            return trace

        values: dict[str, Any] = {}
        origins = Origins("here")
        sys.settrace(trace)
        try:
            for number in range(keys):
                set_key(values, f"method.options.k{number}", 1, origins, "there")
        finally:
            sys.settrace(None)
        counts[keys] = steps
    assert counts[400] - counts[200] <= 2.05 * (counts[200] - counts[100])


def test_origins_are_those_of_the_longest_path() -> None:
    origins = Origins("base")
    origins.set(("a", "b", "c"), "c")
    assert origins.find(("a", "b", "c", 0)) == ("c", (0,))
    assert origins.find(("a", "b")) == ("base", ("a", "b"))
    origins.set(("a",), "a")
    assert origins.find(("a", "b", "c")) == ("a", ("b", "c")), "what was set below is replaced"
    origins.set(("a", "b"), "b")
    assert origins.find(("a", "b", "c")) == ("b", ("c",))
    assert Origins().find(("x",)) == (None, ("x",))


def test_the_hash_of_a_plan_is_that_of_the_whole_text(tmp_path: Path) -> None:
    from expunge.core.hashing import hash_json
    from expunge.experiments.config.run_config import canonical_config

    found = load_plan(plan(tmp_path, seeds=3))
    cells = [{"labels": cell.labels, "config": canonical_config(cell.config)} for cell in found.cells]
    body = {"cells": cells, "reference": "Retrain", "passes_limit": 0.1, "claims": []}
    assert found.hash == hash_json(body)


@pytest.mark.parametrize("key", ["x" * 600, "seed" + ".x" * 50])
def test_long_labels_and_deep_keys(tmp_path: Path, key: str) -> None:
    deep = "." in key
    path = plan(tmp_path, variants=f"variants: {{v: {{a: {{{key}: 1}}}}}}\n" if deep else "",
                more="" if deep else f", split.file: [{key}]")  # fmt: skip
    with pytest.raises(ConfigError, match="parts; the limit is 40" if deep else "600 characters; the limit is 500"):
        load_plan(path)
