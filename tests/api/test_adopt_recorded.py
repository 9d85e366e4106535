"""A training that a callback recorded: rows, recipe, order and weights reach the methods that repeat it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from own_networks import inputs, make_mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import expunge
from expunge.api import AdoptedModel
from expunge.bridges.recorder import Recorder
from expunge.core.errors import DataError, ExpungeError, ModelError
from expunge.core.trained import Provenance
from expunge.data.records import Records

RECIPE = expunge.Recipe(name="plain", epochs=3, batch_size=50, learning_rate=0.05, momentum=0.9, weight_decay=0.0)


def record(digits: Records, folder: Path, ids: object) -> nn.Module:
    """A plain loop with SGD and a shuffling loader, recorded."""
    torch.manual_seed(0)
    model = make_mlp()
    recorder = Recorder(folder, ids=ids, keep_epochs=(1,))  # type: ignore[arg-type]
    recorder.begin(model, rows=200, tool="plain", recipe=RECIPE)
    loader = DataLoader(TensorDataset(*inputs(digits, range(200))), batch_size=50, shuffle=True)
    recorder.watch(loader)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        for x, y in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
        recorder.end_epoch(model)
    recorder.finish(model, steps=12)
    return model


@pytest.fixture(scope="module")
def recorded(digits: Records, tmp_path_factory: pytest.TempPathFactory) -> tuple[AdoptedModel, nn.Module, Path]:
    folder = tmp_path_factory.mktemp("recorded") / "run"
    model = record(digits, folder, digits.record_ids[:200])
    return expunge.adopt(model, digits, recorded=folder, test=range(300, 390), factory=make_mlp), model, folder


def test_rows_recipe_and_weights_are_read(recorded, digits):
    adopted, _, _ = recorded
    assert set(adopted.split.retain) == set(digits.record_ids[:200])
    assert adopted.trained.provenance.recipe == RECIPE.to_json()
    assert {"initial_weights", "early_checkpoints"} <= set(adopted.trained.state)
    assert adopted.order is not None


def test_the_report_calls_declared_only_what_was_not_recorded(recorded, digits, tmp_path):
    """The rows and the recipe are those of the recording; a recipe that is given beside it is declared."""
    adopted, model, folder = recorded

    def limits_of(adopted):
        result, truth = adopted.forget([1, 2], "FT", epochs=1), adopted.forget([1, 2], "Retrain")
        return result, result.report(tmp_path / "report.html", reference=truth).read_text(encoding="utf-8")

    result, page = limits_of(adopted)
    assert "declared, not recorded" not in page
    assert result.evaluate().about["imported"] == adopted.trained.hash
    assert result.evaluate().about["recorded"] == ["recipe", "split"]
    body = result.outcome.to_json()["provenance"]
    assert body["recorded"] == ["recipe", "split"]
    assert Provenance.from_json(body).recorded == ("recipe", "split")
    own = {"recipe": expunge.get_recipe("one-cycle", epochs=2, batch_size=50), "factory": make_mlp}
    given = expunge.adopt(model, digits, recorded=folder, test=range(300, 390), **own)
    assert "Recipe of the original was declared, not recorded." in limits_of(given)[1]
    plain = expunge.adopt(model, digits, train=range(200), test=range(300, 390), **own)
    assert "Recipe and split of the original were declared, not recorded." in limits_of(plain)[1]
    assert "recorded" not in plain.evaluate([1, 2]).about


def test_the_first_epochs_are_repeated_as_they_were_recorded(recorded):
    """`recomputed` runs the first epoch again, and refuses if it does not end in the recorded checkpoint."""
    adopted, _, _ = recorded
    stored = adopted.forget([1, 2], "Replay", prefix_epochs=1)
    again = adopted.forget([1, 2], "Replay", prefix_epochs=1, prefix="recomputed")
    assert stored.trained.hash == again.trained.hash
    assert stored.trained.hash != adopted.trained.hash
    assert adopted.methods([1, 2])["Rewind"].usable


def test_what_does_not_belong_together_is_refused(recorded, digits, tmp_path):
    _, model, folder = recorded
    with pytest.raises(ModelError, match="not those at the end of the recorded training"):
        expunge.adopt(make_mlp(), digits, recorded=folder)
    with pytest.raises(DataError, match="read 200 records, and train names 100"):
        expunge.adopt(model, digits, recorded=folder, train=range(100))
    with pytest.raises(ExpungeError):
        expunge.adopt(model, digits, recorded=tmp_path / "nowhere")
    other = record(digits, tmp_path / "other", None)
    with pytest.raises(DataError, match="200 of 200 recorded ids are not those"):
        expunge.adopt(other, digits, recorded=tmp_path / "other")
