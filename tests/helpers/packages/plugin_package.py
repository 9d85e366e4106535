"""A package of a stranger: one entry of every kind, installed by a dist-info directory, or beside a plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path

NAME = "expunge_stranger"
FILES = {
    "__init__.py": "",
    "helper.py": "def scale(factor):\n    return 1.0 - factor\n",
    "methods.py": '''
import dataclasses
import torch
from expunge.methods import Method, register_method
from .helper import scale

@register_method("Halve{suffix}", guarantee="empirical", citation="a test")
@dataclasses.dataclass(frozen=True)
class Halve(Method):
    """Halve all weights."""

    factor: float = 0.5

    def unlearn(self, task):
        with torch.no_grad():
            for parameter in task.model.parameters():
                parameter.mul_(scale(self.factor))
''',
    "rules.py": '''
from expunge.methods.unprune import UnpruneRule, register_rule

@register_rule("only-inner{suffix}", uses=())
class OnlyInner(UnpruneRule):
    """Run the inner method."""

    def run(self, state):
        state.unlearn()
''',
    "criteria.py": '''
from expunge.sparsity import register_criterion

@register_criterion("cubes{suffix}", citation="a test")
def cubes(context):
    """|w|^3."""
    return {name: weight.detach().abs() ** 3 for name, weight in context.weights.items()}
''',
    "scopes.py": '''
from expunge.sparsity import get_scope, register_scope

@register_scope("each{suffix}", across_layers=False)
def each(pools, sparsity):
    """Every layer for itself."""
    return get_scope("layer").allocate(pools, sparsity)
''',
    "granularities.py": '''
from expunge.sparsity import Granularity, get_granularity, register_granularity

@register_granularity("single{suffix}", unit_name="weights", counts_weights=True, structured=False)
class Single(Granularity):
    """Single weights."""

    def select(self, ranking, sparsity, scope):
        return get_granularity("weight").select(ranking, sparsity, scope)
''',
    "schedules.py": '''
from expunge.sparsity import register_schedule

@register_schedule("at-once{suffix}", starts_from="trained", scores="dense", trains=False)
def at_once(run):
    """Rank the trained weights and set the lowest to zero."""
    model = run.trained.model
    mask, scores = run.make_mask(model)
    from expunge.core.trained import clone_model
    copy = clone_model(model)
    mask.apply_(copy)
    return run.finish(copy, mask, scores)
''',
    "scores.py": '''
from expunge.evaluation import register_score

@register_score("Doubt{suffix}", unit="%", direction="reference", needs=("predictions",), citation="a test")
def doubt(inputs):
    """100 minus the mean confidence on D_f."""
    return 100.0 - 100.0 * float(inputs.parts.forget.confidence.mean())
''',
    "sources.py": '''
import numpy as np
from expunge.data import Records, register_source

@register_source("two-clouds{suffix}")
def two_clouds(directory, records=80):
    """Two clouds of points in the plane."""
    labels = np.arange(records) % 2
    features = np.random.default_rng(0).normal(size=(records, 2)) + 2.0 * labels[:, None]
    ids = [f"point-{i:03d}" for i in range(records)]
    return Records("two-clouds", ids, labels, ("left", "right"), features.astype(np.float32))
''',
    "models.py": '''
from torch import nn
from expunge.models import register_model

@register_model("two-layers{suffix}")
class TwoLayers(nn.Module):
    """Two linear layers."""

    def __init__(self, input_shape, classes, normalise, width=6):
        super().__init__()
        self.normalise = normalise
        self.layers = nn.Sequential(nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x):
        return self.layers(self.normalise(x))
''',
    "stages.py": '''
from expunge.experiments import register_stage
from expunge.experiments.stages import score

@register_stage("marked-score{suffix}", version=3, uses=("scores",))
def run(inputs, out):
    """Score as always, and leave a mark."""
    (out / "mark.txt").write_text("here")
    return score.run(inputs, out)
''',
}
#: Group of entry points, name and place of the entries.
ENTRIES = {
    "methods": ("Halve", "methods:Halve"),
    "unprune_rules": ("only-inner", "rules:OnlyInner"),
    "criteria": ("cubes", "criteria:cubes"),
    "scopes": ("each", "scopes:each"),
    "granularities": ("single", "granularities:Single"),
    "schedules": ("at-once", "schedules:at_once"),
    "scores": ("Doubt", "scores:doubt"),
    "sources": ("two-clouds", "sources:two_clouds"),
    "models": ("two-layers", "models:TwoLayers"),
    "stages": ("marked-score", "stages:run"),
}
PLAN = """\
name: stranger
base:
  data: {{source: "{sources}"}}
  model: {{name: "{models}", normalise: none}}
  training: {{recipe: one-cycle, epochs: 2, batch_size: 16}}
  sparsity:
    {{sparsity: 0.5, layers: [linear], criterion: "{criteria}", granularity: "{granularities}", scope: "{scopes}",
      schedule: "{schedules}"}}
  forget: {{by: random, count: 5}}
  evaluation: {{scores: ["{scores}"]}}
  runtime: {{device: cpu}}
columns: [UA, "{scores}"]
grid:
  method:
    Retrain: {{name: Retrain, options: {{mask: re-prune}}}}
    Halve: {{name: "{methods}", options: {{factor: 0.25}}}}
    around: {{name: Un-prune, options: {{method: "{methods}", rule: "{unprune_rules}"}}}}
"""


@dataclasses.dataclass(frozen=True)
class Stranger:
    """The package: its directory, and a plan that uses all of it."""

    folder: Path
    plan: Path

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a string in one of its files."""
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


def write_package(site: Path, name: str = NAME, suffix: str = "") -> Path:
    """Write the modules; `suffix` is added to every registered name."""
    folder = site / name
    folder.mkdir(parents=True)
    for file, text in FILES.items():
        (folder / file).write_text(text.replace("{suffix}", suffix))
    return folder


def write_entries(site: Path, entries: dict[str, str], distribution: str = NAME, version: str = "1.0") -> Path:
    """Write the dist-info directory of a distribution; `entries` maps `group name` to `module:attribute`."""
    info = site / f"{distribution}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    lines = []
    for key, place in entries.items():
        group, _, name = key.partition(" ")
        lines.append(f"[expunge.{group}]\n{name} = {place}\n")
    (info / "entry_points.txt").write_text("\n".join(lines))
    return info


def install(site: Path, plan: Path) -> Stranger:
    """Install the package as pip would, and write a plan that names its entries."""
    folder = write_package(site)
    write_entries(site, {f"{group} {name}": f"{NAME}.{place}" for group, (name, place) in ENTRIES.items()})
    plan.write_text(PLAN.format(**{group: name for group, (name, _) in ENTRIES.items()}))
    return Stranger(folder, plan)


def put_beside(plan: Path, package: str = "near_stranger") -> Stranger:
    """Put the package beside a plan that names its entries by their places; nothing is installed."""
    folder = write_package(plan.parent, package, " near")
    plan.write_text(PLAN.format(**{group: f"{package}.{place}" for group, (_, place) in ENTRIES.items()}))
    return Stranger(folder, plan)
