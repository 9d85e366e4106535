"""What objects print about themselves agrees with them; HTML is well formed, and shows hostile names as text."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import expunge
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.outcome import Cost, Outcome
from expunge.core.request import ForgetRequest
from expunge.core.show import Summary, repr_html, repr_text
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained
from expunge.data.records import Records
from expunge.evaluation import Score, Scores
from expunge.evaluation.score import Interval

HOSTILE = "<script>alert('&')</script>\x1b[2J\u202e\n"


def make_split(count: int = 100) -> Split:
    ids = [f"id-{number}" for number in range(count)]
    return Split(ids[: count // 2], ids[count // 2 : -30], ids[-30:-20], ids[-20:-5], ids[-5:])


def make_mask(layers: int = 20, name: str = "layer") -> Mask:
    kept = {
        f"{name}{number}.weight": torch.arange(1000).reshape(10, 100) % 10 <= number % 3 for number in range(layers)
    }
    return Mask(kept, MaskProvenance("magnitude", "erk", "filter", ("conv",), "omp"))


def make_trained(mask: Mask | None = None, name: str = "net") -> Trained:
    model = nn.Sequential(nn.Linear(7, 3), nn.BatchNorm1d(3))
    architecture = {"name": name, "input_shape": [7], "classes": 3, "normalisation_from": "training records"}
    provenance = Provenance(architecture, {"name": "toy", "hash": "0" * 64}, history=("trained", "pruned"))
    return Trained(model, mask, make_split(), provenance, {"extra-tensors": {"a": torch.zeros(2)}})


def make_outcome(name: str = "net") -> Outcome:
    trained = make_trained(make_mask(), name)
    request = ForgetRequest(trained.split.forget)
    cost = Cost(trained_records=100, forward_records=75, retain_records=50, seconds=1.234)
    return Outcome(trained, request, "FT", {"epochs": 2}, "empirical", cost, ("weights", "batch_norm"), ("optimiser",))


def make_scores(count: int = 3, name: str = "TA") -> Scores:
    scores = (
        Score(f"{name} {number}", 90.0 + number, "%", "higher", "x" * 300, "", 95.0, Interval(89.0, 99.0))
        for number in range(count)
    )
    return Scores(tuple(scores), {"seed": 0}, ("a note",))


def make_records(name: str = "toy", **other: Any) -> Records:
    ids = [f"id-{number}" for number in range(40)]
    labels = [0] * 30 + [1] * 10
    return Records(name, ids, labels, ("no", "yes"), np.zeros((40, 3, 8, 8), dtype=np.uint8), **other)


def test_mask_shows_its_counts() -> None:
    mask = make_mask()
    expected = f"<Mask: {mask.kept_count:,} of {mask.total:,} weights kept in 20 tensors (density {mask.density:.4g}); "
    assert repr(mask) == f"{expected}magnitude, erk, filter, omp>"
    assert mask.kept_count == 100 * (7 * 1 + 7 * 2 + 6 * 3)  # the weights of layer k with a last digit of 0..k % 3


def test_mask_without_weights_has_density_one_as_the_property_says() -> None:
    empty = Mask({}, MaskProvenance("unknown"))
    assert empty.density == 1.0
    assert repr(empty) == "<Mask: 0 of 0 weights kept in 0 tensors (density 1); unknown, global, weight, one-shot>"
    assert "width:100.00%" in Mask({"a": torch.zeros(0, dtype=torch.bool)}, MaskProvenance("x"))._repr_html_()


def test_split_shows_its_counts() -> None:
    assert repr(make_split()) == "<Split: 50 retain, 20 forget, 10 validation, 15 test, 5 non_members>"


@pytest.mark.parametrize(
    ("selection", "shown"),
    [
        ({"by": "ids", "file": "ids.txt"}, "ids (file 'ids.txt')"),
        ({"by": "subjects", "subjects": ["Ann", "Bob"]}, "subjects (subjects <2 items>)"),
        ({"by": "random", "fraction": 0.1, "seed": 3}, "random (fraction 0.1, seed 3)"),
        ({}, "ids"),
    ],
)
def test_request_shows_how_it_was_selected_and_no_person(selection: dict[str, Any], shown: str) -> None:
    request = ForgetRequest(["Ann-1", "Bob-1"], selection, hold=["Eve-1"])
    assert repr(request) == f"<ForgetRequest: 2 records by {shown}, 1 on hold>"
    assert not any(person in request._repr_html_() for person in ("Ann", "Bob", "Eve"))


def test_records_show_shape_classes_subjects_and_storage() -> None:
    records = make_records(subject_ids=[f"s{number % 7}" for number in range(40)])
    assert repr(records) == "<Records: toy, 40 records, 3 x 8 x 8 uint8 in memory, 2 classes, 7 subjects>"
    assert "2, with 10 to 30 records each" in records._repr_html_()


def test_a_stream_is_not_read() -> None:
    class Stream:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            raise AssertionError("an item was read")

    records = Records("toy", ["a", "b", "c"], [0, 0, 0], ("one",), stream=Stream())
    assert repr(records) == "<Records: toy, 3 records, streamed, 1 class>"
    assert "streamed" in records._repr_html_()


def test_subjects_of_many_records_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.data.records._COUNTED", 39)
    assert "subjects recorded" in repr(make_records(subject_ids=["s"] * 40))


def test_weights_of_a_huge_mask_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.core.mask._COUNTED", 19_999)
    assert repr(make_mask()).startswith("<Mask: 20,000 weights in 20 tensors, not counted; ")
    assert "density" not in make_mask()._repr_html_()


def test_trained_shows_what_it_is() -> None:
    trained = make_trained(make_mask())
    lines = dict(line.strip().split("  ", 1) for line in repr(trained).split("\n")[1:])
    assert repr(trained).startswith(f"Trained: net, {sum(p.numel() for p in trained.model.parameters())} parameters\n")
    assert lines["network"].strip() == "Sequential, input 7 features, classes 3"
    assert lines["mask"].strip() == repr(trained.mask)[len("<Mask: ") : -1]
    assert lines["records"].strip() == f"toy; {repr(trained.split)[len('<Split: ') : -1]}"
    assert lines["state"].strip() == ", ".join(trained.list_influence_state())
    assert lines["normalisation"].strip() == "training records"
    assert "none: a dense model" in repr(make_trained())


def test_outcome_shows_what_happened() -> None:
    outcome = make_outcome()
    text = repr(outcome)
    assert text.startswith("Outcome: FT, 20 records forgotten, guarantee empirical\n")
    assert f"{outcome.cost.passes:.2f} passes over 50 retained records, 1.23 s" in text
    assert outcome.cost.passes == 2.5
    for count, line in ((1, "1 optimiser step, 1.23 s"), (34, "34 optimiser steps, 1.23 s")):
        counted = dataclasses.replace(outcome, cost=dataclasses.replace(outcome.cost, optimiser_steps=count))
        assert f"2.50 passes over 50 retained records, {line}" in repr(counted)
    for names in (outcome.rewrote, outcome.dropped, outcome.carried):
        assert names
        assert f"  {', '.join(names)}\n" in text


def test_scores_show_the_first_lines_of_their_table() -> None:
    scores = make_scores()
    lines = repr(scores).split("\n")
    assert lines[0] == "Scores: 3 scores, 3 with a reference, 1 note"
    for shown, line in zip(lines[1:], scores.text().split("\n"), strict=False):
        assert line.startswith(shown.strip())
    assert repr(scores["TA 0"]) == (
        "<Score: TA 0 90.00 %, interval [89.00, 99.00] (95 %), reference 95.00 %, gap -5.00; higher is better>"
    )
    many = repr(make_scores(48)).split("\n")
    assert len(many) == 15
    assert many[-1].strip() == "... 36 more: see text()"
    assert repr(Scores(())) == "Scores: 0 scores, 0 with a reference"


def test_large_objects_print_little() -> None:
    network = expunge.Architecture("resnet20", {}, (3, 32, 32), 10)
    model = network.build(seed=0)
    kept = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() == 4}
    mask = Mask(kept, MaskProvenance("magnitude", details={"left_out": [f"layer{i}" for i in range(500)]}))
    provenance = Provenance(network.to_json(), recipe={"milestones": list(range(500))}, history=("x" * 500,) * 90)
    trained = Trained(model, mask, make_split(20_000), provenance, {"rewind_checkpoint": model.state_dict()})
    assert len(repr(trained)) < 1_000
    assert len(repr(provenance)) < 1_000
    assert len(repr(mask.provenance)) < 1_000
    began = time.process_time()
    repr(trained), repr(trained.split), repr(mask)
    assert time.process_time() - began < 0.5  # one hash of the split alone takes longer in a large one
    assert "hash" not in vars(trained.split)


NAMED = [
    make_records(HOSTILE),
    make_split(),
    ForgetRequest(["a"], {"by": HOSTILE, HOSTILE: HOSTILE}),
    make_mask(name=HOSTILE),
    make_trained(make_mask(150, HOSTILE), HOSTILE),
    make_outcome(HOSTILE),
    make_scores(150, HOSTILE),
    make_scores(1, HOSTILE)[f"{HOSTILE} 0"],
]


@pytest.mark.parametrize("shown", NAMED, ids=lambda value: type(value).__name__)
def test_html_is_well_formed_and_has_only_text_of_others(shown: Any) -> None:
    html = shown._repr_html_()
    root = ET.fromstring(html)  # every element is closed, and no name became an element
    assert {element.tag for element in root.iter()} <= {"div", "strong", "table", "tbody", "tr", "th", "td"}
    assert {name for element in root.iter() for name in element.attrib} <= {"style", "scope", "colspan"}
    assert not any(word in html for word in ("url(", "http", "\x1b", "\u202e"))
    assert len(html) < 80_000
    assert not any(mark in repr(shown) for mark in ("\x1b", "\u202e"))
    assert repr(shown).count("\n") < 16


def test_hostile_names_are_readable_text_in_html() -> None:
    text = "".join(ET.fromstring(make_mask(name=HOSTILE)._repr_html_()).itertext())
    assert "<script>alert('&')</script>\\x1b[2J\\u202e\\x0a0.weight" in text


@pytest.mark.parametrize("make", [make_mask, lambda: make_trained(make_mask()), make_outcome])
def test_bars_have_the_density_of_each_layer(make: Any) -> None:
    mask = make_mask()
    root = ET.fromstring(make()._repr_html_())
    widths = [e.get("style", "").rpartition("width:")[2] for e in root.iter("div") if "%" in e.get("style", "")]
    assert widths == [f"{100 * density:.2f}%" for density in mask.layer_density().values()]
    cells = ["".join(cell.itertext()) for cell in root.iter("td")]
    for name, kept in mask.kept.items():
        assert f"{float(kept.float().mean()):.4g} ({int(kept.sum()):,} of 1,000)" == cells[cells.index(name) + 2]


def test_html_table_of_scores_has_every_cell() -> None:
    scores = make_scores()
    rows = [["".join(cell.itertext()) for cell in row] for row in ET.fromstring(scores._repr_html_()).iter("tr")]
    table = scores.table()
    assert rows == [list(table[0]), *([row[key] for key in row] for row in table)]
    assert "and 90 more" in make_scores(150)._repr_html_()


def test_equality_copies_pickles_and_replacement_are_those_of_before() -> None:
    small = MaskProvenance("magnitude", layers=("conv",))
    assert small == MaskProvenance("magnitude", layers=("conv",)) != dataclasses.replace(small, criterion="snip")
    assert make_split() != make_split()
    for value in (small, make_split(), make_scores(), expunge.get_recipe("one-cycle")):
        assert repr(pickle.loads(pickle.dumps(value))) == repr(copy.deepcopy(value)) == repr(value)
    assert repr(dataclasses.replace(make_split(), retain=[])).startswith("<Split: 0 retain,")
    assert make_scores() == make_scores() != make_scores(4)


def test_pytest_names_the_fields_that_differ() -> None:
    """A short `repr` could hide the difference of two values; pytest compares the fields."""
    one, other = MaskProvenance("magnitude", details={"a": 1}), MaskProvenance("snip", details={"a": 1})
    with pytest.raises(AssertionError) as caught:
        assert one == other
    assert "Differing attributes" in str(caught.value)
    assert "'criterion'" in str(caught.value)
    with pytest.raises(AssertionError) as caught:
        assert Score("TA", 1.0, "%", "higher", "one") == Score("TA", 1.0, "%", "higher", "other")
    assert "'definition'" in str(caught.value)


def fail() -> Any:
    raise ZeroDivisionError


def test_a_fact_that_fails_does_not_hide_the_others() -> None:
    class Broken:
        def _summarise(self) -> Summary:
            return Summary(lambda: "title", {"good": lambda: "yes", "bad": fail}, True, fail, fail, fail)

        __repr__ = repr_text
        _repr_html_ = repr_html

    assert repr(Broken()).split("\n") == [
        "Broken: title",
        "  good  yes",
        "  bad   not available (ZeroDivisionError)",
        "  not available (ZeroDivisionError)",
    ]
    text = "".join(ET.fromstring(Broken()._repr_html_()).itertext())
    assert text.count("not available (ZeroDivisionError)") == 3
    assert "goodyes" in text


def test_printing_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np, expunge\n"
        "from expunge.evaluation.score import Score\n"
        "ids = ['a', 'b', 'c']\n"
        "split = expunge.Split(['a'], ['b'], ['c'], [], [])\n"
        "records = expunge.Records('toy', ids, [0, 0, 0], ('x',), np.zeros((3, 2), dtype=np.float32))\n"
        "scores = expunge.Scores((Score('TA', 1.0, '%', 'higher', ''),))\n"
        "for value in (split, expunge.ForgetRequest(ids), records, scores):\n"
        "    repr(value), value._repr_html_()\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
