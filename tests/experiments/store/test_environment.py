"""The description of the machine: GPUs are in it exactly if the process has used them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.experiments import read_results, render_table
from expunge.experiments.store.environment import hardware

PLANS = Path(__file__).parents[3] / "plans"


def use_cards(monkeypatch: pytest.MonkeyPatch, *names: str, used: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: names[index])


def test_gpus_are_named_once_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    use_cards(monkeypatch, "Card A", "Card B", used=False)
    before = hardware()
    assert "accelerators" not in before
    use_cards(monkeypatch, "Card A", "Card B")
    assert hardware() == {**before, "accelerators": ["Card A", "Card B"]}


def test_the_tables_name_the_gpus() -> None:
    results: dict[str, Any] = dict(read_results(PLANS / "influence-small-cnn.results.json"))
    machine = results["made"]["hardware"][0]
    plain = render_table(results)
    results["made"] = {**results["made"], "hardware": [{**machine, "accelerators": ["Card A"]}]}
    shown = render_table(results)
    assert f"on {machine['processor']}, Card A, {machine['cores']} cores" in shown
    assert shown.replace(", Card A", "") == plain
