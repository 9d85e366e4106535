"""The pages of file formats: every key of a file is on its page, and what a page says how to do can be done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from snippets import blocks, follow

from expunge.core.files import read_tensors, write_tensors
from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.evaluation import compute_confidence_histogram, predict_parts, tabulate_classes
from expunge.methods import Context, get_method
from expunge.models import save_trained
from expunge.training import Runtime

FORMATS = Path(__file__).parents[1] / "docs" / "formats"


def keys(body: Mapping[str, Any], *deep: str) -> set[str]:
    """Keys of an object, those of the objects under `deep` as `above.key`."""
    found = set()
    for key, value in body.items():
        found |= {f"{key}.{name}" for name in value} if key in deep else {key}
    return found


def documented(page: str) -> set[str]:
    return set(re.findall(r"`([\w.]+)`", (FORMATS / page).read_text()))


@pytest.fixture(scope="module")
def saved(sparse: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("documented") / "model"
    save_trained(sparse, place)
    return place


def test_outcome_page(sparse: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime) -> None:
    outcome = get_method("FT", epochs=1).forget(sparse, request_20, Context(digits, cpu))
    body = outcome.to_json()
    assert keys(body, "request", "method", "cost", "state", "hashes") <= documented("outcome.md")
    assert keys(body["seeds"]) | keys(body["history"][0]) <= documented("outcome.md")


def test_details_page(sparse: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime) -> None:
    parts = predict_parts(sparse, request_20, digits, runtime=cpu)
    body = {"confidence": compute_confidence_histogram(parts), "classes": tabulate_classes(parts), "density": {}}
    named = documented("details.md")
    assert keys(body, "confidence") <= named
    assert keys(body["confidence"]["parts"]) | keys(body["confidence"]["parts"]["forget"]) <= named
    assert keys(body["classes"][0]) | keys(body["classes"][0]["retain"]) <= named


def test_mask_page(saved: Path) -> None:
    _, metadata = read_tensors(saved / "mask.safetensors")
    assert keys(metadata, "provenance") <= documented("mask.md")


def test_hashes_can_be_checked_as_the_page_says(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    (snippet,) = [text for language, text in blocks(FORMATS / "hashes.md") if language == "python"]
    exec(snippet, {})
    monkeypatch.setattr("json.load", lambda file: {"hashes": {"weights": "0" * 64}})
    with pytest.raises(AssertionError):
        exec(snippet, {})


def test_zeros_become_a_mask_as_the_page_says(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparse: Trained
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sparse.mask is not None
    tensors, _ = read_tensors(saved / "model.safetensors")
    for name, alive in sparse.mask.kept.items():
        tensors[name] = torch.where(alive, tensors[name], -0.0)
    write_tensors("model.safetensors", tensors)
    follow(blocks(FORMATS / "mask.md"))
    mask = Mask.load("mask.safetensors")
    made, _ = read_tensors("model.safetensors")
    for name, alive in sparse.mask.kept.items():
        assert torch.equal(mask.kept[name], alive)
        dead = made[name][~alive]
        assert not (dead != 0).any()
        assert not torch.signbit(dead).any()
