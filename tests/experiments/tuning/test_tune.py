"""`bench tune`: equal trials, a stored search, the real request withheld, failures as trials, resuming."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import ConfigError, FileError
from expunge.core.files import read_json
from expunge.core.registry import METHODS
from expunge.core.split import Split
from expunge.data import load_records
from expunge.experiments import load_plan, run_plan, tune_plan
from expunge.experiments.config.tuned import read_tuned
from expunge.methods.base import Method
from expunge.models import load_trained
from expunge.training.predict import accuracy

PLAN = """
name: small
base:
  data: {source: digits}
  split: {limit: 300}
  model: {name: mlp, options: {widths: [16]}}
  training: {recipe: one-cycle, epochs: 6, learning_rate: 0.1}
  forget: {by: random, count: 20}
  method: {name: Retrain}
  runtime: {device: cpu}
grid: {seed: [0, 1]}
variants:
  method:
    Retrain: {method: {name: Retrain}}
    GA: {method: {name: GA}}
    SSD: {method: {name: SSD}}
"""
TUNED = """
  options:
    default: {method.tuned: null}
    tuned: {method.tuned: found.json}
exclude:
  - {method: Retrain, options: tuned}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(PLAN + TUNED)
    return path


def write(path: Path, forget: str, methods: str) -> Path:
    text = PLAN.replace("forget: {by: random, count: 20}", f"forget: {forget}")
    head, _, _ = text.partition("    GA:")
    path.write_text(head + methods)
    return path


def test_every_method_has_equally_many_trials_the_first_with_the_defaults(plan: Path, tmp_path: Path) -> None:
    run = tune_plan(plan, store=tmp_path / "store", trials=3)
    assert run.path == tmp_path / "found.json"
    body = read_tuned(run.path)
    assert [search["method"] for search in body["searches"]] == ["GA", "SSD"], "seeds share a search"
    for search in body["searches"]:
        assert [trial["status"] for trial in search["trials"]] == ["finished"] * 3
        assert search["trials"][0]["options"] == {}
        assert all(set(trial["options"]) == set(search["space"]) for trial in search["trials"][1:])
        best = min(range(3), key=lambda i: (search["trials"][i]["objective"], i))
        assert search["best"] == best
        assert search["seed"] == 0, "the first seed of the plan"


def test_tuned_cells_have_the_best_options_and_are_marked(plan: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expunge bench tune"):
        load_plan(plan)
    run = tune_plan(plan, store=tmp_path / "store", trials=3)
    loaded = load_plan(plan)
    for search in run.body["searches"]:
        wanted = search["trials"][search["best"]]["options"]
        cells = [c for c in loaded.cells if c.labels["method"] == search["method"] and c.labels["options"] == "tuned"]
        assert [cell.config.method.options for cell in cells if cell.config.method] == [wanted, wanted]
    results = run_plan(loaded, store=tmp_path / "store").results
    sources = {(cell["labels"]["method"], cell["labels"]["options"]): cell["options_from"] for cell in results["cells"]}
    assert sources == {
        ("Retrain", "default"): "default", ("GA", "default"): "default", ("GA", "tuned"): "tuned",
        ("SSD", "default"): "default", ("SSD", "tuned"): "tuned",
    }  # fmt: skip


def test_a_tuned_file_of_another_setting_is_refused(plan: Path, tmp_path: Path) -> None:
    tune_plan(plan, store=tmp_path / "store", trials=1)
    load_plan(plan, ["runtime.channels_last=true"])
    for override in ("training.epochs=7", "forget.count=21", "sparsity.sparsity=0.5"):
        with pytest.raises(ConfigError, match="has no search for"):
            load_plan(plan, [override])


def test_a_search_resumes_and_repeats_bit_for_bit(plan: Path, tmp_path: Path) -> None:
    first = tune_plan(plan, store=tmp_path / "store", trials=2)
    text = first.path.read_bytes()
    again = tune_plan(plan, store=tmp_path / "store", trials=2)
    assert again.computed == 0
    assert again.path.read_bytes() == text
    more = tune_plan(plan, store=tmp_path / "store", trials=3)
    assert [s["trials"][:2] for s in more.body["searches"]] == [s["trials"] for s in first.body["searches"]]
    fresh = tune_plan(plan, store=tmp_path / "other", trials=2, output=tmp_path / "other.json")
    assert fresh.path.read_bytes() == text


def test_two_workers_find_the_same(plan: Path, tmp_path: Path) -> None:
    one = tune_plan(plan, store=tmp_path / "one", trials=2, output=tmp_path / "one.json")
    two = tune_plan(plan, store=tmp_path / "two", trials=2, output=tmp_path / "two.json", workers=2)
    assert one.path.read_bytes() == two.path.read_bytes()


def test_options_that_the_plan_sets_are_not_searched(tmp_path: Path) -> None:
    path = write(tmp_path / "p.yaml", "{by: random, count: 20}", "    GA: {method: {name: GA, options: {epochs: 2}}}\n")
    run = tune_plan(path, store=tmp_path / "store", trials=3)
    (search,) = run.body["searches"]
    assert run.path.name == "p.tuned.json"
    assert (search["options"], list(search["space"])) == ({"epochs": 2}, ["learning_rate"])


# ---- the real request is withheld


@pytest.mark.parametrize(
    "forget", ["{by: random, count: 20}", "{by: class, index: 3}", "{by: memorised, count: 10, models: 4}"]
)
def test_no_method_gets_the_real_request(forget: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a method nor the reference is run for a record of D_f, and no score is measured on them as members."""
    path = write(
        tmp_path / "p.yaml",
        forget,
        "    GA: {method: {name: GA}}\n    FT: {method: {name: FT, options: {epochs: 1}}}\n",
    )
    real = run_real_request(path, tmp_path / "real")
    seen: list[set[str]] = []
    plain: Callable[..., Any] = Method.forget

    def forget_and_note(self: Method, trained: Any, request: Any, context: Any) -> Any:
        seen.append(set(request.record_ids))
        assert not seen[-1] & real, "a method was run for the real request"
        assert real <= set(trained.split.retain), "the original model was trained on D_f"
        return plain(self, trained, request, context)

    monkeypatch.setattr(Method, "forget", forget_and_note)
    tune_plan(path, store=tmp_path / "store", trials=2)
    assert len(seen) == 4 + 1, "two methods with two trials, and one reference"


def run_real_request(path: Path, store: Path) -> set[str]:
    """D_f of the plan: the ids of the outcome of a run."""
    run_plan(load_plan(path), store=store, results=store.with_suffix(".json"))
    outcome = next((store / "entries" / "forget").glob("*/outcome.json"))
    return set(read_json(outcome, "expunge.outcome", 2)["request"]["record_ids"])


def test_membership_in_the_real_request_has_no_influence_but_to_be_left_out(tmp_path: Path) -> None:
    """Two real requests with the same proxy give the same search: nothing else of them is used."""
    bodies = []
    pairs = find_real_ids()
    assert len(pairs) == 2
    for number, ids in enumerate(pairs):
        path = write(tmp_path / f"p{number}.yaml", f"{{by: ids, ids: {ids}}}", "    GA: {method: {name: GA}}\n")
        run = tune_plan(path, store=tmp_path / f"store{number}", trials=3)
        bodies.append([search["trials"] for search in run.body["searches"]])
    assert bodies[0] == bodies[1]


def find_real_ids() -> list[list[str]]:
    """Two sets of two retained ids that the draw of the proxy would not take."""
    from expunge.data.selection import forget_proxy
    from expunge.data.splitting import load_or_make_split
    from expunge.experiments.config.run_config import SplitConfig

    records = load_records("digits")
    split: Split = load_or_make_split(records, SplitConfig(limit=300).model_dump(mode="json"))
    names = split.retain.tolist()
    found: list[list[str]] = []
    wanted = forget_proxy(records, split, {"by": "ids", "ids": names[:2]}).record_ids.tolist()
    for start in range(0, len(names) - 1, 2):
        pair = names[start : start + 2]
        if forget_proxy(records, split, {"by": "ids", "ids": pair}).record_ids.tolist() == wanted:
            found.append(pair)
    return found[:2]


def test_validation_accuracy_alone_would_choose_what_forgets_nothing(tmp_path: Path) -> None:
    """Negative control: among the same trials, the best validation accuracy is that of a model that forgot nothing."""
    methods = "    GA: {method: {name: GA, options: {epochs: 10, batch_size: 16}}}\n"
    path = write(tmp_path / "p.yaml", "{by: class, index: 3}", methods)
    overrides = ["split.limit=1200", "training.epochs=15", "model.options.widths=[32]"]
    run = tune_plan(path, overrides, store=tmp_path / "store", trials=8)
    (search,) = run.body["searches"]
    trials = search["trials"]
    kept = {}
    records = load_records("digits")
    for outcome in (tmp_path / "store" / "entries" / "forget").glob("*/outcome.json"):
        found = read_json(outcome, "expunge.outcome", 2)["method"]
        if found["name"] == "GA":
            trained = load_trained(outcome.parent)
            rows = records.rows(trained.split.validation)
            kept[found["options"]["learning_rate"]] = accuracy(trained.model, records, rows)
    rates = [trial["options"].get("learning_rate", 0.0001) for trial in trials]
    by_accuracy = max(range(len(trials)), key=lambda i: (kept[rates[i]], -i))
    least, most = trials[by_accuracy]["scores"]["UA"], trials[search["best"]]["scores"]["UA"]
    assert least <= 10, "the best validation accuracy: the class is still recognised"
    assert most >= 50, "the smallest disparity: the class is forgotten, as by retraining"
    assert trials[by_accuracy]["objective"] > trials[search["best"]]["objective"] + 10


# ---- failures and bad input

BROKEN = '''
import dataclasses

from expunge.core.errors import MethodError
from expunge.methods import Method, register_method


@register_method("Broken", guarantee="empirical", citation="none", space={"scale": [1.0, 2.0, 3.0]})
@dataclasses.dataclass(frozen=True)
class Broken(Method):
    """Fails for one of its options."""

    scale: float = 1.0

    def unlearn(self, task):
        if self.scale == 2.0:
            raise MethodError("the loss is not finite", where="Broken, step 3")
'''


@pytest.fixture
def broken() -> Iterator[None]:
    """Tests after this one do not know the method."""
    yield
    METHODS.remove("Broken")


@pytest.mark.usefixtures("broken")
def test_failures_count_as_trials_and_are_recorded(tmp_path: Path) -> None:
    (tmp_path / "tried.py").write_text(BROKEN)
    path = write(tmp_path / "p.yaml", "{by: random, count: 20}", "    tried: {method: {name: 'tried:Broken'}}\n")
    run = tune_plan(path, store=tmp_path / "store", trials=9)
    (search,) = run.body["searches"]
    failed = [trial for trial in search["trials"] if trial["status"] == "failed"]
    assert len(search["trials"]) == 9
    assert failed
    assert all(trial["options"] == {"scale": 2.0} and trial["objective"] is None for trial in failed)
    assert all("the loss is not finite" in trial["message"] for trial in failed)
    assert search["trials"][search["best"]]["status"] == "finished"
    assert "trials failed" in run.text()
    assert not list(tmp_path.glob(".p-trials-*")), "the file of the trials is removed"


def test_a_search_without_a_finished_trial_leaves_the_options_of_the_plan(tmp_path: Path) -> None:
    methods = "    UNSIR: {method: {name: UNSIR, tuned: found.json}}\n"
    path = write(tmp_path / "p.yaml", "{by: random, count: 20}", methods)
    run = tune_plan(path, store=tmp_path / "store", trials=2)
    (search,) = run.body["searches"]
    assert search["best"] is None
    assert {trial["status"] for trial in search["trials"]} == {"failed"}
    assert "no trial finished" in run.text()
    (cell,) = [cell for cell in load_plan(path).cells if cell.labels["method"] == "UNSIR" and cell.config.seed == 0]
    assert cell.config.method is not None
    assert cell.config.method.options == {}


def test_options_that_do_not_go_together_are_refused_without_running(tmp_path: Path) -> None:
    methods = "    l1: {method: {name: l1-sparse, options: {no_l1_epochs: 8}}}\n"
    path = write(tmp_path / "p.yaml", "{by: random, count: 20}", methods)
    run = tune_plan(path, store=tmp_path / "store", trials=4)
    (search,) = run.body["searches"]
    for trial in search["trials"]:
        assert (trial["status"] == "refused") == (trial["options"].get("epochs", 10) < 8), trial
    assert {trial["status"] for trial in search["trials"]} == {"finished", "refused"}


@pytest.mark.parametrize("sampler", ["optuna:tpe", "optuna:random"])
def test_optuna_starts_with_the_defaults_and_repeats(sampler: str, plan: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    bodies = []
    for name in ("a", "b"):
        run = tune_plan(plan, store=tmp_path / "store", trials=4, sampler=sampler, output=tmp_path / f"{name}.json")
        bodies.append(run.path.read_bytes())
        for search in run.body["searches"]:
            assert search["trials"][0]["options"] == {}
            assert len(search["trials"]) == 4
    assert bodies[0] == bodies[1]
    assert run.computed == 0
    random = tune_plan(plan, store=tmp_path / "store", trials=4, output=tmp_path / "c.json")
    assert [s["trials"] for s in random.body["searches"]] != [s["trials"] for s in run.body["searches"]]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"trials": 0}, "0 trials"),
        ({"sampler": "grid"}, "unknown sampler"),
        ({"overrides": ["forget.by=correct", "forget.count=null"]}, "no proxy"),
    ],
)
def test_bad_input(how: dict[str, Any], message: str, plan: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        tune_plan(plan, store=tmp_path / "store", **how)
    assert not (tmp_path / "found.json").exists()


def test_a_plan_without_anything_to_tune_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p.yaml", "{by: class, index: 3}", "    mask: {method: {name: mask-logit}}\n")
    with pytest.raises(ConfigError, match="no method with a search space"):
        tune_plan(path, store=tmp_path / "store")
    path = write(
        tmp_path / "q.yaml", "{by: class, index: 3}", "    mask: {method: {name: mask-logit, tuned: x.json}}\n"
    )
    with pytest.raises(ConfigError, match="declares no search space"):
        tune_plan(path, store=tmp_path / "store")


def test_a_damaged_file_is_refused(plan: Path, tmp_path: Path) -> None:
    run = tune_plan(plan, store=tmp_path / "store", trials=1)
    body = json.loads(run.path.read_text())
    for change in ({"searches": 3}, {"trials": 0}, {"searches": [{**body["searches"][0], "best": 7}]}):
        run.path.write_text(json.dumps({**body, **change}))
        with pytest.raises(FileError):
            read_tuned(run.path)
        with pytest.raises(ConfigError, match="cannot be read"):
            load_plan(plan)


def test_stages_do_not_see_where_options_come_from(plan: Path, tmp_path: Path) -> None:
    """A tuned cell whose options are the defaults shares its stages with the default cell."""
    tune_plan(plan, store=tmp_path / "store", trials=1)
    run = run_plan(load_plan(plan), store=tmp_path / "store")
    forgets = list((tmp_path / "store" / "entries" / "forget").iterdir())
    assert run.results["cells"]
    assert len(forgets) == (2 + 2 + 2) + (1 + 2), "three methods with two seeds; one reference and two trials"
