"""Small folders that would exhaust the machine, and files that are no files: refused at once, with a reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from expunge.core.errors import FileError
from expunge.patches.certificate import load_network, load_patches
from forging import forged, save
from hostile_folders import HOSTILE, MIB, SOURCE, doubling, run, run_in_turn, shared_weight
from safetensors.numpy import save_file

from expunge_check.cli import main
from expunge_check.errors import TooLarge
from expunge_check.folder.files import read_folder
from expunge_check.folder.reading import JSON_MEMORY, parse_json
from expunge_check.limits import DEFAULT, Limits
from expunge_check.verify import Checker

FILES = (
    "certificate.json", "network.json", "network.safetensors", "patches.safetensors", "proof.safetensors",
    "replay.safetensors",
)  # fmt: skip


@pytest.fixture
def plain(tmp_path):
    """A certificate of one patch on disk."""
    return save(forged(), tmp_path / "plain")


# what a check may take


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_checks_that_would_exhaust_the_machine_are_refused_before_they_begin(make, tmp_path):
    found = run(make(tmp_path / "c"), timeout=30, address_space=1024 * MIB)
    assert found.code == 2
    assert HOSTILE[make] in found.err
    assert found.err.startswith("not checked: ")
    assert found.err.count("\n") == 0
    assert found.seconds < 15
    assert found.memory < 400


def test_a_limit_can_be_raised(plain, capsys):
    for option, word in (("--max-memory", "GiB of memory"), ("--max-work", "billion multiply-adds")):
        assert main([str(plain), option, "1e-9"]) == 2
        err = capsys.readouterr().err
        assert option in err
        assert word in err
        assert main([str(plain), option, "1"]) == 0
        for bad in ("0", "-1", "nan", "inf", "much"):
            with pytest.raises(SystemExit):
                main([str(plain), option, bad])
    with pytest.raises(TooLarge, match="--max-work"):
        Checker(read_folder(plain), limits=Limits(work=1e6))
    with pytest.raises(TooLarge, match="--max-memory"):
        read_folder(plain, Limits(memory=1000))


@pytest.mark.parametrize(("make", "times"), [(doubling, 18), (doubling, 20), (shared_weight, 20)])
def test_what_fits_a_raised_limit_stays_below_it(make, times, tmp_path):
    """The estimated memory is an upper bound: the limit that the refusal suggests suffices and is not exceeded."""
    folder = make(tmp_path / "c", times)
    refused = run(folder, "--max-memory", "0.01")
    assert refused.code == 2
    advised = refused.err.split()[-1]
    found = run(folder, "--max-memory", advised)
    assert found.code in (0, 1), found.err
    base = run(save(forged(), tmp_path / "plain"))
    assert base.code == 0
    assert found.memory - base.memory < float(advised) * 1024


def test_chunks_shrink_until_they_fit(small):
    wide = Checker(read_folder(small))
    assert wide.budget.chunk == 32
    tight = Checker(read_folder(small), limits=Limits(memory=wide.budget.memory * 0.9))
    assert tight.budget.chunk < 3
    assert tight.check().spare == pytest.approx(wide.check().spare, rel=1e-6)


def test_inputs_beyond_the_limits(plain, tmp_path):
    at = tmp_path / "inputs.safetensors"
    save_file({"inputs": np.full((20_000, 2), 0.5, np.float32)}, str(at))
    alone = Checker(read_folder(plain)).budget.spent / 1e9
    for options in (["--inputs", at], ["--random", "20000"]):
        found = run(plain, *options, "--max-work", f"{1.1 * alone:g}")
        assert (found.code, found.out) == (2, "")
        assert "--max-work" in found.err
        assert run(plain, *options).code == 0


# what a file may be


@pytest.mark.parametrize("name", FILES)
def test_other_than_regular_files_are_refused_without_blocking(name, plain, tmp_path):
    """A check that blocked on one of them would exceed the time of all, and one that read it the address space."""
    outside = tmp_path / "outside"
    outside.write_bytes((plain / name).read_bytes())
    makes = {
        "not a regular file": lambda place: os.mkfifo(place),
        "is a link": lambda place: place.symlink_to("/dev/zero"),
        "a link; a certificate": lambda place: place.symlink_to(outside),
        "regular": lambda place: place.mkdir(),
        "link": lambda place: place.symlink_to(place),
        "cannot be read": lambda place: None,
    }
    folders = []
    for number, make in enumerate(makes.values()):
        folders.append(shutil.copytree(plain, tmp_path / str(number)))
        (folders[-1] / name).unlink()
        make(folders[-1] / name)
    *refused, accepted = run_in_turn([*folders, plain], timeout=60, address_space=1024 * MIB)
    for message, found in zip(makes, refused, strict=True):
        assert (found.code, found.out) == (2, "")
        assert name in found.err
        assert message in found.err
    assert accepted.code == 0


def test_the_folder_itself_may_be_reached_through_a_link(plain, tmp_path):
    (tmp_path / "link").symlink_to(plain)
    (plain / "notes").symlink_to("/dev/zero")  # other entries are not read
    assert run(tmp_path / "link").code == 0
    os.mkfifo(tmp_path / "pipe")
    assert run(tmp_path / "pipe", timeout=20).code == 2


def test_points_that_are_no_regular_file(plain, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for place in (tmp_path / "pipe", tmp_path / "zero"):
        for option in ("--points", "--inputs"):
            found = run(plain, option, place, timeout=20, address_space=1024 * MIB)
            assert found.code == 2
            assert "not a regular file" in found.err


def test_a_sparse_file_of_a_terabyte(plain):
    with open(plain / "proof.safetensors", "r+b") as file:
        file.truncate(2**40)
    found = run(plain, address_space=1024 * MIB)
    assert found.code == 2
    assert "--max-memory" in found.err


# JSON


def nested(depth):
    return "[" * depth + "]" * depth


BOMBS = {
    "deep": '{"kind":"expunge.certificate","schema_version":4,"x":' + nested(40) + "}",
    "deeper": nested(100_000),
    "wide": "[" + "[]," * 12_000_000 + "[]]",
    "objects": "[" + '{"":0},' * 6_000_000 + "{}]",
}


@pytest.mark.parametrize("name", BOMBS)
def test_json_that_swells(name, plain):
    (plain / "network.json").write_text(BOMBS[name])
    found = run(plain, address_space=1024 * MIB)
    assert found.code == 2
    assert "MemoryError" not in found.err
    assert found.memory < 500


def test_memory_of_json_stays_below_the_estimate():
    texts = ["[" + "[]," * 50_000 + "[]]", "[" + '{"":0},' * 50_000 + "{}]", "[" + '{"a":{}},' * 50_000 + "{}]"]
    texts += ["{" + ",".join(f'"{i}":[]' for i in range(50_000)) + "}", "[" + "1," * 100_000 + "1]"]
    texts += ["[" + "1e9," * 50_000 + "1]", "[" + '"a",' * 50_000 + "1]", nested(30)]
    for text in texts:
        tracemalloc.start()
        parse_json(text.encode(), "x", DEFAULT)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < JSON_MEMORY * len(text) + 10_000


# imports


def test_nothing_is_imported_from_the_current_folder(plain):
    """A certificate may contain its own numpy.py, which must not run if the check starts inside the folder."""
    for name in ("numpy", "json", "argparse", "unicodedata", "hashlib"):
        (plain / f"{name}.py").write_text("raise SystemExit(0)")
    done = subprocess.run(
        [sys.executable, "-m", "expunge_check", ".", "--max-work", "1e-9"], cwd=plain, check=False, capture_output=True,
        env={**os.environ, "PYTHONPATH": os.environ.get("CHECKER_SOURCE", str(SOURCE))}, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--max-work" in done.stderr


def test_library_readers_refuse_the_same(plain, tmp_path):
    def load(folder: Path):
        load_network(folder)
        load_patches(folder / "patches.safetensors")

    load(plain)
    for number, name in enumerate(("network.json", "network.safetensors", "patches.safetensors")):
        bad = tmp_path / str(number)
        shutil.copytree(plain, bad)
        (bad / name).unlink()
        (bad / name).symlink_to(plain / name)
        with pytest.raises(FileError, match="is a link"):
            load(bad)
        (bad / name).unlink()
        os.mkfifo(bad / name)
        with pytest.raises(FileError, match=r"not a regular file|not a file"):
            load(bad)
    text = (plain / "network.json").read_text()
    (plain / "network.json").write_text(text[:-1] + ', "classes": 3}')
    with pytest.raises(FileError, match="duplicate key 'classes'"):
        load(plain)
    (plain / "network.json").write_text(json.dumps({"kind": "expunge.network", "schema_version": 3}))
    with pytest.raises(FileError, match="was not written by expunge"):
        load(plain)
