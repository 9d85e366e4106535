"""docs/scaling.md: its table of methods is what the methods say, its configuration is valid, its snippet runs."""

from __future__ import annotations

import re

import yaml
from pages import DOCS, blocks

from expunge.experiments.config.run_config import RuntimeConfig
from expunge.methods import method_names
from expunge.methods.registry import method_class

PAGE = DOCS / "scaling.md"
COMPOSED = {"then", "Un-prune"}


def test_the_table_of_methods() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text.split("### Which methods")[1].split("\n## ")[0].split("\n### ")[0]
    said: dict[str, str] = {}
    for names, answer in re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", table, flags=re.M):
        if names not in ("method", "---"):
            said.update(dict.fromkeys(names.split(", "), answer))
    assert said.keys() == set(method_names())
    for name, answer in said.items():
        reason = method_class(name).one_process
        expected = "as the methods in them" if name in COMPOSED else f"no: {reason}" if reason else "yes"
        assert answer == expected, name


def test_the_configuration_and_the_snippet() -> None:
    found = blocks(PAGE)
    (text,) = [text for language, text in found if language == "yaml"]
    section = RuntimeConfig(**yaml.safe_load(text)["runtime"])
    assert section.keys == {
        "device": "auto", "precision": "float32", "channels_last": False, "devices": 2, "sync_batchnorm": True,
    }  # fmt: skip
    (snippet,) = [text for language, text in found if language == "python"]
    names: dict[str, object] = {}
    exec(compile(snippet, str(PAGE), "exec"), names)
    assert names["trained"].provenance.recipe["epochs"] == 1  # type: ignore[attr-defined]


def test_keys_of_one_process_are_those_of_before() -> None:
    before = {"device": "auto", "precision": "float32", "channels_last": False}
    assert RuntimeConfig().keys == RuntimeConfig(strategy="ddp", sync_batchnorm=False, workers=3).keys == before
    assert RuntimeConfig(compile=True).keys == {**before, "compile": True}
