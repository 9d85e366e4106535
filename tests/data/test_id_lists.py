"""Lists of ids: files with headers, several ids in one string, zeros that YAML drops, ids that are missing."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.core.errors import ConfigError, RequestError
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.data import Records, check_selection, forget_column, forget_ids, forget_subjects, read_ids, select_forget
from expunge.data.reading.id_lists import SUBJECT_HEADERS
from expunge.data.requests import describe_outside, describe_skipped
from expunge.experiments.config.run_config import load_config
from expunge.experiments.config.yaml_source import parse_yaml

IDS = [f"p{i:03d}" for i in range(40)]


@pytest.fixture
def records() -> Records:
    return Records(
        "people",
        IDS,
        [i % 2 for i in range(40)],
        ("no", "yes"),
        np.random.default_rng(0).random((40, 3)).astype(np.float32),
        subject_ids=[f"{i // 4:04d}" for i in range(40)],
        columns={"code": np.asarray(["1.50", "1.5"] * 20)},
    )


@pytest.fixture
def split() -> Split:
    return Split(retain=IDS[:24], forget=IDS[24:28], validation=IDS[28:32], test=IDS[32:36], non_members=IDS[36:])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "id\np003\np001\n"),
        ("a.csv", "ID\np003\np001\n"),
        ("a.csv", "Record ID\np003\np001\n"),
        ("a.csv", "\ufeffrecord_id\np003\np001\n"),
        ("a.csv", "name,id\nx,p003\ny,p001\n"),
        ("a.csv", "id,record_id\n1,p003\n2,p001\n"),
        ("a.csv", "name;id\nx, y;p003\nz;p001\n"),
        ("a.csv", 'record_id;name\np003;"x; y"\np001;z\n'),
        ("a.tsv", "id\tname\np003\tx\np001\ty\n"),
        ("a.csv", "p003\np001\n"),
        ("a.CSV", "\nids\n\np003\np001\n"),
        ("a.txt", "p003\n  p001 \n\n"),
    ],
)
def test_files_of_ids(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_ids(tmp_path / name) == ["p003", "p001"]


def test_a_header_that_is_also_an_id(tmp_path: Path, split: Split) -> None:
    ids = ["id", *IDS[1:]]
    records = Records("s", ids, [0] * 40, ("x",), np.zeros((40, 1), np.float32))
    (tmp_path / "a.csv").write_text("id\np003\n")
    with pytest.raises(RequestError, match="may be the header or one of the ids"):
        forget_ids(records, split, tmp_path / "a.csv")


@pytest.mark.parametrize("given", ["p001,p002", "p001, p002", "p001;p002", "p001 p002", "p001\tp002\tp003"])
def test_several_ids_in_one_string(records: Records, split: Split, tmp_path: Path, given: str) -> None:
    hint = f"these are {2 + given.count('p003')} ids in one string: write a list"
    for selection in ({"ids": given}, {"ids": [given]}, {"ids": ["p003", given]}):
        with pytest.raises(RequestError, match=hint):
            select_forget(records, split, {"by": "ids", **selection})
    (tmp_path / "ids.txt").write_text(given)
    with pytest.raises(RequestError, match=hint):
        forget_ids(records, split, tmp_path / "ids.txt")
    with pytest.raises(RequestError, match=hint):
        select_forget(records, split, {"by": "class", "index": 0, "hold": [given]})
    with pytest.raises(RequestError, match="these are 2 ids in one string"):
        forget_subjects(records, split, ["0001,0002"])


def test_a_header_in_a_text_file_and_numbers_without_zeros(records: Records, split: Split, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("patient\np001\np002\n")
    with pytest.raises(RequestError, match="line 1 may be a header"):
        forget_ids(records, split, tmp_path / "ids.txt")
    with pytest.raises(RequestError, match=r"did you mean '0003'. quote it in YAML"):
        forget_subjects(records, split, [3])


@pytest.mark.parametrize("text", ["0001", "-007", "+01", "00", "0001.5", "01e3", "00.5"])
@pytest.mark.parametrize(
    "place", ["forget: {by: ids, ids: [%s]}", "forget: {by: subjects, subjects: [x, %s]}", "a: %s"]
)
def test_yaml_numbers_with_leading_zeros(text: str, place: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml:1: .*leading zeros would be lost") as caught:
        parse_yaml(place % text, "run.yaml")
    assert f"quote it if it is a name, such as a record id: '{text}'" in str(caught.value.hint)
    for quoted in (f"'{text}'", f'"{text}"'):
        assert text in str(parse_yaml(place % quoted, "run.yaml").value)


@pytest.mark.parametrize("text", ["0", "-0", "0.5", "10", "1e3", "0e1", ".5", "100", "0x10", "0001a", "2020-01-01"])
def test_other_yaml_scalars_are_as_before(text: str) -> None:
    expected: Any = text
    for make in (float, int):
        with contextlib.suppress(ValueError):
            expected = make(text)
    assert parse_yaml(f"a: {text}", "x").value == {"a": expected}


def test_an_override_with_zeros_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("{data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}}")
    with pytest.raises(ConfigError, match="leading zeros would be lost"):
        load_config(tmp_path / "run.yaml", ["forget.ids=[0001]"])


@pytest.mark.parametrize(
    ("selection", "match"),
    [
        ({"by": "ids", "ids": [1e5]}, "an id is 100000.0, not a string"),
        ({"by": "ids", "ids": [True]}, "an id is True"),
        ({"by": "ids", "ids": [None]}, "an id is None"),
        ({"by": "ids", "ids": [["a", "b"]]}, "an id is a list"),
        ({"by": "subjects", "subjects": [1.5]}, "an id is 1.5"),
        ({"by": "class", "index": 0, "hold": [1.0]}, "an id is 1.0"),
        ({"by": "class", "index": 0.6}, "index .*'0.6', not an integer"),
        ({"by": "class", "index": True}, "index .*'True', not an integer"),
        ({"by": "random", "count": 10.7}, "count .*'10.7', not an integer"),
        ({"by": "ids", "ids": ["a"], "on_missing": "ignore"}, "on_missing: unknown value 'ignore'"),
        ({"by": "ids", "ids": ["a"], "file": "b"}, "needs ids or file"),
        ({"by": "subjects"}, "needs subjects or file"),
        ({"by": "class", "index": 0, "on_missing": "skip"}, "has no key 'on_missing'"),
    ],
)
def test_selections_that_are_refused(selection: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        check_selection(selection)


def test_a_number_that_is_compared_with_strings(records: Records, split: Split) -> None:
    with pytest.raises(ConfigError, match="the column has strings"):
        select_forget(records, split, {"by": "column", "column": "code", "value": 1.50})
    assert forget_column(records, split, "code", value="1.50").record_ids.tolist() == IDS[:24:2]


@pytest.mark.parametrize("text", ["0001\n0003\n", "subject_id\n0001\n0003\n", "name,subject\nx,0001\ny,0003\n"])
def test_subjects_from_a_file(records: Records, split: Split, tmp_path: Path, text: str) -> None:
    path = tmp_path / ("subjects.txt" if text[0] == "0" else "subjects.csv")
    path.write_text(text)
    expected = [name for i, name in enumerate(IDS) if i // 4 in (1, 3)]
    for request in (
        forget_subjects(records, split, path),
        select_forget(records, split, {"by": "subjects", "file": str(path)}),
    ):
        assert request.record_ids.tolist() == expected
        assert request.selection == {"by": "subjects", "subjects": ["0001", "0003"], "file": str(path)}
    assert read_ids(path, SUBJECT_HEADERS) == ["0001", "0003"]


MISSING = ["p001", "p002", "nobody", "p025", "p033", "p038", "p030"]
KNOWN = [name for name in MISSING if name != "nobody"]
REASONS = {"forgotten before": ["p025"], "never trained on, by the split": ["p030", "p033", "p038"]}


def test_missing_ids_are_refused_or_skipped_and_listed(records: Records, split: Split, tmp_path: Path) -> None:
    for refuse in ({}, {"on_missing": "refuse"}):
        with pytest.raises(RequestError, match="nobody: no such record") as caught:
            forget_ids(records, split, MISSING, **refuse)
        assert "on_missing" not in str(caught.value.hint)  # which would not help
        with pytest.raises(RequestError, match="p025: was forgotten before") as caught:
            forget_ids(records, split, KNOWN, **refuse)
        assert "on_missing: skip" in str(caught.value.hint)
    (tmp_path / "ids.txt").write_text("\n".join(KNOWN))
    for selection in ({"ids": KNOWN}, {"file": str(tmp_path / "ids.txt")}):
        request = select_forget(records, split, {"by": "ids", **selection, "on_missing": "skip"})
        assert request.record_ids.tolist() == ["p001", "p002"]
        assert request.selection["skipped"] == REASONS
        assert ForgetRequest.from_json(request.to_json()).selection == request.selection
    assert request.hash == forget_ids(records, split, ["p001", "p002"]).hash
    assert "1 of the named ids was skipped (forgotten before): p025" in describe_skipped(request.selection)
    with pytest.raises(RequestError, match="on hold"):  # a named id on hold is still an error
        forget_ids(records, split, KNOWN, hold=["p001"], on_missing="skip")
    assert forget_ids(records, split, ["p033"], on_missing="skip").record_ids.tolist() == []


@pytest.mark.parametrize("on_missing", ["refuse", "skip"])
def test_an_unknown_name_stops_the_request_although_others_are_skipped(
    records: Records, split: Split, on_missing: str
) -> None:
    for named in (["nobody"], MISSING):
        with pytest.raises(RequestError, match="nobody: no such record"):
            forget_ids(records, split, named, on_missing=on_missing)
    with pytest.raises(RequestError, match="9999: no such subject"):
        forget_subjects(records, split, ["0001", "9999"], on_missing=on_missing)


def test_an_id_that_only_the_split_still_has_is_skipped(records: Records, split: Split) -> None:
    gone = dataclasses.replace(split, forget=[*split.forget, "p999"])
    request = forget_ids(records, gone, ["p001", "p999"], on_missing="skip")
    assert request.record_ids.tolist() == ["p001"]
    assert request.selection["skipped"] == {"forgotten before": ["p999"]}


def test_missing_subjects_are_refused_or_skipped_and_listed(records: Records, split: Split) -> None:
    with pytest.raises(RequestError, match="no such subject"):
        forget_subjects(records, split, ["0001", "9999"])
    request = forget_subjects(records, split, ["0001", "0009", "0006"], on_missing="skip")
    assert request.record_ids.tolist() == IDS[4:8]
    assert request.selection["skipped"] == {"no record in the retain set": ["0006", "0009"]}
    assert "outside" not in request.selection


def test_records_of_a_subject_outside_the_retain_set_are_counted(records: Records) -> None:
    split = Split(retain=IDS[2:20], forget=IDS[:1], validation=IDS[20:30], test=IDS[1:2], non_members=IDS[30:39])
    request = forget_subjects(records, split, ["0000", "0009"], on_missing="skip")
    assert request.record_ids.tolist() == IDS[2:4]
    assert request.selection["outside"] == {"forget": 1, "test": 1}
    (line,) = describe_outside(request.selection)
    assert line.startswith("2 more records of the named subjects are outside the retain set")
    assert line.endswith("1 forgotten before, 1 test")
    assert forget_subjects(records, split, ["0002"]).selection.get("outside") is None


def test_a_missing_file_is_called_what_it_should_have(records: Records, split: Split, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such file of subjects"):
        forget_subjects(records, split, tmp_path / "none.txt")
    with pytest.raises(RequestError, match="no such file of record ids"):
        forget_ids(records, split, tmp_path / "none.txt")
    (tmp_path / "gap.csv").write_text("name,subject\nx,0001\ny,\n")
    with pytest.raises(RequestError, match="the line has no subject"):
        forget_subjects(records, split, tmp_path / "gap.csv")


def test_requests_without_the_new_keys_are_as_before(records: Records, split: Split) -> None:
    assert forget_ids(records, split, ["p001"]).selection == {"by": "ids"}
    assert forget_subjects(records, split, ["0001"]).selection == {"by": "subjects", "subjects": ["0001"]}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    from expunge.experiments.config.run_config import check_config
    from expunge.workflow import check_run, forget

    def go(**selection: Any) -> tuple[str, Any]:
        config = check_config(
            {
                "data": {"source": "digits"}, "split": {"limit": 100}, "training": {"recipe": "one-cycle", "epochs": 1},
                "model": {"name": "mlp", "options": {"widths": [4]}}, "method": {"name": "GA"},
                "runtime": {"device": "cpu"}, "forget": selection,
            }
        )  # fmt: skip
        return check_run(config).text(), forget(config, tmp_path / "out", store=tmp_path / "store")

    return go


def test_check_outcome_and_report_list_what_was_skipped(run: Callable[..., Any], tmp_path: Path) -> None:
    import expunge

    digits = expunge.load_records("digits")
    split = expunge.make_split(digits, limit=100)
    other = str(split.test[0])
    named = [*split.retain[:3].tolist(), other]
    checked, result = run(by="ids", ids=named, on_missing="skip")
    line = f"1 of the named ids was skipped (never trained on, by the split): {other}"
    assert line in checked
    assert line in result.text()
    assert result.outcome["request"]["selection"]["skipped"] == {"never trained on, by the split": [other]}
    assert result.outcome["request"]["record_ids"] == sorted(split.retain[:3].tolist())
    page = (tmp_path / "out" / "report.html").read_text()
    assert line.partition(":")[0] in page[page.index("What this does not show") :]
    assert other not in page  # names are personal data
    with pytest.raises(RequestError, match="the forget set is empty"):
        run(by="ids", ids=[other], on_missing="skip")
