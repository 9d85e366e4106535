"""Stores at URLs: entries whole or absent, verified when read, first writer wins; credentials appear nowhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory import Lab

from expunge.core.errors import ConfigError, ExpungeError, StoreError
from expunge.experiments import clean_store, explain_plan, get_plan_status, load_plan, run_plan
from expunge.experiments.store.addresses import scrub
from expunge.experiments.store.remote import RemoteFolder
from expunge.experiments.store.shared import SharedStore, find_cache_folder, open_store
from expunge.experiments.store.store import Ingredients, Store

fsspec = pytest.importorskip("fsspec")
BASE = Ingredients("train", 1, {"m": "1"}, {"epochs": 2}, {"data": "d"}, None)
PLACE = f"entries/train/{BASE.key}"


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(tmp_path / "cache"))
    if request.param == "file":
        yield f"file://{tmp_path}/shared"
        return
    yield "memory://shared/store"
    fsspec.filesystem("memory").store.clear()


def open_from(url: str, machine: str, tmp_path: Path) -> SharedStore:
    """The store as another machine sees it, which has a working copy of its own."""
    return SharedStore(url, tmp_path / f"machine-{machine}")


def write(text: str = "weights") -> Any:
    def run(out: Path, work: Path) -> str:
        (out / "model.bin").write_text(text)
        (out / "state").mkdir()
        (out / "state" / "a.bin").write_text("state")
        return "output"

    return run


def compute(store: Store, text: str = "weights") -> Any:
    return store.compute(BASE, write(text), label="train")


def read(store: Store) -> str | None:
    entry = store.find("train", BASE.key)
    if entry is None or store.check(entry) is not None:
        return None
    return (entry.path / "model.bin").read_text() + (entry.path / "state" / "a.bin").read_text()


def test_another_machine_reads_what_was_written(url: str, tmp_path: Path) -> None:
    one, other = open_from(url, "1", tmp_path), open_from(url, "2", tmp_path)
    assert other.find("train", BASE.key) is None
    assert not other.exists()
    compute(one)
    assert read(other) == "weightsstate"
    assert [entry.key for entry in other.entries("train")] == [BASE.key]
    assert other.size() > 0
    assert other.address == url


def test_an_entry_without_entry_json_is_absent(url: str, tmp_path: Path) -> None:
    compute(open_from(url, "1", tmp_path))
    remote = RemoteFolder(url)
    remote.remove(f"{PLACE}/entry.json")
    assert len(remote.list_names(PLACE)) == 2  # the files are there
    other = open_from(url, "2", tmp_path)
    assert other.find("train", BASE.key) is None
    assert compute(other).output == "output"
    assert read(open_from(url, "3", tmp_path)) == "weightsstate"


def test_the_entry_is_written_last(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that ends while it uploads leaves nothing that another one could take for an entry."""
    calls = []
    upload, write_small = RemoteFolder.upload, RemoteFolder.write
    monkeypatch.setattr(RemoteFolder, "upload", lambda self, path, name: (calls.append(name), upload(self, path, name)))
    monkeypatch.setattr(
        RemoteFolder, "write", lambda self, name, content: (calls.append(name), write_small(self, name, content))
    )
    compute(open_from(url, "1", tmp_path))
    assert calls[-1] == f"{PLACE}/entry.json"
    assert len(calls) == 3


def test_the_first_writer_wins(url: str, tmp_path: Path) -> None:
    one, other = open_from(url, "1", tmp_path), open_from(url, "2", tmp_path)
    finished = []

    def slow(out: Path, work: Path) -> str:
        finished.append(compute(one, "first"))  # the other machine is finished meanwhile
        return str(write("second")(out, work))

    entry = other.compute(BASE, slow, label="train")
    assert entry.finished == finished[0].finished
    for store in (one, other, open_from(url, "3", tmp_path)):
        assert read(store) == "firststate"


def test_two_writers_of_different_bytes_do_not_damage_each_other(url: str, tmp_path: Path) -> None:
    """Both see no entry, and upload: whichever entry.json is last, its files are those that it names."""
    stores = [open_from(url, name, tmp_path) for name in "12"]
    remote = RemoteFolder(url)
    for number, store in enumerate(stores):
        compute(store, f"by {number} ")
        content = remote.read(f"{PLACE}/entry.json")
        assert content is not None
        remote.remove(f"{PLACE}/entry.json")
    remote.write(f"{PLACE}/entry.json", content)
    assert read(open_from(url, "3", tmp_path)) == "by 1 state"


@pytest.mark.parametrize("name", ["model.bin", "state/a.bin", "entry.json"])
@pytest.mark.parametrize("change", ["byte", "cut", "gone"])
def test_a_corrupted_entry_is_found_and_computed_again(url: str, tmp_path: Path, name: str, change: str) -> None:
    entry = compute(open_from(url, "1", tmp_path))
    remote = RemoteFolder(url)
    place = f"{PLACE}/entry.json" if name == "entry.json" else f"{PLACE}/{entry.files[name]['sha256']}"
    content = remote.read(place)
    assert content is not None
    remote.remove(place)
    if change != "gone":
        remote.write(place, content[:-3] if change == "cut" else bytes([content[0] ^ 1]) + content[1:])
    other = open_from(url, "2", tmp_path)
    assert read(other) is None
    found = other.find("train", BASE.key)
    if found is not None:
        damage = other.check(found)
        assert damage is not None
        assert damage.startswith(name)
        assert other.discard(found, damage)
    compute(other)
    assert read(open_from(url, "3", tmp_path)) == "weightsstate"


def test_a_damaged_working_copy_is_downloaded_again(url: str, tmp_path: Path) -> None:
    store = open_from(url, "1", tmp_path)
    entry = compute(store)
    (entry.path / "model.bin").write_text("WEIGHTS")
    assert read(open_from(url, "1", tmp_path)) == "weightsstate"


def test_what_could_not_be_uploaded_is_uploaded_by_the_next_try(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, path: Path, name: str) -> None:
        raise StoreError("the connection was lost")

    store = open_from(url, "1", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "upload", fail)
        with pytest.raises(StoreError):
            compute(store, "once")
    assert read(open_from(url, "2", tmp_path)) is None
    assert compute(open_from(url, "1", tmp_path), "twice").output == "output"
    assert read(open_from(url, "2", tmp_path)) == "oncestate"  # it was not computed again
    shutil.rmtree(tmp_path / "machine-2")
    RemoteFolder(url).remove(PLACE)  # the owner removes it: an old working copy does not bring it back
    assert compute(open_from(url, "1", tmp_path), "third").output == "output"
    assert read(open_from(url, "2", tmp_path)) == "thirdstate"


def test_failures_are_shared(url: str, tmp_path: Path) -> None:
    one, other = open_from(url, "1", tmp_path), open_from(url, "2", tmp_path)
    one.record_failure(BASE.key, "train", "it diverged", None)
    assert other.read_failure(BASE.key) == "it diverged"
    compute(other)
    assert one.read_failure(BASE.key) is None


# ---- plans


def table(run: Any) -> Any:
    return [(cell["labels"], cell["state"], cell["scores"]) for cell in run.results["cells"]]


def test_a_plan_runs_once_and_gives_the_same_table(lab: Lab, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = load_plan(lab.plan)
    first = run_plan(plan, store=url, stages=lab.stages)
    assert table(first) == table(run_plan(plan, store=lab.store, stages=lab.stages))
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(lab.root / "another machine"))
    again = run_plan(plan, store=url, stages=lab.stages)
    assert again.computed == 0
    assert again.results == first.results
    assert get_plan_status(plan, store=url, stages=lab.stages).finished
    assert explain_plan(plan, store=url, stages=lab.stages) == []
    lab.plan.write_text(lab.plan.read_text().replace("epochs: 2", "epochs: 3"))
    changed = load_plan(lab.plan)
    lines = explain_plan(changed, store=url, stages=lab.stages)
    assert any("training.epochs: 2 -> 3" in line for line in lines)
    assert clean_store([changed], store=url, stages=lab.stages) > 0
    assert {entry.label.split()[0] for stage in lab.stages for entry in open_store(url).entries(stage)} == {"data"}


def test_a_plan_repairs_its_store(lab: Lab, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = load_plan(lab.plan)
    first = run_plan(plan, store=url, stages=lab.stages)
    remote = RemoteFolder(url)
    for stage, name in (("score", "scores.json"), ("train", "value.txt")):
        key = remote.list_names(f"entries/{stage}")[0]
        content = remote.read(f"entries/{stage}/{key}/entry.json")
        assert content is not None
        place = f"entries/{stage}/{key}/{json.loads(content)['files'][name]['sha256']}"
        remote.write(place, b"0" * len(remote.read(place) or b""))
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(lab.root / "another machine"))
    again = run_plan(plan, store=url, stages=lab.stages)
    assert again.computed == 0 or again.exit_code == 0
    assert table(again) == table(first)


# ---- bad input


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://ID:secret@bucket/x", r"must not have a user or a password \(s3://\.\.\.\)"),
        ("https://host/x?sig=secret", r"must not have keys \(\?\.\.\.\)"),
        ("s3://bucket/x#secret", r"must not have a fragment"),
        ("simplecache::s3://bucket/x", "a URL names one file system"),
        ("s4://bucket/x", "s4:// is not a file system"),
        ("s3://", "the URL names no place"),
    ],
)
def test_addresses_that_are_refused(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_store(address)
    assert "secret" not in str(caught.value)


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(ConfigError, match="needs a package that is not installed") as caught:
        open_store("gs://bucket/x")
    assert "gcsfs" in str(caught.value)


def test_a_store_that_cannot_be_written_is_named_and_no_stage_fails(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-key")

    def fail(self: Any, path: Path, name: str) -> None:
        with self._translated("written"):
            raise OSError(28, "No space left on device: very-secret-key")

    monkeypatch.setattr(RemoteFolder, "upload", fail)
    with pytest.raises(StoreError, match=r"the store cannot be written \(OSError: .*No space left on device: \*\*\*"):
        run_plan(load_plan(lab.plan), store=f"file://{tmp_path}/shared", stages=lab.stages)
    assert lab.started() == ["data"]
    texts = [path.read_text() for path in (tmp_path / "cache").rglob("*.json")]
    assert not any("very-secret-key" in text for text in texts)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="cannot be written"):
        run_plan(load_plan(lab.plan), store=f"file://{tmp_path}/shared", stages=lab.stages)


def test_errors_are_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "abcdef123456")
    monkeypatch.setenv("TOKEN_OF_NOTHING", "a")  # too short to be one; it would blank half of the text
    text = "GET https://u:p@h/a?X-Sig=1&b=2 failed, also s3://k@b, token abcdef123456."
    assert scrub(text) == "GET https://***@h/a?*** failed, also s3://***@b, token ***."


def test_the_working_copy_is_below_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EXPUNGE_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_cache_folder("s3://a/b").parent == tmp_path / "expunge" / "stores"
    assert find_cache_folder("s3://a/b") != find_cache_folder("s3://a/c")


def test_paths_are_folders_with_locks(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    assert type(store) is Store
    assert isinstance(open_store(os.fspath(tmp_path)), Store)
    with pytest.raises(ExpungeError):
        open_store("nosuch://x")
