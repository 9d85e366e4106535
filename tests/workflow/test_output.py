"""Directories of results never replace files of the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.core.errors import FileError
from expunge.core.files import read_run_file
from expunge.experiments import load_config
from expunge.workflow import forget
from expunge.workflow.forget import ForgetResult
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


RUN = """
data: {source: digits}
split: {limit: 100}
model: {name: mlp, options: {widths: [4]}}
training: {recipe: one-cycle, epochs: 1}
forget: {by: random, count: 5}
method: {name: FT, options: {epochs: 1}}
runtime: {device: cpu}
"""


def test_the_result_of_another_method_or_request_is_not_replaced_without_a_word(workplace: Path) -> None:
    Path("run.yaml").write_text(RUN)

    def run(*changes: str, overwrite: bool = False) -> ForgetResult:
        return forget(load_config("run.yaml", changes), "out", store="cache", overwrite=overwrite)

    first = run()
    ids = first.outcome["request"]["record_ids"]
    short = first.outcome["request"]["hash"][:12]
    for again in (run(), run("method.name=ft"), run(f"forget={{by: ids, ids: [{', '.join(ids)}]}}")):
        assert again.replaced == ""  # the same result
        assert "replaced" not in again.text()
    for changes, what in (
        (["method={name: GA}"], "method"),
        (["forget.count=6"], "request"),
        (["forget.seed=1"], "request"),
        (["forget={by: memorised, count: 5}"], "request"),  # known only after training
    ):
        with pytest.raises(FileError, match=f"has the result of another {what} .FT, request {short}, 20") as caught:
            run(*changes)
        assert "--overwrite" in str(caught.value.hint)
        assert read_run_file("out/outcome.json", "expunge.outcome", 2)["hashes"] == first.outcome["hashes"]
    longer = run("method.options.epochs=2")  # the same method with other options
    assert longer.replaced.startswith(f"FT, request {short}, 20")
    assert f"an earlier result was replaced: FT, request {short}" in longer.text()
    other = run("method={name: GA}", overwrite=True)
    assert other.outcome["method"]["name"] == "GA"
    assert "an earlier result was replaced: FT" in other.text()
    assert other.to_json()["replaced"] == other.replaced
