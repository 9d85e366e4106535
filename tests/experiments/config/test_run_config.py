"""Configurations: values, and positions in errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import ConfigError
from expunge.experiments.config.run_config import check_config, load_config
from expunge.experiments.config.yaml_source import parse_value, parse_yaml

GOOD = """\
data:
  source: digits
model:
  name: mlp
training:
  recipe: one-cycle
  learning_rate: 1e-2
sparsity:
  sparsity: 0.9
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_defaults_and_overrides(tmp_path: Path) -> None:
    overrides = ["training.epochs=3", "seed=7", "sparsity=null", "method.name=FT", "forget={by: class, index: 0}"]
    config = load_config(write(tmp_path, GOOD), overrides)
    assert config.training.extra_keys == {"learning_rate": 0.01, "epochs": 3}
    assert config.seed == 7
    assert config.split.validation == 0.1
    assert config.sparsity is None
    assert config.method is not None
    assert config.method.name == "FT"
    assert config.forget is not None
    assert config.forget.extra_keys == {"index": 0}


@pytest.mark.parametrize(
    ("change", "where", "what", "hint"),
    [
        (("  name: mlp", "  nmae: mlp"), "run.yaml:4", "unknown key 'model.nmae'", "did you mean 'model.name'?"),
        (("model:", "modle:"), "run.yaml:3", "unknown key 'modle'", "did you mean 'model'?"),
        (("sparsity: 0.9", "sparsity: 1.5"), "run.yaml:9", "sparsity.sparsity: input should be less than 1", ""),
        (("  source: digits", "  dir: here"), "run.yaml:1", "the key 'data.source' is missing", ""),
        (("data:\n  source: digits", "data: digits"), "run.yaml:1", "data:", ""),
        (("  name: mlp", "  name: mlp\n  name: mlp"), "run.yaml:5", "is a duplicate (first in line 4)", ""),
        (("  name: mlp", "  name: [mlp"), "run.yaml:5", "is not YAML", ""),
        (("rate: 1e-2", "rate: .nan"), "run.yaml:7", "training.learning_rate: is nan, not a finite number", ""),
        (("mlp", "mlp\n  options: {a: [1, .inf]}"), "run.yaml:5", "model.options.a.1: is inf, not a finite number", ""),
    ],
)
def test_errors_name_file_line_and_key(
    tmp_path: Path, change: tuple[str, str], where: str, what: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, GOOD.replace(change[0], change[1], 1)))
    assert str(caught.value).startswith(f"{tmp_path}/{where}: ")
    assert what in str(caught.value)
    assert hint in str(caught.value)


def test_errors_of_overrides_name_the_override(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=r"override model\.nam=x: unknown key"):
        load_config(path, ["model.nam=x"])
    with pytest.raises(ConfigError, match=r"has the form dotted\.key=value"):
        load_config(path, ["model.name"])
    with pytest.raises(ConfigError, match="seed is a value, so it has no key 'x'"):
        load_config(path, ["seed=1", "seed.x=3"])
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("5", 5), ("no", "no"), ("on", "on"), ("12:30", "12:30"), ("2020-01-01", "2020-01-01"),
     ("'1'", "1"), ("", None), ("[1, a]", [1, "a"]), ("TRUE", True), ("-.inf", float("-inf")), (".5", 0.5)],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    found = parse_value(text, "x")
    assert found == value
    assert type(found) is type(value)


def test_yaml_that_contains_itself() -> None:
    with pytest.raises(ConfigError, match="the nesting is infinite"):
        parse_yaml("a: &x [*x]", "t")


@pytest.mark.parametrize(
    ("section", "sparsity"),
    [
        ({}, 0.95),
        ({"sparsity": None}, 0.95),
        ({"granularity": "filter"}, 0.95),
        ({"granularity": "2:4"}, 0.5),
        ({"granularity": "2:6", "sparsity": None}, 1 - 2 / 6),
        ({"granularity": "1:4", "sparsity": 0.6}, 0.6),
        ({"granularity": "4:2"}, 0.95),
    ],
)
def test_the_default_sparsity_is_that_of_the_pattern(section: dict[str, Any], sparsity: float) -> None:
    """A pattern alone is enough; the registries reject a sparsity that does not fit."""
    values = {
        "data": {"source": "digits"},
        "model": {"name": "mlp"},
        "training": {"recipe": "one-cycle"},
        "sparsity": section,
    }
    found = check_config(values).sparsity
    assert found is not None
    assert found.sparsity == sparsity
    assert found.model_dump()["sparsity"] == sparsity


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\nc: &x [1, *x]\n", "the nesting is infinite"),
        ("a: 1\nb: 2\nc: " + "[" * 200 + "]" * 200 + "\n", "deep"),
        ("a: 1\nb: 2\n[1]: 3\n", "a key must be a plain string"),
    ],
)
def test_errors_of_yaml_name_the_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"file\.yaml:3: .*{message}"):
        parse_yaml(text, "file.yaml")
