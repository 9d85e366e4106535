"""Hostile and damaged result files: an error that names the key, in little time and memory."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from json_edits import edit

from expunge.core.errors import ConfigError, ExpungeError, FileError
from expunge.experiments import read_results, render_figure, render_table
from expunge.experiments.results.schema import check_results

PLANS = Path(__file__).parents[3] / "plans"
#: Edits of each file: EXPUNGE_JSON_EDITS=2000 runs the count that SECURITY.md names.
COUNT = int(os.environ.get("EXPUNGE_JSON_EDITS", "150"))


def small(name: str) -> dict[str, Any]:
    """A result file of this repository, with a few of its cells."""
    body: dict[str, Any] = json.loads((PLANS / f"{name}.results.json").read_text())
    keep = [i for i, cell in enumerate(body["cells"]) if cell["reference"] < 12][:12]
    body["cells"] = [{**body["cells"][i], "reference": keep.index(body["cells"][i]["reference"])} for i in keep]
    return body


@pytest.mark.parametrize("name", ["topology-digits", "patches-adult", "har-person"])
def test_edited_results(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.results.json"
    body = small(name)
    path.write_text(json.dumps(body))
    score = next(iter(body["cells"][0]["scores"]))
    assert render_table(read_results(path)), "the file without an edit is read"
    refused, broken = 0, []
    for number in range(COUNT):
        what, changed = edit(body, random.Random(f"{name}/{number}"))
        path.write_text(json.dumps(changed))
        try:
            found = read_results(path)
            for style in ("text", "markdown"):
                render_table(found, style)
            if number % 50 == 0:
                render_figure(found, score)
        except ConfigError:  # the score is not in the file
            pass
        except FileError as error:
            refused += 1
            if str(path) not in str(error):
                broken.append(f"{number}: {what}: the message does not name the file")
        except Exception as error:
            broken.append(f"{number}: {what}: {error!r}"[:300])
    assert broken == []
    assert refused > COUNT / 5


def axes(body: dict[str, Any]) -> None:
    """40 axes of two labels: 2^40 combinations."""
    for number in range(40):
        body["axes"].append({"name": f"a{number}", "role": "case", "labels": ["x", "y"]})
        for cell in body["cells"]:
            cell["labels"][f"a{number}"] = "x"


def long_label(body: dict[str, Any]) -> None:
    """A label of 1 MB: every row is padded to it."""
    body["axes"][0]["labels"][0] = label = "x" * 2**20
    name = body["axes"][0]["name"]
    body["cells"] = [{**cell, "labels": {**cell["labels"], name: label}} for cell in body["cells"]]


def wide(body: dict[str, Any]) -> None:
    """5,000 methods at 5,000 sparsities, each once."""
    body["axes"] = [
        {"name": role, "role": role, "labels": [str(n) for n in range(5000)]} for role in ("method", "sparsity")
    ]
    cell = {**body["cells"][0], "reference": 0}
    body["cells"] = [{**cell, "labels": {"method": str(n), "sparsity": str(n)}} for n in range(5000)]


def many_cells(body: dict[str, Any]) -> None:
    cell = {**body["cells"][0], "reference": 0, "scores": {}, "intervals": {}}
    body["cells"] = [cell] * 20_000


def many_cases(body: dict[str, Any]) -> None:
    """5,000 cases of one cell: linear, so it is read."""
    body["axes"] = [{"name": "case", "role": "case", "labels": [str(n) for n in range(5000)]}]
    cell = {**body["cells"][0], "reference": 0, "scores": {"UA": 1.0}, "intervals": {}}
    body["cells"] = [{**cell, "labels": {"case": str(n)}} for n in range(5000)]
    body.pop("overlaps", None)


#: What is hostile, and words of the error; None: it is read.
BOMBS: dict[str, tuple[Callable[[dict[str, Any]], None], str | None]] = {
    "40 axes of two labels: 2^40 combinations": (axes, None),
    "a label of 1 MB": (long_label, "1,048,576 characters"),
    "5,000 methods at 5,000 sparsities": (wide, "5,000 rows"),
    "20,000 cells": (many_cells, "20,000 cells"),
    "5,000 cases": (many_cases, None),
}


@pytest.mark.parametrize("case", BOMBS)
def test_large_results(case: str, tmp_path: Path) -> None:
    change, words = BOMBS[case]
    body = small("har-person")
    change(body)
    path = tmp_path / "a.results.json"
    path.write_text(json.dumps(body))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31));"
        "resource.setrlimit(resource.RLIMIT_CPU, (20, 20));"
        "from expunge.cli import main; sys.argv = ['expunge', 'bench', 'table', *sys.argv[1:]]; main()"
    )
    command = [sys.executable, "-c", code, str(path), "--style", "markdown"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if words is None:
        assert done.returncode == 0, done.stderr[-500:]
    else:
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr[-500:]
    assert "Traceback" not in done.stderr


def test_a_figure_of_many_panels(tmp_path: Path) -> None:
    body = small("har-person")
    many_cases(body)
    start = time.process_time()
    with pytest.raises(ConfigError, match="panels"):
        render_figure(body, "UA")
    assert time.process_time() - start < 10


def test_cells_are_grouped_in_the_order_of_the_labels() -> None:
    """The same groups, in the same order, as the product of the labels."""
    from expunge.experiments.results.groups import group_by_labels

    given = [{"name": "a", "labels": ["y", "x"]}, {"name": "b", "labels": ["2", "1", "0"]}]
    cells = [{"labels": {"a": a, "b": b, "c": c}} for c in "pq" for a in "xy" for b in "012" if (a, b) != ("x", "1")]
    expected = []
    for choice in itertools.product(*(axis["labels"] for axis in given)):
        own = [cell for cell in cells if (cell["labels"]["a"], cell["labels"]["b"]) == choice]
        expected += [(choice, own)] if own else []
    assert group_by_labels(cells, given) == expected


def test_an_error_names_file_and_key(tmp_path: Path) -> None:
    body = small("har-person")
    body["cells"][3]["scores"]["UA"] = "12"
    path = tmp_path / "a.results.json"
    path.write_text(json.dumps(body))
    with pytest.raises(ExpungeError, match=r"a\.results\.json: cells\.3\.scores\.UA: is '12', not a number"):
        read_results(path)


@pytest.mark.parametrize(
    ("meaning", "key"),
    [({}, ""), ({"unit": "%"}, ""), ({"unit": 3}, "scores.UA.unit"), ({"definition": "x", "citation": ""}, "")],
)
def test_what_a_file_says_of_a_score_may_be_left_out(meaning: dict[str, Any], key: str) -> None:
    body = small("har-person")
    body["scores"]["UA"] = meaning
    if key:
        with pytest.raises(FileError, match=key):
            check_results(body, "a file")
    else:
        check_results(body, "a file")


def test_the_error_of_a_cell_refers_to_the_format() -> None:
    body = small("topology-digits")
    del body["cells"][0]["labels"]
    with pytest.raises(FileError, match="labels") as caught:
        check_results(body, "a.results.json")
    assert caught.value.hint == "see docs/formats/results.md"
