"""What is sent to other processes: large arrays are mapped from files, not copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.core.errors import ConfigError
from expunge.data.records import Records
from expunge.training.processes import sending
from expunge.training.processes.sending import find_file, pack, unpack


def test_large_arrays_are_mapped_and_equal(tmp_path: Path) -> None:
    large = np.arange(1 << 18, dtype=np.float64).reshape(2, -1)
    packed = pack({"a": large, "again": large, "turned": large.T, "small": np.arange(3)}, tmp_path)
    assert len(packed) < 2000
    found = unpack(packed)
    assert isinstance(found["a"], np.memmap)
    assert found["a"] is found["again"]
    assert not isinstance(found["small"], np.memmap)
    assert not found["a"].flags.writeable
    for name, value in (("a", large), ("turned", large.T), ("small", np.arange(3))):
        assert np.array_equal(found[name], value)
    assert len(list(tmp_path.iterdir())) == 2


def test_mapped_arrays_are_not_written_again(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(1 << 19, dtype=np.int32).reshape(1 << 10, -1))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    folder = tmp_path / "run"
    folder.mkdir()
    found = unpack(pack([mapped, mapped[300:], mapped[300:][100:, :]], folder))
    assert not list(folder.iterdir())
    assert np.array_equal(found[0], mapped)
    assert np.array_equal(found[1], mapped[300:])
    assert np.array_equal(found[2], mapped[400:])
    strided = unpack(pack(mapped[:, ::2], folder))
    assert np.array_equal(strided, mapped[:, ::2])
    assert len(list(folder.iterdir())) == 1


def test_a_changed_copy_of_a_file_is_not_that_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(1 << 18))
    changed = np.load(tmp_path / "x.npy", mmap_mode="c")
    changed[7] = 1.0
    assert find_file(changed) is None
    assert unpack(pack(changed, tmp_path))[7] == 1.0


def test_records_are_the_same(digits: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "LARGE", 100)
    found = unpack(pack(digits, tmp_path))
    assert isinstance(found.features, np.memmap)
    assert found.hash == digits.hash
    assert np.array_equal(found.keys, digits.keys)


@pytest.mark.parametrize("value", [lambda x: x, {"open": open(__file__)}])  # noqa: SIM115
def test_what_cannot_be_sent_is_said(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be sent to other processes") as caught:
        pack(value, tmp_path)
    assert "in a module" in str(caught.value.hint)


def test_classes_of_a_script_are_found_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text("class Net:\n    pass\nif __name__ == '__main__':\n    raise AssertionError\n")
    net = type("Net", (), {"__module__": "__main__"})
    monkeypatch.setattr("sys.modules", dict(__import__("sys").modules))
    main: Any = __import__("types").ModuleType("__main__")
    __import__("sys").modules["__main__"] = main
    with pytest.raises(ConfigError, match="interactive session"):
        pack(net, tmp_path)
    main.__file__ = str(script)
    found = unpack(pack(net, tmp_path))
    assert found.__name__ == "Net"
    assert found.__module__ == sending.SCRIPT
