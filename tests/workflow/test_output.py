"""Directories of results never replace files of the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.core.errors import FileError
from expunge.workflow.output import FILES, check_output, write_results_directory


def result(place: Path, text: str = "x") -> Path:
    """A directory as a run writes it."""
    (place / "state").mkdir(parents=True)
    for name in FILES:
        (place / name).write_text(text)
    (place / "state/rewind_checkpoint.safetensors").write_text(text)
    return place


def test_new_and_empty_directories_and_earlier_results_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "deep/er/new", "empty"):
        check_output(tmp_path / name)
    check_output(result(tmp_path / "own"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "state/notes.txt", "sub/model.safetensors"])
def test_a_file_of_the_user_is_never_lost(tmp_path: Path, name: str) -> None:
    place = result(tmp_path / "own")
    (place / name).parent.mkdir(exist_ok=True)
    (place / name).write_text("precious")
    with pytest.raises(FileError, match="is not the result of an earlier run"):
        check_output(place)
    with pytest.raises(FileError):
        write_results_directory([result(tmp_path / "stage")], place)
    assert (place / name).read_text() == "precious"


def test_inputs_are_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result(tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    for name in ("own/model.safetensors", str(tmp_path / "own/model.safetensors"), "own/../own/model.safetensors"):
        with pytest.raises(FileError, match=r"contains model\.safetensors, which this run reads"):
            check_output("own", [name])
    check_output("own", ["other/model.safetensors"])


def test_a_model_file_without_trained_json_is_not_an_earlier_result(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("x")
    with pytest.raises(FileError, match=r"has no trained\.json"):
        check_output(tmp_path)


def test_results_are_written_completely_or_not_at_all(tmp_path: Path) -> None:
    stage = result(tmp_path / "stage", "new")
    (stage / "entry.json").write_text("{}")
    place = result(tmp_path / "own", "old")

    def fails(at: Path) -> None:
        (at / "report.html").write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_results_directory([stage], place, fails)
    assert {path.read_text() for path in place.rglob("*.*")} == {"old"}
    found = write_results_directory([stage], place, lambda at: (at / "report.html").write_text("page") and None)
    assert found.files == tuple(sorted([*FILES, "state/rewind_checkpoint.safetensors"]))
    assert (place / "report.html").read_text() == "page"
    assert (place / "model.safetensors").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "stage"]
