"""Scores that cannot be measured, the report, and what a notebook shows."""

from __future__ import annotations

import copy
import dataclasses
import html
import html.parser
import re
import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from own_networks import make_mlp

import expunge
from expunge.core.errors import ConfigError, ExpungeWarning, RequestError
from expunge.data.records import Records

FORGET = [3, 14, 15, 92, 65]
NO_TEST = {"TA", "MIA-Efficacy", "MIA-Privacy"}
NO_POOL = {"AUC", "TPR at 1% FPR"}


@pytest.fixture(scope="module")
def whole(own_mlp, digits):
    """Every row was trained on."""
    recipe = {"epochs": 2, "batch_size": 64}
    return expunge.adopt(own_mlp, digits, factory=make_mlp, recipe=recipe)


def test_scores_without_test_records_are_not_measured(whole):
    result, truth = whole.forget(FORGET, "FT", epochs=1), whole.forget(FORGET, "Retrain")
    assert whole.split.counts()["retain"] == 480
    scores = result.evaluate(reference=truth)
    assert set(scores.missing) == NO_TEST | NO_POOL | {"Disparity average"}
    assert not NO_TEST & set(scores.names)
    assert scores["UA"].gap is not None
    rows = {row["score"]: row["value"] for row in scores.table()}
    assert rows["TA"] == "not measured (no test records)"
    assert rows["AUC"] == "not measured (no non-members)"
    assert "TA was not measured" in scores.text()
    assert "there is no non-member pool" in scores.text()
    assert "the non-member pool has no records" not in scores.text()
    assert expunge.Scores.from_json(scores.to_json()).missing == dict(scores.missing)


def test_parts_that_are_there_are_measured(own_mlp, digits):
    model = expunge.adopt(own_mlp, digits, train=range(300), test=range(300, 390))
    assert set(model.forget(FORGET, "FT", epochs=1).evaluate().missing) == NO_POOL
    model = expunge.adopt(own_mlp, digits, train=range(300), non_members=range(300, 390))
    assert set(model.forget(FORGET, "FT", epochs=1).evaluate().missing) == NO_TEST


def test_the_report_shows_what_was_not_measured(whole, tmp_path):
    result, truth = whole.forget(FORGET, "FT", epochs=1), whole.forget(FORGET, "Retrain")
    path = result.report(tmp_path / "report.html", reference=truth)
    page = path.read_text(encoding="utf-8")
    assert page.count("not measured: no test records") >= 3
    assert "not measured: no non-members" in page


def test_the_report_has_the_numbers_of_evaluate(adopted, tmp_path):
    result, truth = adopted.forget(FORGET, "GA", epochs=2), adopted.forget(FORGET, "Retrain")
    scores = result.evaluate(reference=truth)
    page = result.report(tmp_path / "report.html", truth, title="Deletion of 5 records").read_text(encoding="utf-8")
    assert "Deletion of 5 records" in page
    for name in ("UA", "RA", "TA", "MIA-Efficacy"):
        assert f"{scores[name].value:.2f}" in page, name
        assert f"{scores[name].reference:.2f}" in page, name
    assert "What this does not show" in page
    assert result.created in page
    assert result.trained.hash[:12] in page
    assert not any(name in page for name in ("d0003", "d0092"))  # ids are personal data
    assert "d0092" in result.report(tmp_path / "ids.html", truth, ids=True).read_text(encoding="utf-8")
    alone = result.report(tmp_path / "alone.html").read_text(encoding="utf-8")
    assert "There is no retrained model to compare with" in alone
    own = truth.report(tmp_path / "truth.html", truth).read_text(encoding="utf-8")
    assert "it is the reference" in own
    other = adopted.forget(FORGET, "Retrain", seed=1)
    assert "Retrain (reference)" in other.report(tmp_path / "other.html", truth).read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="not a result of forget"):
        result.report(tmp_path / "x.html", truth.trained)
    with pytest.raises(RequestError):
        result.report(tmp_path / "x.html", adopted.forget([1], "Retrain"))
    assert not (tmp_path / "x.html").exists()


def rows_of(page: str) -> list[str]:
    """The names in the first column of the tables of scores."""
    found = re.findall(r'<tr class="(?:original|retrained|unlearned)">\s*<th scope="row">([^<]*)', page)
    return [html.unescape(name) for name in found]


def test_that_a_model_was_adopted_is_a_fact_and_no_warning(own_mlp, digits, workplace):
    recipe = {"epochs": 20, "batch_size": 16}
    adopted = expunge.adopt(own_mlp, digits, train=range(300), test=range(300, 390), factory=make_mlp, recipe=recipe)
    result, truth = adopted.forget(FORGET, "FT", epochs=1), adopted.forget(FORGET, "Retrain")
    assert adopted.evaluate(FORGET).text().startswith("score ")
    assert result.evaluate(truth).text().startswith("score ")
    assert result.evaluate(truth).about["imported"] == adopted.trained.hash
    assert result.outcome.to_json()["provenance"]["weights_from"] == adopted.trained.hash
    page = result.report("report.html", truth).read_text()
    assert 'id="warnings"' not in page
    assert "Recipe and split of the original were declared, not recorded." in page
    assert "Recipe and split of the original" not in result.report("alone.html").read_text()
    assumed = expunge.adopt(own_mlp, digits, train=range(300), factory=make_mlp)
    with pytest.warns(ExpungeWarning, match="recipe"):
        truth = assumed.forget(FORGET, "Retrain")
    scores = assumed.forget(FORGET, "FT", epochs=1).evaluate(truth)
    assert [warning.code for warning in scores.warnings][:1] == ["recipe-assumed"]


@pytest.mark.parametrize("name", ["Un-prune", "Retrain"])
def test_a_changed_mask_is_a_table_by_layer(adopted, workplace, name):
    """The numbers by hand from the two masks; a method that leaves the mask has no table."""
    sparse = adopted.prune(0.5)
    inner = {"epochs": 5, "learning_rate": 0.2, "batch_size": 32}
    around = {"initial": "random", "rule": "gradient", "growth": 0.5, "method_options": inner}
    options = around if name == "Un-prune" else {"mask": "re-prune"}
    result = sparse.forget(FORGET, name, options=options)
    before, after = sparse.trained.mask.kept, result.trained.mask.kept
    page = result.report("report.html", others=[sparse.forget(FORGET, "FT", epochs=0)]).read_text()
    assert f"What changed of the mask, 50 % sparse: {name}<" in page
    table = page.split("What changed of the mask")[1].split("</table>")[0]
    rows = [re.findall("<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in table.split("<tr>")[2:]]
    changed = [layer for layer in before if not bool((before[layer] == after[layer]).all())]
    assert [row[0] for row in rows] == [*changed, "together"]
    sums = [0] * 5
    for row in rows[:-1]:
        old, new = before[row[0]], after[row[0]]
        counts = [old.numel(), int(old.sum()), int(new.sum()), int((new & ~old).sum()), int((old & ~new).sum())]
        sums = [total + count for total, count in zip(sums, counts, strict=True)]
        iou = int((old & new).sum()) / int((old | new).sum())
        density = [f"{counts[1] / counts[0]:.4f}", f"{counts[2] / counts[0]:.4f}"]
        assert row[1:] == [str(counts[0]), *density, str(counts[3]), str(counts[4]), f"{iou:.3f}"]
    assert rows[-1][1] == str(sums[0])
    assert rows[-1][4:6] == [str(sums[3]), str(sums[4])]
    assert f"{sums[3]:,} weights newly kept, {sums[4]:,} newly pruned" in repr(result)
    kept = sparse.forget(FORGET, "FT", epochs=1)
    assert "What changed of the mask" not in kept.report("kept.html").read_text()
    assert "mask" not in kept.outcome.to_json()["state"]


def test_a_count_of_one_has_a_singular(own_mlp, digits, workplace):
    """One record, one epoch, one round, one step: in history, text, representation and report."""
    adopted = expunge.adopt(
        own_mlp, digits, train=range(300), factory=make_mlp, recipe={"epochs": 1, "batch_size": 300}
    )
    inner = {"epochs": 1, "batch_size": 300}
    around = {"initial": "random", "method_options": inner}
    for model, name, options in ((adopted, "FT", inner), (adopted, "PGU", inner), (adopted, "Retrain", {}),
                                 (adopted.prune(0.5), "Un-prune", around)):  # fmt: skip
        result = model.forget([1], name, options=options)
        page = result.report("report.html").read_text()
        lines = "\n".join([*result.trained.provenance.history, result.text(), repr(result), page])
        assert name == "Retrain" or "1 record" in result.trained.provenance.history[-1]
        assert re.findall(r"(?<![\d.,\w%-])1 (?:record|epoch|round|step|optimiser step|tensor|weight)s\b", lines) == []


@pytest.mark.parametrize("shared", [False, True])
def test_the_report_counts_non_members_of_forgotten_subjects(own_mlp, digits, workplace, shared):
    subjects = [f"of {row}" for row in range(len(digits))]
    subjects[3] = subjects[390 if shared else 4] = "p1"
    data = dataclasses.replace(digits, subject_ids=np.asarray(subjects))
    adopted = expunge.adopt(own_mlp, data, train=range(300), non_members=range(390, 440))
    request = expunge.forget_subjects(data, adopted.split, "p1")
    page = adopted.forget(request, "FT", epochs=1).report("report.html").read_text()
    assert ("Some records of the forgotten subjects were not in training." in page) == shared
    assert ("Non-members are other subjects." in page) != shared
    assert "may be other subjects" not in page


def test_one_report_shows_several_results(adopted, workplace):
    result, truth = adopted.forget(FORGET, "FT", epochs=1), adopted.forget(FORGET, "Retrain")
    ascent = adopted.forget(FORGET, "GA", epochs=1)
    longer = adopted.forget(FORGET, "FT", epochs=2)
    seeded = adopted.forget(FORGET, "FT", epochs=2, seed=3)
    page = result.report("report.html", truth, others=[ascent, longer, seeded, result, truth]).read_text()
    fts = ["FT (epochs=1, seed=0)", "GA", "FT (epochs=2, seed=0)", "FT (epochs=2, seed=3)"]
    assert rows_of(page) == ["Original", "Retrain", *fts]
    for one in (result, ascent, longer, seeded):
        assert f"{one.evaluate(truth)['RA'].value:.2f}" in page
        assert one.trained.hash[:12] in page
    assert "forgetting with FT and GA" in page
    named = result.report("named.html", truth, others={"two epochs": longer, "FT": ascent}).read_text()
    assert rows_of(named) == ["Original", "Retrain", "FT (epochs=1)", "two epochs", "FT"]
    same = result.report("same.html", others=[adopted.forget(FORGET, "FT", epochs=1)]).read_text()
    assert rows_of(same) == ["Original", "FT", "FT [2]"]
    alone = result.report("alone.html", truth, others=ascent).read_text()
    assert rows_of(alone) == ["Original", "Retrain", "FT", "GA"]
    assert result.evaluate(truth).to_json()["scores"] == result._latest["scores"].to_json()["scores"]


def test_results_of_a_dense_and_a_sparse_model_are_compared_apart(adopted, workplace):
    truth, sparse = adopted.forget(FORGET, "Retrain"), adopted.prune(0.5)
    dense, pruned = adopted.forget(FORGET, "FT", epochs=1), sparse.forget(FORGET, "FT", epochs=1)
    page = dense.report("report.html", truth, others=[pruned]).read_text()
    assert rows_of(page) == ["Original", "Retrain", "FT"] * 2
    assert "<span>dense</span>" in page
    assert "<span>50 % sparse</span>" in page
    first, second = adopted.forget([1], "FT", epochs=1), adopted.forget([1], "GA", epochs=1)
    chained = first.forget([2], "GA", epochs=1).report("chain.html", others=[second.forget([2], "FT", epochs=1)])
    assert "<span>dense, FT: 1 record" in chained.read_text()
    assert "<span>dense, GA: 1 record" in chained.read_text()


def test_other_requests_have_no_place_in_a_report(adopted, own_mlp, digits, workplace):
    result = adopted.forget([1, 2, 3], "FT", epochs=0)
    names = [str(name) for name in digits.record_ids[[3, 7]]]
    with pytest.raises(RequestError) as refused:
        result.report("r.html", others=[result, adopted.forget([1, 2, 7], "GA", epochs=0)])
    assert refused.value.what == (
        f"GA is the result of another request: 1 record is only in that of this result ({names[0]}) and "
        f"1 record is only in that of GA ({names[1]})"
    )
    later = adopted.forget([7], "FT", epochs=0).forget([1, 2, 3], "GA", epochs=0)
    with pytest.raises(
        RequestError, match=f"later has another retain set: 1 record is only in that of this.*{names[1]}"
    ):
        result.report("r.html", others={"later": later})
    part = expunge.adopt(own_mlp, digits, train=range(299)).forget([1, 2, 3], "GA", epochs=0)
    with pytest.raises(RequestError, match="GA has another retain set"):
        result.report("r.html", others=[part])
    copied = Records(
        "copy", [f"x{row}" for row in range(len(digits))], digits.labels, digits.class_names, digits.features
    )
    foreign = expunge.adopt(own_mlp, copied, train=range(300)).forget([1, 2, 3], "GA", epochs=0)
    with pytest.raises(RequestError, match="GA is a model of other data: copy"):
        result.report("r.html", others=[foreign])
    corrected = [adopted.correct({5: label}, "FT", epochs=0) for label in ("1", "2")]
    with pytest.raises(RequestError, match="other new values of the same records"):
        corrected[0].report("r.html", others=corrected[1:])
    for wrong, said in (([adopted], "others\\[0\\]: is an AdoptedModel"), ({"": result}, "name '' is not a text"),
                        ({"a": result.trained}, "others\\['a'\\]: is a Trained"), (5, "others: is an int"),
                        ("GA", "others: is a str")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            result.report("r.html", others=wrong)
    assert not (workplace / "r.html").exists()


def test_a_result_tells_its_optimiser_steps(adopted, tmp_path):
    """Two epochs over D_f in batches of two are six steps: in the text, the repr, the outcome and the report."""
    result = adopted.forget(FORGET, "GA", epochs=2, batch_size=2)
    assert result.outcome.to_json()["cost"]["optimiser_steps"] == 6
    assert ", 6 optimiser steps, " in repr(result)
    assert ", 6 optimiser steps, " in result.text()
    result.evaluate()
    assert ", 6 optimiser steps, " in result.text()
    assert ">6 steps<" in result.report(tmp_path / "report.html").read_text(encoding="utf-8")


class _Balanced(html.parser.HTMLParser):
    """Raises for a tag that is closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_notebooks_show_well_formed_and_escaped_html(own_mlp, digits):
    assert digits.features is not None
    hostile = Records(
        "<script>alert(1)</script>&", digits.record_ids, digits.labels, digits.class_names, digits.features
    )  # fmt: skip
    model = expunge.adopt(
        own_mlp, hostile, train=range(300), test=range(300, 390), factory=make_mlp, recipe={"epochs": 1}
    )
    result = model.forget(FORGET, "FT", epochs=1)
    shown = [model, result, model.methods(), result.evaluate(reference=model.forget(FORGET, "Retrain"))]
    for one in [*shown, result]:
        text = one._repr_html_()
        parser = _Balanced()
        parser.feed(text)
        assert parser.open == []
        assert parser.tags <= {"div", "strong", "table", "tbody", "tr", "td", "th"}
        ET.fromstring(text)
        assert "<script" not in text
        assert not any(str(record_id) in text for record_id in digits.record_ids[FORGET])
        assert repr(one)
    assert "&lt;script&gt;" in model._repr_html_()
    assert "FT, 5 records forgotten" in result._repr_html_()
    assert "UA" in result._repr_html_()  # the scores that were measured last
    assert "guarantee: empirical" in result.text()


def test_unknown_options_of_scores_are_refused(adopted):
    result = adopted.forget(FORGET, "FT", epochs=0)
    with pytest.raises(ConfigError, match="scores have no option 'svc_record'"):
        result.evaluate(svc_record=10)
    with pytest.raises(ConfigError, match="is a str"):
        result.evaluate(reference="Retrain")


def test_a_reference_that_was_not_retrained_is_a_warning_wherever_it_is_given(adopted, tmp_path):
    result, truth = adopted.forget(FORGET, "GA", epochs=1), adopted.forget(FORGET, "Retrain")
    tuned = adopted.forget(FORGET, "FT", epochs=1)
    said = "the reference was not retrained"
    for reference in (tuned, tuned.trained, tuned.evaluate()):
        with pytest.warns(ExpungeWarning, match=said) as caught:
            scores = result.evaluate(reference=reference)
        assert caught[0].filename == __file__
        assert "FT: 5 records forgotten" in scores.warnings[0].message
        assert scores.text().startswith(f"WARNING: {said}")
    with pytest.warns(ExpungeWarning, match=said):
        assert said in adopted.evaluate(FORGET, tuned).text()
    with pytest.warns(ExpungeWarning, match=said):
        page = result.report(tmp_path / "report.html", tuned).read_text(encoding="utf-8")
    assert "The reference is not a retrained model" in page
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExpungeWarning)
        for reference in (truth, truth.trained, truth.evaluate()):
            assert said not in result.evaluate(reference=reference).text()
        second = result.forget([4], "FT", epochs=1)
        chained = truth.forget([4], "Retrain")
        assert said not in second.evaluate(reference=chained).text()
    with pytest.warns(ExpungeWarning, match=said):  # a retrained model that then forgot by fine-tuning
        second.evaluate(reference=truth.forget([4], "FT", epochs=1))
    corrected = adopted.correct({5: "1"}, "FT", epochs=1)
    with pytest.warns(ExpungeWarning, match=said):
        corrected.evaluate(reference=adopted.correct({5: "1"}, "FT", epochs=2))


def test_a_saved_reference_says_how_it_was_made(adopted, tmp_path):
    retrain = {"name": "Retrain", "options": {"seeds": "new"}}
    steps = [retrain, {"name": "FT", "options": {"epochs": 1}}]
    around = {"method": "Retrain", "method_options": {"seeds": "new"}, "initial": "random"}
    for name, options, retrained in (
        ("FT", {}, False),
        ("Retrain", {}, True),
        ("then", {"steps": steps}, True),
        ("Un-prune", around, True),
        ("Un-prune", {"initial": "random"}, False),
    ):
        model = adopted.prune(0.5) if name == "Un-prune" else adopted
        made = model.forget(FORGET, name, options=options)
        saved = expunge.load_trained(made.save(tmp_path / f"{name}{retrained}"))
        scores = expunge.evaluate(saved, made.outcome.request, adopted.data)
        assert scores.about["retrained"] is retrained, name


def test_a_retrained_model_with_frozen_parameters_is_a_reference(own_mlp, digits):
    """Frozen parameters were not trained on the records; the others are those of a training on D_r."""

    def freeze(network):
        next(network.parameters()).requires_grad_(False)
        return network

    own = freeze(copy.deepcopy(own_mlp))
    recipe = {"epochs": 1, "batch_size": 64}
    model = expunge.adopt(own, digits, train=range(300), factory=lambda: freeze(make_mlp()), recipe=recipe)
    truth = model.forget(FORGET, "Retrain")
    assert truth.guarantee == "empirical"
    scores = model.forget(FORGET, "FT", epochs=1).evaluate(reference=truth)
    assert "reference-not-retrained" not in {warning.code for warning in scores.warnings}


def test_a_method_that_changed_nothing_is_a_warning_of_scores_and_report(adopted, workplace):
    for method, options, unchanged in (("SSD", {"alpha": 1e9}, True), ("SSD", {"alpha": 1.0}, False),
                                       ("FT", {"epochs": 0}, True), ("FT", {"epochs": 1}, False)):  # fmt: skip
        result = adopted.forget(range(20), method, **options)
        scores = result.evaluate()
        found = [warning for warning in scores.warnings if warning.code == "nothing-changed"]
        assert bool(found) == unchanged, (method, options)
        assert (f"WARNING: {method} changed nothing: all 4 tensors" in scores.text()) == unchanged
        page = result.report("report.html").read_text()
        assert ("A method changed nothing: its model is the original." in page) == unchanged


def test_a_reference_that_forgot_other_rows_is_refused_with_the_rows(adopted, digits, workplace):
    result = adopted.forget([1, 2, 3], "FT", epochs=0)
    more, fewer = adopted.forget([1, 2, 3, 4], "Retrain"), adopted.forget([1, 2], "Retrain")
    other = adopted.forget([1, 2, 7], "Retrain")
    names = [str(name) for name in digits.record_ids[[3, 4, 7]]]
    for call in (lambda: result.evaluate(more), lambda: result.evaluate(more.trained),
                 lambda: result.report("r.html", more)):  # fmt: skip
        with pytest.raises(RequestError) as refused:
            call()
        assert f"1 record is only in that of this model ({names[1]})" in refused.value.what
        assert "earlier requests" not in str(refused.value)
    with pytest.raises(RequestError, match=f"trained on 1 of the 3 records of D_f .{names[0]}"):
        result.evaluate(other)
    with pytest.raises(RequestError, match=f"trained on 1 of the 3 records of D_f .{names[0]}"):
        result.evaluate(fewer)
    with pytest.raises(RequestError, match="trained on D_f"):
        result.evaluate(adopted.trained)
    truth = expunge.evaluate(
        more.trained, result.outcome.request, digits, runtime=expunge.Runtime("cpu")
    )  # fmt: skip
    with pytest.raises(RequestError, match=r"another retain set: \d+ records beside \d+"):
        result.evaluate(truth)
