"""D_r is gone: what needs it is refused, the rest runs as if it were there; a stand-in takes its place and is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import expunge
from expunge.core.errors import ConfigError, DataError, ExpungeError, MethodError, RequestError
from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.data.retain_set.stand_in import PREFIX, join_stand_in
from expunge.experiments import load_config, load_plan, run_plan
from expunge.methods import Context, get_method
from expunge.methods.stand_in import forget_with_stand_in
from expunge.training import Runtime
from expunge.workflow import check_run, forget

RUN = """
data: {{source: npz, dir: {dir}, options: {{path: left.npz, features: x, labels: y, ids: ids}}}}
split: {{file: {dir}/original/split.json, retain: absent}}
model: {{name: mlp, options: {{widths: [8]}}, weights: {dir}/original/model.safetensors}}
training: {{recipe: one-cycle, epochs: 2}}
forget: {{by: ids, file: {dir}/ids.txt}}
method: {{name: GA, options: {{epochs: 1, learning_rate: 0.01}}}}
runtime: {{device: cpu}}
"""
PUBLIC = "forget.stand_in={source: npz, options: {path: NAME.npz, features: x, labels: y, ids: ids}}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model, whose D_r only the split knows; the records that are left, and two stand-ins."""
    place = tmp_path_factory.mktemp("absent")
    records = expunge.load_records("digits")
    split = expunge.make_split(records, seed=0, limit=200)
    network = expunge.architecture("mlp", records, split, widths=(8,))
    recipe = expunge.get_recipe("one-cycle", epochs=2)
    trained = expunge.train(records, split, network, recipe=recipe, runtime=Runtime("cpu"))
    expunge.save_trained(trained, place / "original")
    asked = np.sort(split.retain)[:8]
    (place / "ids.txt").write_text("\n".join(asked) + "\n")
    used = np.concatenate([split.retain, split.validation, split.test, split.non_members])
    unused = np.setdiff1d(records.record_ids, used)
    parts = {
        "left": np.concatenate([asked, split.validation, split.test, split.non_members]),
        "whole": used,
        "public": unused[:60],
        "copied": np.concatenate([unused[:20], asked[:2]]),
    }
    for name, ids in parts.items():
        rows = records.rows(ids)
        np.savez(place / f"{name}.npz", x=records.features[rows], y=records.labels[rows], ids=ids)
    (place / "run.yaml").write_text(RUN.format(dir=place))
    return place


def read(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(path.read_text())
    return body


def test_a_run_without_the_retain_set(place: Path, tmp_path: Path) -> None:
    result = forget(load_config(place / "run.yaml"), tmp_path / "out", store=tmp_path / "store")
    assert result.outcome["retain"] == {"absent": True, "stand_in": None}
    assert set(result.scores["missing"]) == {"RA", "100-RA", "MIA-Efficacy", "MIA-Privacy"}
    assert {score["name"] for score in result.scores["scores"]} >= {"UA", "TA", "AUC"}
    assert all(score["reference"] is None for score in result.scores["scores"])
    assert result.reference == {}
    assert "records of D_r are absent" in (tmp_path / "out" / "report.html").read_text()
    after = Split.load(tmp_path / "out" / "split.json")
    assert after.retain_absent
    assert len(after.forget) == 8
    # the same request where D_r is there: GA reads D_f alone, so the model is the same, bit for bit
    with_all = load_config(
        place / "run.yaml",
        ["data.options.path=whole.npz", f"split={{file: {place}/original/split.json}}"],
    )
    whole = forget(with_all, tmp_path / "whole", store=tmp_path / "store")
    assert whole.outcome["hashes"]["weights"] == result.outcome["hashes"]["weights"]
    assert "retain" not in whole.outcome


def test_check_and_the_run_make_one_decision(place: Path, tmp_path: Path) -> None:
    config = load_config(place / "run.yaml")
    rows = {row.name: row for row in check_run(config, costs=True, probe=False).methods}
    assert rows["GA"].works
    for name in ("FT", "Retrain", "SCRUB", "patch"):
        assert not rows[name].works
        assert "declares absent" in rows[name].reason
        named = load_config(place / "run.yaml", [f"method={{name: {name}}}"])
        assert not check_run(named).usable
        with pytest.raises(MethodError, match="declares absent"):
            forget(named, tmp_path / "out", store=tmp_path / "store")
    assert not (tmp_path / "out").exists()


def test_a_stand_in_is_read_and_named(place: Path, tmp_path: Path) -> None:
    config = load_config(
        place / "run.yaml", [PUBLIC.replace("NAME", "public"), "method={name: Retrain, options: {seeds: new}}"]
    )
    checked = check_run(config, costs=True, probe=False)
    assert checked.usable
    assert any("a stand-in is read instead of D_r: 60 records" in finding.message for finding in checked.findings)
    rows = {row.name: row for row in checked.methods}
    assert rows["FT"].works
    assert rows["FT"].passes == 10
    result = forget(config, tmp_path / "out", store=tmp_path / "store")
    assert result.outcome["method"]["guarantee"] == "empirical"  # Retrain is exact only on D_r
    named = result.outcome["retain"]["stand_in"]
    assert (named["source"], named["records"]) == ("npz", 60)
    assert result.outcome["cost"]["trained_records"] == 2 * 60
    assert any("stand-in" in note for note in result.scores["notes"])
    assert "stand-in instead of D_r: 60 records of npz" in (tmp_path / "out" / "report.html").read_text()
    assert "stand-in: 60 records of npz" in result.text()
    assert PREFIX not in (tmp_path / "out" / "split.json").read_text()


def test_a_generator_can_stand_in(place: Path, tmp_path: Path) -> None:
    (place / "made_up.py").write_text(
        "import numpy as np\n\n\n"
        "class Drawn:\n"
        "    def __init__(self, count, kind):\n"
        "        drawn = np.random.default_rng(0).random((count, 1, 8, 8)).astype(kind)\n"
        "        self.images, self.labels = drawn, np.arange(count) % 10\n\n"
        "    def __len__(self):\n"
        "        return len(self.labels)\n\n"
        "    def __getitem__(self, row):\n"
        "        return self.images[row], int(self.labels[row])\n\n\n"
        "def draw(count=40, kind='float32'):\n"
        "    return Drawn(count, kind)\n"
    )
    stand_in = "forget.stand_in={source: python, options: {factory: 'made_up:draw', arguments: {count: 30}}}"
    config = load_config(place / "run.yaml", [stand_in, "method={name: FT, options: {epochs: 1}}"])
    result = forget(config, tmp_path / "out", store=tmp_path / "store")
    assert result.outcome["retain"]["stand_in"]["options"]["factory"] == "made_up:draw"
    assert result.outcome["cost"]["trained_records"] == 30
    wrong = load_config(place / "run.yaml", [stand_in.replace("count: 30", "kind: uint8"), "method={name: FT}"])
    with pytest.raises(DataError, match="its records are uint8, those of the model float32"):
        forget(wrong, tmp_path / "out", store=tmp_path / "store")


def test_copies_of_forgotten_records_are_refused(place: Path, tmp_path: Path) -> None:
    config = load_config(place / "run.yaml", [PUBLIC.replace("NAME", "copied"), "method={name: FT}"])
    with pytest.raises(RequestError, match="2 records of it are exact copies"):
        forget(config, tmp_path / "out", store=tmp_path / "store")
    assert not check_run(config).usable


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["split.file=null"], ConfigError, "needs `file`"),
        (["model.weights=null"], ConfigError, "needs `model.weights`"),
        (["split.retain=null", PUBLIC], ConfigError, "needs `split.retain: absent`"),
        (["split.retain=gone"], ConfigError, "absent"),
    ],
)
def test_wrong_configurations(place: Path, overrides: list[str], error: type[ExpungeError], message: str) -> None:
    with pytest.raises(error, match=message):
        load_config(place / "run.yaml", overrides)


def test_a_plan_refuses_an_absent_retain_set(place: Path, tmp_path: Path) -> None:
    base = "".join(f"  {line}\n" for line in RUN.format(dir=place).strip().splitlines())
    plan = tmp_path / "plan.yaml"
    methods = "".join(f"    {name}: {{method: {{name: {name}}}}}\n" for name in ("Retrain", "GA"))
    plan.write_text(f"name: absent\nbase:\n{base}grid: {{seed: [0, 1]}}\nvariants:\n  method:\n{methods}")
    with pytest.raises(ConfigError, match="records of D_r are absent") as caught:
        run_plan(load_plan(plan), store=tmp_path / "store")
    assert caught.value.where == "split.retain"
    assert "expunge forget" in (caught.value.hint or "")
    assert not list((tmp_path / "store").glob("entries/*"))


def test_undeclared_absence_has_the_line_to_write(place: Path) -> None:
    found = check_run(load_config(place / "run.yaml", ["split.retain=null"]))
    (wrong,) = (finding for finding in found.findings if finding.level == "error" and finding.subject == "split")
    assert "split.retain=absent" in wrong.hint


# ---- the parts


def keep(records: Records, ids: Any) -> Records:
    rows = np.sort(records.rows(ids))
    assert records.features is not None
    return Records(
        records.name, records.record_ids[rows], records.labels[rows], records.class_names, records.features[rows]
    )


def test_a_stand_in_that_is_the_retain_set_gives_what_the_retain_set_gives(
    dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    """Truth: with D_r itself as the stand-in, in the same order, the records and so the sums of FT are the same."""
    split = dataclasses.replace(dense.split, retain_absent=True)
    absent = dataclasses.replace(dense, split=split)
    retained = np.setdiff1d(dense.split.retain, request_20.record_ids)
    left = keep(digits, np.setdiff1d(digits.record_ids, retained))
    stand_in = join_stand_in(left, keep(digits, retained), request_20, split)
    method = get_method("NTK", steps=2)  # it sums over all of D_r, without an order drawn from ids
    found = forget_with_stand_in(method, absent, request_20, Context(left, cpu), stand_in)
    expected = method.forget(dense, request_20, Context(digits, cpu))
    for name, weight in expected.trained.model.state_dict().items():
        other = found.trained.model.state_dict()[name]
        assert np.allclose(weight.numpy(), other.numpy(), rtol=1e-3, atol=1e-5), name
    assert found.trained.split.hash == expected.trained.split.hash
    assert found.stand_in["records"] == len(retained)


def test_a_stand_in_needs_an_absent_retain_set(
    dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    stand_in = join_stand_in(digits, keep(digits, dense.split.test), request_20, dense.split)
    with pytest.raises(RequestError, match="the retain records are there"):
        forget_with_stand_in(get_method("FT"), dense, request_20, Context(digits, cpu), stand_in)


def test_guarantees_about_retraining_do_not_survive(
    dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    absent = dataclasses.replace(dense, split=dataclasses.replace(dense.split, retain_absent=True))
    stand_in = join_stand_in(digits, keep(digits, dense.split.non_members), request_20, absent.split)
    found: Outcome = forget_with_stand_in(get_method("Retrain"), absent, request_20, Context(digits, cpu), stand_in)
    assert found.guarantee == "empirical"
    assert get_method("Retrain").forget(dense, request_20, Context(digits, cpu)).guarantee == "exact"  # control


def test_wrong_stand_ins(dense: Trained, digits: Records, request_20: ForgetRequest) -> None:
    public = keep(digits, dense.split.test)
    assert public.features is not None
    wrong = dataclasses.replace(public, features=public.features[:, :, :4])
    with pytest.raises(DataError, match="have the shape"):
        join_stand_in(digits, wrong, request_20, dense.split)
    floats = dataclasses.replace(public, features=public.features.astype(np.float32))
    with pytest.raises(DataError, match="are float32"):
        join_stand_in(digits, floats, request_20, dense.split)
    names = tuple(f"class {name}" for name in public.class_names)
    with pytest.raises(DataError, match="it has a class 'class 0'"):
        join_stand_in(digits, dataclasses.replace(public, class_names=names), request_20, dense.split)
    asked = expunge.forget_class(digits, dense.split, 3)
    found = join_stand_in(digits, public, asked, dense.split)
    assert found.excluded == int((public.labels == 3).sum()) > 0
    rows = found.records.rows(found.record_ids)
    assert 3 not in found.records.labels[rows]
    threes = keep(digits, digits.record_ids[(digits.labels == 3) & np.isin(digits.record_ids, dense.split.test)])
    with pytest.raises(DataError, match="no record of another class"):
        join_stand_in(digits, threes, asked, dense.split)
