"""The registry of sources: names, options, the data directory, fingerprints, and no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from expunge.core.errors import ConfigError, DataError
from expunge.core.registry import SOURCES
from expunge.data import Records, load_records, register_source, source_fingerprint, source_names
from expunge.data.data_dir import DataDir
from expunge.data.registry import get_source, update_source_table

#: Sources that must exist; a new one is found by its registration.
KNOWN = [
    "adult", "breast-cancer", "cifar10", "cifar10-binary", "cifar100-binary", "digits", "fashion-mnist", "har", "idx",
    "folder", "hf-dataset", "location30", "mnist", "npz", "parquet", "python", "table",
]  # fmt: skip
OPTIONS = ("breast-cancer", "digits", "folder", "hf-dataset", "npz", "parquet", "python", "table")
FILES = [name for name in KNOWN if name not in OPTIONS]


def test_all_sources_are_there_and_described() -> None:
    assert set(KNOWN) <= set(source_names())
    for name in source_names():
        assert len(get_source(name).summary) > 20


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="did you mean 'fashion-mnist'"):
        load_records("fashion_mnist")
    with pytest.raises(ConfigError, match="has no option 'size'"):
        load_records("digits", size=3)
    with pytest.raises(ConfigError, match="did you mean 'layout'"):
        load_records("npz", path="x", layuot="nhw")
    with pytest.raises(ConfigError, match="needs the option 'path'"):
        source_fingerprint("npz")


@pytest.mark.parametrize("name", FILES)
def test_the_error_of_a_missing_directory_lists_the_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    for act in (load_records, source_fingerprint):
        with pytest.raises(DataError, match="EXPUNGE_DATA"):
            act(name)
        with pytest.raises(DataError, match="no such data directory") as caught:
            act(name, data_dir=tmp_path / "none")
        assert caught.value.where == str(tmp_path / "none")
        with pytest.raises(DataError, match="found none of") as caught:
            act(name, data_dir=tmp_path)
        assert str(tmp_path) in str(caught.value.where)


@pytest.mark.parametrize("name", ["npz", "table"])
def test_the_error_of_a_missing_file_lists_the_paths(name: str, tmp_path: Path) -> None:
    options = {"label": "y"} if name == "table" else {}
    with pytest.raises(DataError) as caught:
        load_records(name, data_dir=tmp_path, path="mine.file", **options)
    assert str(tmp_path / "mine.file") in str(caught.value.where)
    assert f"the data directory is {tmp_path}" in str(caught.value.hint)


def test_a_path_that_was_tried_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    for place in (".", tmp_path, None):
        with pytest.raises(DataError, match="no such file") as caught:
            load_records("npz", data_dir=place, path="nope.csv")
        assert str(caught.value.where).count("nope.csv") == 1
    assert "data.dir in a configuration" in str(caught.value.hint)
    with pytest.raises(DataError) as caught:
        load_records("npz", data_dir="elsewhere", path="nope.csv")
    assert caught.value.where == "nope.csv, elsewhere/nope.csv"


def test_the_option_takes_precedence_over_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", "/somewhere")
    assert DataDir.choose("s", tmp_path).require() == tmp_path
    assert DataDir.choose("s", None).directory == Path("/somewhere")
    monkeypatch.setenv("EXPUNGE_DATA", "")
    assert DataDir.choose("s", None).directory is None


def test_fingerprints_follow_options_and_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, features=np.zeros((2, 3)), labels=np.asarray([0, 1]))
    first = source_fingerprint("npz", path=str(path))
    assert source_fingerprint("npz", path=str(path)) == first
    assert source_fingerprint("npz", path=str(path), labels="y") != first
    os.utime(path, ns=(1, 1))
    touched = source_fingerprint("npz", path=str(path))
    assert touched != first
    path.write_bytes(b"longer" * 1000)
    os.utime(path, ns=(1, 1))
    assert source_fingerprint("npz", path=str(path)) != touched
    kept = source_fingerprint("npz", path=str(path))
    path.write_bytes(b"Longer" * 1000)
    os.utime(path, ns=(1, 1))  # neither the size nor the time of modification shows this change
    assert source_fingerprint("npz", path=str(path)) != kept
    assert source_fingerprint("digits") != source_fingerprint("breast-cancer")


def test_a_name_is_registered_once() -> None:
    def load(directory: DataDir) -> Records:
        """Nothing."""
        raise AssertionError

    with pytest.raises(ConfigError, match="registered already"):
        register_source("digits")(load)
    with SOURCES.temporary():
        assert register_source("for-this-test")(load) is load
        assert "for-this-test" in source_names()
    assert "for-this-test" not in source_names()


def test_loading_and_splitting_do_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from expunge.data import load_records, make_split, select_forget, source_fingerprint\n"
        "assert 'torch' not in sys.modules, 'import'\n"
        "source_fingerprint('digits')\n"
        "records = load_records('digits')\n"
        "split = make_split(records)\n"
        "select_forget(records, split, {'by': 'random', 'fraction': 0.1}).apply(split)\n"
        "assert 'torch' not in sys.modules, 'use'\n"
        "from expunge.data import Batches\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    import expunge.data

    with pytest.raises(AttributeError, match="nothing_here"):
        expunge.data.nothing_here  # noqa: B018


def test_the_table_of_sources_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_PLUGINS", "0")
    page = Path(__file__).parents[2].joinpath("docs", "data.md").read_text(encoding="utf-8")
    assert page.count("<!-- generated: sources -->") == 1
    assert update_source_table(page) == page, "regenerate it: make pages"
    for name in source_names():
        assert f"| `{name}` | " in page


def test_the_page_on_data_names_every_augmentation() -> None:
    from expunge.data.transforms import AUGMENTATIONS

    page = Path(__file__).parents[2].joinpath("docs", "data.md").read_text(encoding="utf-8")
    for name in AUGMENTATIONS:
        assert f"`{name}`" in page, name
