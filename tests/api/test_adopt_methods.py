"""`methods`, `check` and `forget` are one decision: what is listed as usable runs, the rest is refused alike."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from own_networks import SmallNet, make_mlp, train_own

import expunge
from expunge.api import AdoptedModel, MethodTable
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.data.records import Records
from expunge.experiments.objects.method import make_method
from expunge.methods.registry import method_class, options_of

#: Few records, so that every method runs in little time.
ROWS = range(60)


@pytest.fixture(scope="module")
def few(digits: Records) -> Records:
    """100 digits of four classes."""
    rows = np.flatnonzero(digits.labels < 4)[:100]
    assert digits.features is not None
    return Records("few", digits.record_ids[rows], digits.labels[rows], ("0", "1", "2", "3"), digits.features[rows])


def _mlp() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))


def _cnn() -> torch.nn.Module:
    return SmallNet(4)


def _sparse(model: AdoptedModel) -> AdoptedModel:
    return model.prune(0.5, scope="layer")


CASES = {
    "perceptron with a factory": (_mlp, _mlp, None),
    "network without a factory": (_cnn, None, None),
    "pruned network with a factory": (_cnn, _cnn, _sparse),
}


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest, few: Records) -> AdoptedModel:
    make, factory, change = CASES[request.param]
    torch.manual_seed(3)
    own = train_own(make(), few, ROWS)
    adopted = expunge.adopt(
        own, few, train=ROWS, test=range(60, 80), non_members=range(80, 100), factory=factory
    )  # fmt: skip
    return adopted if change is None else change(adopted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("whole_class", [False, True], ids=["records", "class"])
def test_every_method_runs_or_is_refused_as_it_is_listed(model, few, whole_class):
    rows = expunge.forget_class(few, model.split, 1) if whole_class else [0, 1, 2]
    table = model.methods(rows)
    assert [row.name for row in table] == expunge.method_names()
    disagreeing = []
    for row in table:
        try:
            result = model.forget(rows, row.name)
        except ExpungeError as error:
            if row.usable or error.what not in row.reason:
                disagreeing.append(f"{row.name}: {row.usable}, {row.reason} | {error}")
            continue
        assert len(result.split.forget) == len(result.outcome.request.record_ids)
        checked = [finding.message for finding in model.check(row.name, rows).findings]
        if row.guarantee != result.guarantee or f"{row.name}, guarantee {result.guarantee}" not in checked:
            disagreeing.append(f"{row.name} has the guarantee {result.guarantee}, listed as {row.guarantee}: {checked}")
        if not row.usable:
            disagreeing.append(f"{row.name} ran, listed as refused: {row.reason}")
    assert disagreeing == []
    assert all(row.usable or row.reason for row in table)
    checked = [model.check(row.name, rows).usable for row in table]
    assert checked == [row.usable for row in table]


def test_without_rows_the_table_says_what_depends_on_them(adopted):
    table = adopted.methods()
    assert isinstance(table, MethodTable)
    assert table["FT"].usable
    assert table["Retrain"].usable
    assert table["retrain"].guarantee == "exact"
    assert table["mask-logit"].usable
    assert "only for a whole class" in table["mask-logit"].reason
    assert not adopted.methods([1, 2])["mask-logit"].usable
    assert not table["mixed-privacy"].usable
    assert table["FT"].cost.startswith("10 passes over D_r")
    assert adopted.methods([1, 2])["GA"].cost.startswith("5 passes over D_f") or "D_f" in table["GA"].cost
    text = table.text()
    assert "works, empirical, 10 passes over D_r" in text
    assert "refused" in text
    assert f"{len(table.usable)} of {len(table)} methods" in repr(table)


def test_retraining_needs_a_factory_in_the_table_too(own_mlp, digits):
    table = expunge.adopt(own_mlp, digits, train=range(300)).methods()
    refused = {row.name for row in table if "cannot be drawn" in row.reason}
    assert {"Retrain", "EU-k", "Bad Teacher"} <= refused
    assert "factory=make" in table["Retrain"].hint
    with_factory = expunge.adopt(own_mlp, digits, train=range(300), factory=make_mlp).methods()
    assert "recipe assumed" in with_factory["Retrain"].reason


def test_no_method_has_an_option_that_the_facade_takes():
    taken = {"rows", "method", "hold", "seed", "checkpoint", "progress", "labels", "blank", "fill", "options"}
    options = {field.name for name in expunge.method_names() for field in options_of(method_class(name))}
    assert not options & (taken - {"method"})  # the option `method` of Un-prune: it stands in `options`
    assert "method" in {field.name for field in options_of(method_class("Un-prune"))}


def test_a_method_object_is_taken_as_it_is(adopted):
    method = expunge.get_method("Un-prune", method="FT", method_options={"epochs": 1})
    assert adopted.forget([1, 2], method).outcome.method == "Un-prune"
    with pytest.raises(ExpungeError, match="has its options already"):
        adopted.forget([1, 2], method, rounds=2)
    with pytest.raises(ExpungeError, match="no option 'epoch'"):
        adopted.forget([1, 2], "FT", epoch=2)
    with pytest.raises(ExpungeError, match=r"method: is a dict(.|\n)*get_method"):
        adopted.forget([1, 2], {"name": "FT"})
    with pytest.raises(ExpungeError, match=r"FTT"):
        adopted.forget([1, 2], "FTT")
    with pytest.raises(ExpungeError, match="unknown method 'FTT'"):
        adopted.methods()["FTT"]


def test_the_check_reports_model_request_and_method(adopted, own_mlp, digits):
    check = adopted.check("FT", [1, 2], epochs=2)
    assert check.usable
    assert "it reads 2 passes over D_r" in check.text()
    assert not adopted.check("FT", [301]).usable
    assert "never trained on" in adopted.check("FT", [301]).text()
    bare = expunge.adopt(own_mlp, digits, train=range(300)).check("Retrain")
    assert not bare.usable
    assert "there are no test records: TA and the attack of [Jia2023] cannot be measured" in bare.text()
    assert "factory=make" in bare.text()


def test_a_request_that_every_method_refuses(adopted):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert adopted.methods(range(300)).usable == ()
        with pytest.raises(ExpungeError, match="forgets all 300"):
            adopted.forget(range(300))


def test_a_method_around_another_is_named_with_its_options(adopted):
    """The option `method` of Un-prune has the name of an argument: it stands in `options`, as in a configuration."""
    section = {"name": "Un-prune", "options": {"method": "GA", "method_options": {"epochs": 1}, "initial": "random"}}
    model = adopted.prune(0.5)
    named = model.forget([1, 2], "Un-prune", options=section["options"])
    mixed = model.forget(
        [1, 2], "Un-prune", options={"method": "GA"}, method_options={"epochs": 1}, initial="random"
    )  # fmt: skip
    configured = model.forget([1, 2], make_method(section))
    assert named.outcome.options["method"] == "GA"
    assert named.trained.hash == mixed.trained.hash == configured.trained.hash
    assert model.check("Un-prune", [1, 2], options={"method": "GA", "initial": "random"}).usable
    assert "no option 'metod'" in model.check("Un-prune", [1, 2], options={"metod": "GA"}).text()
    steps = ["GA", {"name": "FT", "options": {"epochs": 1}}]
    assert adopted.correct({5: "1"}, "FT", options={"epochs": 1}).outcome.options["epochs"] == 1
    assert adopted.forget([1, 2], "then", steps=steps).outcome.method == "then"
    with pytest.raises(ExpungeError, match="growth: is given in options and as a keyword"):
        model.forget([1, 2], "Un-prune", options={"growth": 0.1}, growth=0.2)
    with pytest.raises(ExpungeError, match="options: is a str"):
        model.forget([1, 2], "Un-prune", options="GA")


def test_a_method_that_changes_nothing_says_so_before_and_after(adopted):
    checked = adopted.check("FT", [1, 2], epochs=0)
    assert checked.usable
    assert "FT changes nothing: 0 epochs" in [f.message for f in checked.findings if f.level == "warning"]
    with pytest.warns(ExpungeWarning, match="^FT changes nothing: 0 epochs$"):
        result = adopted.forget([1, 2], "FT", epochs=0)
    assert "warning: FT changed nothing: all 4 tensors" in result.text()
    assert "FT changed nothing" in repr(result.outcome)
    with pytest.warns(ExpungeWarning, match="^SSD changed nothing: all 4 tensors"):
        adopted.forget([1, 2], "SSD", alpha=1e9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "warning" not in adopted.forget([1, 2], "FT", epochs=1).text()
