"""A laboratory: fake stages without computation, in a separate package that a test can edit, and a fake engine."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from expunge.experiments.scheduler.engines.base import Finished, Task
from expunge.experiments.scheduler.engines.task import run_stage

STAGES = ("data", "train", "prune", "forget", "score")
_STAGE = """
import json, os, time
from pathlib import Path
from expunge.experiments.stages.registry import register_stage
from .helper import weigh

HERE = Path(__file__).parent

@register_stage("{package} {name}", version=1)
def run(inputs, out):
    name = {name!r}
    with open(HERE / "log.txt", "a") as log:
        log.write(f"start {{name}} {{os.getpid()}}\\n")
    from . import behave
    behave.act(name, inputs)
    value = weigh(name, inputs.config, inputs.output_hashes)
    if name == "forget":
        method = inputs.config["method"]
        body = {{
            "kind": "expunge.outcome", "schema_version": 2,
            "request": {{"records": 5, "record_ids": ["a"]}},
            "method": {{"name": method["name"], "options": method["options"],
                        "guarantee": "exact" if method["name"] == "Retrain" else "empirical"}},
            "cost": {{"trained_records": 1, "forward_records": 0, "retain_records": 1, "seconds": 1.0,
                      "passes": 10.0 if method["name"] == "Retrain" else method["options"].get("passes", 1.0)}},
            "hashes": {{"weights": value}},
        }}
        (out / "outcome.json").write_text(json.dumps(body))
    if name == "score":
        number = int(value[:4], 16) % 1000 / 10
        scores = [{{"name": n, "value": number + i, "unit": "%", "direction": "reference", "definition": "fake",
                    "citation": "", "interval": None}} for i, n in enumerate(("UA", "MIA-Efficacy", "RA", "TA", "RTE"))]
        scores.append({{**scores[0], "name": "Passes", "value": 1.0, "unit": "passes"}})
        if "reference" in inputs.directories:
            scores.append({{**scores[0], "name": "Disparity average", "value": number / 10}})
        body = {{"kind": "expunge.scores", "schema_version": 2, "scores": scores}}
        (out / "scores.json").write_text(json.dumps(body))
    (out / "value.txt").write_text(value)
    with open(HERE / "log.txt", "a") as log:
        log.write(f"end {{name}} {{os.getpid()}}\\n")
    return value
"""
_HELPER = '''
import hashlib, json

def weigh(name, config, outputs):
    """The output of a fake stage."""
    text = json.dumps([name, config, outputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
'''
PLAN = """\
name: tiny
description: a plan of fake stages
base:
  data: {source: digits}
  model: {name: mlp}
  training: {recipe: one-cycle, epochs: 2}
grid:
  sparsity:
    dense: null
    "95 %": {sparsity: 0.95}
  forget:
    random: {by: random, fraction: 0.1}
  method:
    Retrain: {name: Retrain}
    FT: {name: FT}
    GA: {name: GA}
  seed: [0, 1]
"""


@dataclasses.dataclass
class Lab:
    """A package of fake stages, a plan and a store."""

    root: Path
    package: str

    @property
    def stages(self) -> dict[str, str]:
        return {name: f"{self.package}.{name}:run" for name in STAGES}

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def plan(self) -> Path:
        return self.root / "tiny.yaml"

    def file(self, name: str) -> Path:
        return self.root / self.package / name

    def started(self) -> list[str]:
        """Names of the stages that were started, in order."""
        path = self.file("log.txt")
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1] for line in lines if line.startswith("start")]

    def behave(self, code: str) -> None:
        """Make stages do something before they finish: the body of `act(name, inputs)`."""
        self.file("behave.py").write_text(f"import os, time\n\ndef act(name, inputs):\n    {code}\n")
        importlib.invalidate_caches()
        if sys.modules.pop(f"{self.package}.behave", None) is not None:
            del sys.modules[self.package].behave  # type: ignore[attr-defined]


def build(root: Path, package: str) -> Lab:
    """Write the package, the plan and stages that do nothing special."""
    lab = Lab(root, package)
    lab.file("").mkdir()
    lab.file("__init__.py").write_text("")
    lab.file("helper.py").write_text(_HELPER)
    for name in STAGES:
        lab.file(f"{name}.py").write_text(_STAGE.format(name=name, package=package))
    lab.behave("pass")
    lab.plan.write_text(PLAN)
    return lab


class InProcessEngine:
    """An engine in this process: runs each task when its turn comes.

    Args:
        before: called with each task; may break something, and returns the message.
    """

    name = "in process"

    def __init__(self, before: Callable[[Task], str] | None = None) -> None:
        self.before = before or (lambda task: task.message)
        self.tasks: list[Task] = []

    def count_workers(self) -> int:
        return 1

    def execute(self, tasks: Sequence[Task]) -> Iterator[Finished]:
        results: dict[str, Finished] = {}
        for task in tasks:
            self.tasks.append(task)
            given = [results[i] for i in task.needs]  # an engine gives results in the order of the dependencies
            error = next((one.error for one in given if one.error), "")
            if not error:
                try:
                    text = run_stage(self.before(task), *(one.result for one in given))
                    assert isinstance(json.loads(text), dict)
                    results[task.id] = Finished(task.id, result=text)
                except ConnectionError as failure:
                    error = f"ConnectionError: {failure}"
            if error:
                results[task.id] = Finished(task.id, error=error)
            yield results[task.id]
