"""Several retrained references: noise floors, what is refused, and the cost of the reference."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.core.errors import ConfigError, ExpungeWarning, RequestError

FORGET = [3, 14, 15, 92, 65]


def test_several_references_give_noise_floors(adopted, tmp_path):
    truths = [adopted.forget(FORGET, "Retrain", seed=seed) for seed in (0, 1, 2)]
    assert len({truth.trained.hash for truth in truths}) == 3
    result = adopted.forget(FORGET, "GA", epochs=2)
    single, several = result.evaluate(reference=truths[0]), result.evaluate(reference=truths)
    for score in several:  # the gaps are those to the first
        assert score.reference == single[score.name].reference
    values = [[truth.evaluate()[name].value for truth in truths] for name in ("TA", "UA")]
    floors = several.about["noise_floors"]
    assert [floors["TA"], floors["UA"]] == pytest.approx(
        [np.mean([abs(a - b), abs(a - c), abs(b - c)]) for a, b, c in values]
    )
    rows = {row["score"]: row for row in several.table()}
    assert rows["TA"]["noise floor"] == f"{floors['TA']:.2f}"
    assert "noise floor" in several.text()
    assert "noise floor" not in single.text()
    note = "gaps are those to the first of 3 references; the others give the noise floors"
    assert (note in several.text(), note in single.text()) == (True, False)
    assert result.evaluate(reference=[truth.evaluate() for truth in truths]).about["noise_floors"]["TA"] == floors["TA"]
    page = result.report(tmp_path / "report.html", reference=truths, others=truths[1:]).read_text(encoding="utf-8")
    assert f"(noise floor {floors['TA']:.2f})" in page or f"(noise floor {floors['UA']:.2f})" in page
    assert "Noise floor<small>3 seeds</small>" in page
    assert "no noise floor" not in page
    assert "Retrain (first of 3 references)" in page
    assert f"weights {truths[1].trained.hash[:12]}, {truths[2].trained.hash[:12]}." in page
    assert "first of" not in result.report(tmp_path / "one.html", reference=truths[0]).read_text(encoding="utf-8")
    assert "standard deviation over seeds" not in page  # the values are those of one seed
    assert page.count('<th scope="row">Retrain') == 1
    assert "no noise floor: one seed" in result.report(tmp_path / "one.html", reference=[truths[0]]).read_text("utf-8")


def test_references_that_cannot_give_a_noise_floor_are_refused(adopted, tmp_path):
    truth, result = adopted.forget(FORGET, "Retrain"), adopted.forget(FORGET, "GA", epochs=1)
    for call in (result.evaluate, lambda reference: result.report(tmp_path / "r.html", reference=reference)):
        with pytest.raises(ConfigError, match="one model"):
            call(reference=[truth, truth])
        with pytest.raises(ConfigError, match="empty"):
            call(reference=[])
        with pytest.raises(RequestError, match="only in"):
            call(reference=[truth, adopted.forget([1, 2], "Retrain")])
        with pytest.warns(ExpungeWarning, match="was not retrained"):
            call(reference=[truth, adopted.forget(FORGET, "FT", epochs=1)])
    other = adopted.forget([1, 2], "Retrain").evaluate()
    with pytest.raises(RequestError, match="another request"):
        result.evaluate(reference=[truth.evaluate(), other])


def test_evaluate_has_the_cost_of_the_reference_as_the_report_has(adopted, tmp_path):
    truth, result = adopted.forget(FORGET, "Retrain"), adopted.forget(FORGET, "GA", epochs=1)
    before = result.evaluate(reference=truth)
    result.report(tmp_path / "report.html", reference=truth)
    shown = result._latest["scores"]
    for name in ("Passes", "RTE"):
        assert before[name].reference == shown[name].reference
        assert before[name].reference == result.evaluate(reference=truth)[name].reference is not None
