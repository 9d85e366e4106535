"""Plans: expansion, and positions in errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.core.errors import ConfigError
from expunge.experiments.config.plan import load_plan
from expunge.experiments.config.registry_checks import check_cells
from expunge.experiments.scheduler.graph import build_graph

PLAN = """\
name: small
base:
  data: {source: digits, dir: somewhere}
  model: {name: mlp}
  training: {recipe: one-cycle}
  forget: {by: class, index: 0}
grid:
  sparsity:
    dense: null
    "95 %": {sparsity: 0.95}
  method: [{name: Retrain}, {name: FT}, {name: GA}]
  seed: [0, 1, 2]
variants:
  task:
    a: {model.name: mlp}
    b: {model.name: lenet5, split.seed: 5}
adjust:
  - when: {method: GA, task: [b]}
    set: {method.options.learning_rate: 1e-4}
exclude:
  - {method: GA, sparsity: dense}
claims:
  - name: narrower
    statement: sparsity narrows the gap
    score: Disparity average
    where: {method: FT}
    compare: [{sparsity: "95 %"}, {sparsity: dense}]
    expect: lower
    each: [task]
"""


def write(tmp_path: Path, text: str = PLAN) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return path


def test_expansion(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path))
    assert len(plan.cells) == 2 * 3 * 3 * 2 - 3 * 2
    assert [axis.role for axis in plan.axes] == ["sparsity", "method", "replicate", "case"]
    for cell in plan.cells:
        assert cell.config.method is not None
        reference = plan.cells[cell.reference]
        assert reference.labels == {**cell.labels, "method": "Retrain"}
        assert cell.config.split.seed == (5 if cell.labels["task"] == "b" else 0)
        small = cell.labels["method"] == "GA" and cell.labels["task"] == "b"
        assert cell.config.method.options == ({"learning_rate": 1e-4} if small else {})
        assert (cell.config.sparsity is None) == (cell.labels["sparsity"] == "dense")


def test_stages_are_shared(tmp_path: Path) -> None:
    graph = build_graph(load_plan(write(tmp_path)).cells)
    counts: dict[str, int] = {}
    for node in graph.nodes.values():
        counts[node.stage] = counts.get(node.stage, 0) + 1
    # The split seed of task b belongs to training; one model and split for each task and seed.
    assert counts == {"data": 1, "train": 6, "prune": 6, "forget": 30, "score": 30}
    seen: set[str] = set()
    for node in graph.nodes.values():
        assert set(node.inputs.values()) <= seen  # inputs first
        seen.add(node.id)


def test_the_hash_depends_on_contents_not_on_paths(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    same = PLAN.replace("dir: somewhere", "dir: elsewhere").replace("name: small\n", "name: small # text\n")
    assert load_plan(write(tmp_path / "elsewhere", same)).hash == plan.hash
    assert load_plan(write(tmp_path), ["data.dir=/tmp"]).hash == plan.hash
    assert load_plan(write(tmp_path), ["training.epochs=1"]).hash != plan.hash
    assert load_plan(write(tmp_path, PLAN.replace("expect: lower", "expect: higher"))).hash != plan.hash


def test_base_from_a_file(tmp_path: Path) -> None:
    text = PLAN.split("grid:", 1)
    base = "data: {source: digits}\nmodel: {name: mlp}\ntraining: {recipe: r}\nforget: {by: class, index: 0}\n"
    (tmp_path / "base.yaml").write_text(base)
    plan = load_plan(write(tmp_path, "name: small\nbase: base.yaml\ngrid:" + text[1]))
    assert len(plan.cells) == 30
    (tmp_path / "base.yaml").write_text(base.replace("name: mlp", "nam: mlp"))
    with pytest.raises(ConfigError, match=r"base.yaml:2: .*'model.nam'"):
        load_plan(write(tmp_path, "name: small\nbase: base.yaml\ngrid:\n  seed: [0]\n"))


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("grid:", "gird:", 7, "unknown key 'gird'"),
        ("  seed: [0, 1, 2]", "  sead: [0, 1, 2]", 12, "did you mean 'seed'"),
        ("  seed: [0, 1, 2]", "  seed: [0, 0]", 12, "is a duplicate"),
        ("  seed: [0, 1, 2]", "  seed: 3", 12, "a list of values"),
        ("  seed: [0, 1, 2]", "  seed: []", 12, "has no values"),
        ("  seed: [0, 1, 2]", "  seed: [zero]", 12, "seed: input should be a valid integer"),
        ("{model.name: mlp}", "{model.nam: mlp}", 15, "unknown key 'model.nam'"),
        ("{sparsity: 0.95}", "{sparsity: 95}", 10, "less than 1"),
        ("{name: Retrain}", "{name: Fisher}", 7, "no cell runs Retrain"),
        ("{name: FT}", "{name: Retrain, options: {seeds: new}}", 11, "is a duplicate"),
        ("{method: GA, sparsity: dense}", "{method: Ga, sparsity: dense}", 21, "did you mean 'GA'"),
        ("{method: GA, task: [b]}", "{methods: GA}", 18, "did you mean 'method'"),
        ("method.options.learning_rate", "methd.options.learning_rate", 19, "did you mean 'method'"),
        ("score: Disparity average", "score: disparity", 25, "did you mean 'Disparity average'"),
        ("each: [task]", "each: [tusk]", 29, "did you mean 'task'"),
        ("expect: lower", "expect: less", 28, "expect"),
        ("where: {method: FT}", "where: {method: GA}", 27, "the plan has no such cell"),
        ("  forget: {by: class, index: 0}\n", "", 6, "has no forget"),
        ("name: small", "name: a/b", 1, "a plan's name"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, old: str, new: str, line: int, what: str) -> None:
    assert old in PLAN
    with pytest.raises(ConfigError) as caught:
        load_plan(write(tmp_path, PLAN.replace(old, new, 1)))
    assert str(caught.value).startswith(f"{tmp_path}/small.yaml:{line}: ")
    assert what in str(caught.value)


def test_a_claim_that_no_pair_of_cells_could_test(tmp_path: Path) -> None:
    """FT stays at 95 % in one task, and dense in the other."""
    rest = '  - {method: FT, sparsity: dense, task: a}\n  - {method: FT, sparsity: "95 %", task: b}\n'
    text = PLAN.replace("claims:", f"{rest}claims:")
    with pytest.raises(ConfigError, match="no cell of one group has a partner in the other") as caught:
        load_plan(write(tmp_path, text))
    assert str(caught.value).startswith(f"{tmp_path}/small.yaml:29: ")
    assert load_plan(write(tmp_path, text.replace(", task: b}\n", ", task: b, seed: 0}\n"))).claims


def test_two_references_of_one_run(tmp_path: Path) -> None:
    """By the method's name, or by the label on a method axis if it is the reference's."""
    pair = "method: {one: {name: Retrain}, two: {name: retrain, options: {seeds: new}}, GA: {name: GA}}"
    text = PLAN.replace("method: [{name: Retrain}, {name: FT}, {name: GA}]", pair)
    text = text.replace("where: {method: FT}", "where: {method: one}")
    with pytest.raises(ConfigError, match="two cells are the reference of the same runs"):
        load_plan(write(tmp_path, text))
    plan = load_plan(write(tmp_path, text + "reference: two\n"))
    assert {plan.cells[cell.reference].labels["method"] for cell in plan.cells} == {"two"}


def test_everything_excluded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="every cell of the grid is excluded"):
        load_plan(write(tmp_path, PLAN.replace("{method: GA, sparsity: dense}", "{sparsity: [dense, '95 %']}")))


def test_ids_in_a_file_count_by_their_contents(tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    text = PLAN.replace("{by: class, index: 0}", f"{{by: ids, file: {ids}}}")

    def forgets() -> set[str]:
        nodes = build_graph(load_plan(write(tmp_path, text)).cells).nodes.values()
        return {node.id for node in nodes if node.stage == "forget"}

    with pytest.raises(ConfigError, match=r"ids.txt: no such file"):
        forgets()
    ids.write_text("a\n")
    before = forgets()
    assert forgets() == before
    ids.write_text("b\n")
    assert not (forgets() & before)


def test_the_keys_of_all_cells_are_bounded(tmp_path, monkeypatch):
    """Of all cells together: their number times the keys that each sets."""
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    monkeypatch.setenv("EXPUNGE_MAX_PLAN_KEYS", "100")
    with pytest.raises(ConfigError, match=r"makes \d+ keys set in all cells; the limit is 100"):
        load_plan(path)


@pytest.mark.parametrize(
    ("old", "new", "most"),
    [
        ("recipe: one-cycle", "recipe: one-cycle, batch_size: 4", 4),
        ("{name: FT}", "{name: FT, options: {batch_size: 3}}", 3),
        ("{name: GA}]", "{name: GA}, {name: SCRUB, options: {batch_size: 3}}]", None),  # it runs on one process
    ],
)
def test_more_processes_than_records_in_a_batch(tmp_path: Path, old: str, new: str, most: int | None) -> None:
    """Found before anything is trained."""
    text = PLAN.replace("forget: {by", "runtime: {device: cpu, devices: 8}\n  forget: {by").replace(old, new)
    found = [group.error for group in check_cells(load_plan(write(tmp_path, text))) if group.error is not None]
    assert bool(found) is (most is not None)
    for error in found:
        assert f"runtime.devices: 8 processes for batches of {most} records" in str(error)
        assert f"use at most {most}" in str(error)
