"""Hostile files cause an error that names the fault: no traceback, no hang, no excessive memory, no code run."""

from __future__ import annotations

import re
import resource
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_arrays import CASES, table_lines
from hostile_files import Hostile

from expunge.core import errors
from expunge.core.reading import limits

ROOT = Path(__file__).parents[2]
#: What one hostile file may cost: seconds, and bytes beyond what the process held.
SECONDS, CAP = 10, 2 * 2**30


class Hang(BaseException):
    """The reader took too long."""


def _stop(*_: object) -> None:
    raise Hang


@pytest.fixture
def guarded() -> Iterator[None]:
    """Caps time and address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    old = resource.getrlimit(resource.RLIMIT_AS)
    before = {number: signal.signal(number, _stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + CAP, old[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor: the machine may be busy
    signal.alarm(6 * SECONDS)  # for what waits
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    for number, handler in before.items():
        signal.signal(number, handler)
    resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.format}: {case.name}"[:70] for case in CASES])
def test_hostile_file(case: Hostile, tmp_path: Path, guarded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in limits.LIMITS:
        monkeypatch.delenv(limit.variable, raising=False)
    case.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    made = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(errors.ExpungeError) as caught:
        case.read(tmp_path)
    assert type(caught.value).__name__ == case.error
    assert re.search(case.says, str(caught.value)), str(caught.value)[:500]
    assert len(str(caught.value)) < 7000
    assert sorted(path.name for path in tmp_path.rglob("*")) == made


def test_every_hostile_file_is_listed() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert len(CASES) >= 40
    assert [line for line in table_lines() if line not in page] == []


def test_limits_are_documented() -> None:
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    assert [limit.variable for limit in limits.LIMITS if f"`{limit.variable}`" not in page] == []


@pytest.mark.parametrize(("text", "value"), [("1000", 1000), ("4G", 2**32), ("2 KiB", 2048), ("3m", 3 * 2**20)])
def test_the_environment_sets_a_limit(text: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_MAX_BYTES", text)
    assert limits.BYTES.value() == value


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5G", "9" * 30, "\u0663"])
def test_a_limit_that_is_not_a_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_MAX_BYTES", text)
    with pytest.raises(errors.ConfigError, match="EXPUNGE_MAX_BYTES"):
        limits.BYTES.value()


def test_a_raised_limit_reads_what_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 MiB from 300 kB are read if the limit is raised; a lower limit is refused with both numbers."""
    (bomb,) = [case for case in CASES if case.name.startswith("300 kB that expand")]
    with tempfile.TemporaryDirectory() as name:
        bomb.make(Path(name))
        monkeypatch.setenv("EXPUNGE_MAX_BYTES", "4G")
        assert len(bomb.read(Path(name))) == 3  # type: ignore[arg-type]
        monkeypatch.setenv("EXPUNGE_MAX_BYTES", "1M")
        with pytest.raises(errors.DataError, match=r"expands to 314,572,\d{3} bytes; the limit is 1,048,576"):
            bomb.read(Path(name))
