"""Control characters in names and ids are escaped; files get the permissions that the umask allows."""

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


def control_characters(text: str) -> list[str]:
    """The control characters of a text."""
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
    records(line.directory, name)
    result = line("check", "config.yaml", DATA, "forget={by: class, name: absent}")
    assert result.code == 1
    assert shown in result.out
    assert control_characters(result.out + result.err) == []


def test_forget_and_its_report_escape_names(line: Line, umask: None) -> None:
    """One run with umask 077: others cannot read its files, and the report has no control character."""
    records(line.directory, f"a{RED}{REVERSED}b")
    result = line("forget", "config.yaml", DATA, "training.epochs=1", "-o", "out")
    assert result.code == 0, result.err
    assert control_characters(result.out + result.err) == []
    page = (line.directory / "out" / "report.html").read_text(encoding="utf-8")
    assert control_characters(page) == []
    written = [
        path for top in ("out", ".expunge") for path in [line.directory / top, *(line.directory / top).rglob("*")]
    ]
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


def test_errors_escape_places() -> None:
    error = DataError(f"is {RED}wrong", where=f"id\n{REVERSED}x", hint=f"not {BELL}this")
    assert str(error) == "id\\x0a\\u202ex: is \\x1b[31mwrong\n  hint: not \\x07this"
    assert error.where == f"id\n{REVERSED}x", "callers get what it was"


@pytest.mark.parametrize("name", [f"{RED}x", f"{REVERSED}x", "\udcff", "[red]x[/red]"])
def test_a_file_or_an_option_that_is_not_there(line: Line, name: str) -> None:
    for arguments in (["check", f"{name}.yaml"], ["check", "config.yaml", f"--{name}"], [name]):
        result = line(*arguments)
        assert result.code == 2
        assert control_characters(result.out + result.err) == []
        assert "bug of expunge" not in result.err
    assert "[red]" in line("check", "[red].yaml").err


def test_a_record_id_in_an_error(line: Line) -> None:
    (line.directory / "ids.txt").write_text(f"no{RED}such\n", encoding="utf-8")
    result = line("check", "config.yaml", "forget={by: ids, file: ids.txt}")
    assert result.code == 1
    assert r"no\x1b[31msuch" in result.out
    assert control_characters(result.out + result.err) == []


def test_progress_shows_labels_as_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich import console

    from expunge.experiments.scheduler.progress import PlanBar, PlanProgress

    stream = io.StringIO()
    make = console.Console
    monkeypatch.setattr(
        console, "Console", lambda **kw: make(file=stream, force_terminal=True, width=120, color_system=None)
    )
    with PlanBar("plan [bold]x[/bold]") as bar:
        bar.update(PlanProgress(1, 0, 3, None, 0.0))
        bar.step(f"[red]label{TITLE}", 1, 2, {"note": REVERSED})
        bar._bars.refresh()
        bar.log(f"[red]done{TITLE}")
    shown = stream.getvalue()
    assert "[red]label" in shown
    assert "[bold]x[/bold]" in shown
    assert "[red]done" in shown
    assert "\x1b]0;" not in shown
    assert REVERSED not in shown


def test_the_checker_prints_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from expunge_check.cli import main

    assert main([str(tmp_path / f"no{RED}such")]) == 2
    assert control_characters(capsys.readouterr().err) == []


def test_characters_that_are_drawn_as_nothing() -> None:
    """Default_Ignorable_Code_Point of Unicode, the empty Braille pattern, and private use; letters and marks stay."""
    from expunge.core.errors import printable

    ranges = [
        (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
        (0x200B, 0x200B), (0x200E, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x2800, 0x2800), (0x3164, 0x3164),
        (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x1BCA0, 0x1BCA3),
        (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF), (0xE000, 0xF8FF), (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD),
    ]  # fmt: skip
    shown = [f"{code:x}" for low, high in ranges for code in {low, high} if printable(chr(code)) == chr(code)]
    assert shown == []
    text = "é ß 猫 ñ \u0301 \u2801 \u1161 \u3131 𝒳 😀 ─"
    assert printable(text) == text


def test_joiners_of_words_stay() -> None:
    from expunge.core.errors import printable

    text = "می\u200cخواهم"
    assert printable(text) == text


def test_a_plan_whose_name_has_control_characters(line: Line) -> None:
    (line.directory / "plan.yaml").write_text('name: "a\\e[31m"\nbase: {x: 1}\n', encoding="utf-8")
    result = line("bench", "run", "plan.yaml")
    assert result.code == 2
    assert control_characters(result.err) == []


def test_the_bar_of_a_plan_counts_failed_stages_and_shows_the_running_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from expunge.experiments.scheduler.progress import PlanBar, PlanProgress

    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes standard error for a terminal
    monkeypatch.setenv("COLUMNS", "160")
    with PlanBar("a plan") as bar:
        bar.update(PlanProgress(done=3, failed=1, total=10, seconds_left=61.0, seconds_spent=5.0))
        bar._bars.refresh()
        before = capsys.readouterr().err
        bar.step("train", 20, 80, {})
        bar._bars.refresh()
        running = capsys.readouterr().err
    assert " 4/10" in before
    assert "about 1 min 1 s left, ends at " in before
    assert "  1 failed" in before
    assert "0/?" not in before[before.rindex("a plan") :]  # no line for a stage before one runs
    assert "train" in running
    assert "20/80" in running
