"""A stranger's package adds an entry of every kind, by entry points or beside a plan; edited code runs again."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile_names import forget_agreements
from plugin_package import ENTRIES, NAME, Stranger, install, put_beside, write_entries, write_package

from expunge.core.errors import ConfigError, ExpungeError, MethodError, TrustError
from expunge.core.registry import CRITERIA, METHODS, MODELS, REGISTRIES, SCORES, SOURCES, plugins
from expunge.experiments import check_plan, get_plan_status, load_config, load_plan, run_plan
from expunge.experiments.scheduler.status import PlanState
from expunge.experiments.stages.registry import load_stage_table
from expunge.experiments.store.store import Store
from expunge.workflow import check_run

Install = Callable[[Path], None]


@contextlib.contextmanager
def clean() -> Iterator[None]:
    """Within the block, entry points are read again; afterwards, strangers are forgotten."""
    plugins._read_entry_points.cache_clear()
    forget_agreements()
    with contextlib.ExitStack() as stack:
        for registry in REGISTRIES.values():
            stack.enter_context(registry.temporary())
        yield
    for module in [name for name in sys.modules if "stranger" in name.partition(".")[0]]:
        del sys.modules[module]
    plugins._read_entry_points.cache_clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on Python's path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    with clean():
        yield folder


@pytest.fixture(params=["installed", "beside"])
def stranger(request: pytest.FixtureRequest, site: Path, tmp_path: Path) -> Stranger:
    plan = tmp_path / "plans" / "plan.yaml"
    plan.parent.mkdir()
    return install(site, plan) if request.param == "installed" else put_beside(plan)


def read_scores(results: Path) -> dict[str, dict[str, float]]:
    """Label of the method to the scores of its cell."""
    cells = json.loads(results.read_text())["cells"]
    return {cell["labels"]["method"]: cell["scores"] for cell in cells}


def find_stale(stranger: Stranger, store: Path) -> set[str]:
    """Stages that would run again: those whose inputs are finished."""
    state = PlanState(load_plan(stranger.plan), Store(store))
    nodes = [n for n in state.graph.nodes.values() if state.ingredients(n) is not None and state.entry(n) is None]
    return {f"{node.stage} {node.config['method']['name']}" if node.stage == "forget" else node.stage for node in nodes}


EDITS = {
    ("sources.py", "2.0 * labels", "3.0 * labels"): {"data"},
    ("models.py", "nn.ReLU()", "nn.Tanh()"): {"train"},
    ("criteria.py", "** 3", "** 5"): {"prune"},
    ("scopes.py", 'get_scope("layer")', 'get_scope("global")'): {"prune"},
    ("granularities.py", "ranking, sparsity, scope)\n", "ranking, sparsity / 2, scope)\n"): {"prune"},
    ("schedules.py", "mask.apply_(copy)", "mask.apply_(copy.eval())"): {"prune"},
    ("methods.py", "scale(self.factor)", "scale(2 * self.factor)"): {"forget HALVE", "forget Un-prune"},
    ("helper.py", "1.0 - factor", "1.0 - factor / 2"): {"forget HALVE", "forget Un-prune"},
    ("rules.py", "state.unlearn()", "state.unlearn(); state.unlearn()"): {"forget Un-prune"},
    ("scores.py", "100.0 - 100.0", "100.0 - 90.0"): {"score"},
}


def test_a_plan_uses_every_kind_and_edited_code_runs_again(stranger: Stranger, tmp_path: Path) -> None:
    store, plan = tmp_path / "store", load_plan(stranger.plan)
    assert check_plan(plan) == []
    run = run_plan(plan, store=store)
    assert run.failures == ()
    scores = read_scores(run.path)
    doubt = next(name for name in scores["Halve"] if "oubt" in name)
    assert 0 < scores["Halve"][doubt] < 100
    assert scores["Halve"][doubt] != scores["Retrain"][doubt]
    assert find_stale(stranger, store) == set()
    halve = plan.cells[1].config.method
    assert halve is not None
    for (file, old, new), expected in EDITS.items():
        before = (stranger.folder / file).read_text()
        stranger.edit(file, old, new)
        # Retrain repeats the pruning, and masks are read for scores: both depend on its code, once their inputs exist.
        stale = {item for item in find_stale(stranger, store) if expected != {"prune"} or item == "prune"}
        assert stale == {item.replace("HALVE", halve.name) for item in expected}, file
        stranger.edit(file, new, old)
        assert (stranger.folder / file).read_text() == before
        (stranger.folder / file).write_text(before + "\n# a comment\n")
        assert find_stale(stranger, store) == set()


def test_workers_and_the_command_line_use_both(site: Path, tmp_path: Path) -> None:
    """Two worker processes: entries of an installed package, and a method beside the plan."""
    stranger = install(site, tmp_path / "plan.yaml")
    write_package(tmp_path, "near_stranger", " near")
    near = '    near: {name: "near_stranger.methods:Halve"}\n'
    stranger.plan.write_text(stranger.plan.read_text() + near)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    command = [sys.executable, "-m", "expunge.cli", "bench", "run", str(stranger.plan), "--store", str(tmp_path / "s")]
    done = subprocess.run(
        [*command, "--workers", "2"], env=environment, cwd=site, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert get_plan_status(load_plan(stranger.plan), store=tmp_path / "s").finished
    assert "Doubt" in done.stdout


def test_plug_ins_can_be_ignored(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = install(site, tmp_path / "plan.yaml")
    monkeypatch.setenv("EXPUNGE_PLUGINS", "0")
    with pytest.raises(ConfigError, match="unknown data source 'two-clouds'"):
        check_plan(load_plan(stranger.plan))


def test_a_stage_of_a_plug_in_takes_the_place_of_a_built_in_one(site: Path, tmp_path: Path) -> None:
    stranger = install(site, tmp_path / "plan.yaml")
    stages, store = {"score": "marked-score"}, tmp_path / "store"
    assert load_stage_table(stages)["score"].version == 3
    assert f"{NAME}.stages" not in sys.modules, "its facts are read from source"
    run = run_plan(load_plan(stranger.plan), store=store, stages=stages)
    assert run.failures == ()
    assert len(list(store.glob("entries/score/*/mark.txt"))) == 3
    assert not get_plan_status(load_plan(stranger.plan), store=store).finished, "the built-in stage has other keys"
    with pytest.raises(ConfigError, match="a plan has no stage 'scoer'"):
        load_stage_table({"scoer": "marked-score"})


def test_names_are_listed_and_described_without_importing(site: Path, tmp_path: Path) -> None:
    install(site, tmp_path / "plan.yaml")
    for plural, (name, place) in ENTRIES.items():
        registry = REGISTRIES[plural]
        assert name in registry.names()
        assert registry.describe(name.upper()).module == f"{NAME}.{place.partition(':')[0]}"
        assert registry.describe(name).summary
    assert not any(module.startswith(NAME) for module in sys.modules)


ENTRY = {"methods Halve": f"{NAME}.methods:Halve"}


def test_broken_plug_ins_name_their_distribution(site: Path) -> None:
    folder = write_package(site)
    write_entries(
        site,
        {
            **ENTRY,
            "criteria gone": f"{NAME}.criteria:gone",
            "scores plain": f"{NAME}.helper:scale",
            "sources clouds": f"{NAME}.sources:two_clouds",
            "models lost": "expunge_stranger_lost.models:Net",
        },
    )
    (folder / "methods.py").write_text("raise RuntimeError('half written')\n")
    wrong = [
        (METHODS, "halve", MethodError, "cannot be imported .RuntimeError: half written."),
        (CRITERIA, "gone", ConfigError, "cannot be imported .AttributeError"),
        (SCORES, "plain", ConfigError, "is not a registered score"),
        (SOURCES, "clouds", ConfigError, "registered as 'two-clouds', but its entry point is named 'clouds'"),
        (MODELS, "lost", ExpungeError, "the module of the plug-in cannot be found"),
    ]
    for registry, name, error, says in wrong:
        with pytest.raises(error, match=says) as caught:
            registry.get(name)
        assert f"{NAME} 1.0" in str(caught.value.where)
    assert METHODS.get("FT").name == "FT", "one broken plug-in does not stop the others"


def test_a_broken_plug_in_is_an_error_of_its_section(site: Path, tmp_path: Path) -> None:
    stranger = install(site, tmp_path / "plan.yaml")
    stranger.edit("criteria.py", "@register_criterion", "@register_citerion")
    with pytest.raises(ConfigError, match="NameError") as caught:
        check_plan(load_plan(stranger.plan))
    assert "sparsity" in str(caught.value.where)
    assert f"{NAME} 1.0" in str(caught.value.where)


def test_duplicates_name_both_owners(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(site)
    write_entries(site, ENTRY)
    info = write_entries(site, {"methods halve": "another_stranger:Halve"}, "another-stranger", "2.0")
    with pytest.raises(ConfigError, match="registered already") as caught:
        METHODS.names()
    assert f"{NAME} 1.0" in str(caught.value)
    assert "another-stranger 2.0" in str(caught.value)
    monkeypatch.setenv("EXPUNGE_PLUGINS", "0")
    assert "Halve" not in METHODS.names()
    monkeypatch.delenv("EXPUNGE_PLUGINS")
    (info / "entry_points.txt").write_text("[expunge.methods]\nft = another_stranger:FT\n")
    plugins._read_entry_points.cache_clear()
    with pytest.raises(ConfigError, match="registered already, by expunge") as caught:
        METHODS.get("GA")
    assert "another-stranger 2.0" in str(caught.value)


def test_entry_points_in_the_current_directory_do_not_count(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    write_package(here)
    write_entries(here, ENTRY)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", ["", str(here), *sys.path])
    assert "Halve" not in METHODS.names()


def test_untrusted_references_are_refused_before_import(site: Path, tmp_path: Path) -> None:
    write_package(site, "far_stranger", " far")
    (site / "far_stranger" / "__init__.py").write_text(f"open({str(tmp_path / 'MARKER')!r}, 'w').close()\n")
    (tmp_path / "empty").mkdir()
    base = "{data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, forget: {by: class, index: 1}}"
    path = tmp_path / "empty" / "run.yaml"
    path.write_text(base)
    sections = {
        "data": "data.source=far_stranger.sources:two_clouds",
        "sparsity": "sparsity={sparsity: 0.5, layers: [linear], criterion: 'far_stranger.criteria:cubes'}",
        "method": "method.name=far_stranger.methods:Halve",
        "evaluation": "evaluation.scores=['far_stranger.scores:doubt']",
    }
    for section, override in sections.items():
        config = load_config(path, [override])
        check = check_run(config)
        found = [finding for finding in check.findings if finding.level == "error"]
        assert [finding.subject for finding in found] == [section]
        assert "not agreed to run" in found[0].message
        trusted = check_run(load_config(path, [override], trust=["far_stranger"]))
        assert trusted.usable
        assert (tmp_path / "MARKER").exists()
        (tmp_path / "MARKER").unlink()
        for name in [name for name in sys.modules if name.partition(".")[0] == "far_stranger"]:
            del sys.modules[name]
        forget_agreements()
    with pytest.raises(TrustError, match="not agreed"):
        check_plan(_plan(tmp_path, "far_stranger.methods:Halve"))


def _plan(tmp_path: Path, method: str):
    path = tmp_path / "empty" / "plan.yaml"
    path.write_text(f"""
name: far
base:
  {{data: {{source: digits}}, model: {{name: mlp}}, training: {{recipe: one-cycle}}, forget: {{by: class, index: 1}}}}
grid: {{method: [{{name: Retrain}}, {{name: "{method}"}}]}}
""")
    return load_plan(path)
