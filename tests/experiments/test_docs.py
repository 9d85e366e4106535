"""The documentation names every key, and its examples work."""

from __future__ import annotations

import re
from pathlib import Path

import pydantic
import pytest

from expunge.experiments import load_plan
from expunge.experiments.config.plan_file import Claim, PlanFile
from expunge.experiments.config.run_config import RunConfig
from expunge.experiments.config.validation import section_at

DOCS = Path(__file__).parents[2] / "docs"


def _keys(model: type[pydantic.BaseModel], above: tuple[str, ...] = ()) -> list[str]:
    found = []
    for name in model.model_fields:
        below = section_at(RunConfig, (*above, name))
        found += [".".join([*above, name])] if below is None else _keys(below, (*above, name))
    return found


def test_every_key_of_a_configuration_is_documented() -> None:
    named = set(re.findall(r"`([a-z_.]+)`", (DOCS / "formats/config.md").read_text()))
    assert set(_keys(RunConfig)) <= named


def test_every_key_of_a_plan_is_documented() -> None:
    named = set(re.findall(r"`([a-z_]+)`", (DOCS / "formats/plan.md").read_text()))
    assert set(PlanFile.model_fields) | set(Claim.model_fields) <= named


def test_the_example_is_a_plan(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "formats/plan.md").read_text(), flags=re.S)
    path = tmp_path / "small.yaml"
    path.write_text(example)
    assert len(load_plan(path).cells) == 12


@pytest.mark.parametrize("path", sorted((DOCS.parent / "plans").glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_plans_are_plans(path: Path) -> None:
    plan = load_plan(path)
    assert plan.name == path.stem
    assert plan.claims or plan.columns  # a plan without claims lists its columns
