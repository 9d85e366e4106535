"""Names and ids that a terminal would obey are shown by number; files get the permissions that the umask leaves."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Line
from hostile_text import BELL, CASES, RED, REVERSED, TITLE

from expunge.core.errors import DataError
from expunge.core.files import staged_directory, staged_file, write_json, write_tensors, write_text


def obeyed(text: str) -> list[str]:
    """The characters of a text that a terminal does not simply show."""
    return sorted({c for c in text if not c.isprintable() and c not in "\n\t"})


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def records(place: Path, name: str) -> None:
    rng = np.random.default_rng(1)
    labels = np.tile([0, 1], 150)
    ids = np.array([f"r{number:03d}" for number in range(300)])
    np.savez(place / "r.npz", x=rng.normal(labels[:, None], 1, (300, 6)), y=labels, ids=ids, classes=[name, "other"])


DATA = "data={source: npz, dir: ., options: {path: r.npz, features: x, labels: y, ids: ids, class_names: classes}}"


@pytest.mark.parametrize("case", CASES)
def test_a_class_name_is_only_text(line: Line, case: str) -> None:
    name, shown = CASES[case]
    records(line.place, name)
    said = line("check", "config.yaml", DATA, "forget={by: class, name: absent}")
    assert said.code == 1
    assert shown in said.out
    assert obeyed(said.out + said.err) == []


def test_forget_and_its_report_show_names_by_number(line: Line, umask: None) -> None:
    """One run under umask 077: nothing that it writes is for others, and the report holds no control character."""
    records(line.place, f"a{RED}{REVERSED}b")
    said = line("forget", "config.yaml", DATA, "training.epochs=1", "-o", "out")
    assert said.code == 0, said.err
    assert obeyed(said.out + said.err) == []
    page = (line.place / "out" / "report.html").read_text(encoding="utf-8")
    assert obeyed(page) == []
    written = [path for top in ("out", ".expunge") for path in [line.place / top, *(line.place / top).rglob("*")]]
    assert len(written) > 20
    assert [str(path) for path in written if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_every_writer_follows_the_umask(tmp_path: Path) -> None:
    for mask, file, directory in ((0o077, 0o600, 0o700), (0o027, 0o640, 0o750), (0o002, 0o664, 0o775)):
        before = os.umask(mask)
        place = tmp_path / f"{mask:o}"
        try:
            write_text(place / "a.txt", "a")
            write_text(place / "a.txt", "again")
            write_json(place / "a.json", "kind", 1, {})
            write_tensors(place / "a.safetensors", {"x": torch.zeros(2)})
            with staged_file(place / "own") as temporary:
                assert stat.S_IMODE(temporary.stat().st_mode) & 0o777 & mask == 0
                temporary.write_text("x")
            for _ in range(2):
                with staged_directory(place / "whole") as temporary:
                    write_text(temporary / "inside", "x")
        finally:
            os.umask(before)
        found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in place.rglob("*")}
        assert found.pop("whole") == directory
        assert set(found.values()) == {file}, found
        assert len(found) == 5


def test_errors_show_places_by_number() -> None:
    error = DataError(f"is {RED}wrong", where=f"id\n{REVERSED}x", hint=f"not {BELL}this")
    assert str(error) == "id\\x0a\\u202ex: is \\x1b[31mwrong\n  hint: not \\x07this"
    assert error.where == f"id\n{REVERSED}x", "callers get what it was"


@pytest.mark.parametrize("name", [f"{RED}x", f"{REVERSED}x", "\udcff", "[red]x[/red]"])
def test_a_file_or_an_option_that_is_not_there(line: Line, name: str) -> None:
    for arguments in (["check", f"{name}.yaml"], ["check", "config.yaml", f"--{name}"], [name]):
        said = line(*arguments)
        assert said.code == 2
        assert obeyed(said.out + said.err) == []
        assert "defect" not in said.err
    assert "[red]" in line("check", "[red].yaml").err


def test_a_record_id_in_an_error(line: Line) -> None:
    (line.place / "ids.txt").write_text(f"no{RED}such\n", encoding="utf-8")
    said = line("check", "config.yaml", "forget={by: ids, file: ids.txt}")
    assert said.code == 1
    assert r"no\x1b[31msuch" in said.out
    assert obeyed(said.out + said.err) == []


def test_progress_shows_labels_as_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich import console

    from expunge.experiments.scheduler.progress import PlanBar, Tally

    stream = io.StringIO()
    make = console.Console
    monkeypatch.setattr(
        console, "Console", lambda **kw: make(file=stream, force_terminal=True, width=120, color_system=None)
    )
    with PlanBar("plan [bold]x[/bold]") as bar:
        bar.tally(Tally(1, 0, 3, None, 0.0))
        bar.step(f"[red]label{TITLE}", 1, 2, {"note": REVERSED})
        bar._bars.refresh()
        bar.event(f"[red]done{TITLE}")
    shown = stream.getvalue()
    assert "[red]label" in shown
    assert "[bold]x[/bold]" in shown
    assert "[red]done" in shown
    assert "\x1b]0;" not in shown
    assert REVERSED not in shown


def test_the_checker_prints_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from expunge_check.cli import main

    assert main([str(tmp_path / f"no{RED}such")]) == 2
    assert obeyed(capsys.readouterr().err) == []


def test_joiners_of_words_stay() -> None:
    from expunge.core.errors import printable

    text = "می\u200cخواهم"
    assert printable(text) == text


def test_a_plan_whose_name_is_no_text(line: Line) -> None:
    (line.place / "plan.yaml").write_text('name: "a\\e[31m"\nbase: {x: 1}\n', encoding="utf-8")
    said = line("bench", "run", "plan.yaml")
    assert said.code == 2
    assert obeyed(said.err) == []
