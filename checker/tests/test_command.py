"""The command on damaged folders and bad requests: code 2 and one line, never a traceback (its code 1 means failed)."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from checker_case import written
from forging import PLAIN, forged, operation, save
from safetensors.numpy import save_file

from expunge_check.cli import main
from expunge_check.errors import BadCertificate
from expunge_check.folder.files import hash_array, read_folder
from expunge_check.verify import CERTIFIED, Checker
from test_mutations import rehashed


@pytest.fixture
def plain(tmp_path):
    """A certificate of one patch on disk, which is accepted."""
    place = save(forged(), tmp_path / "plain")
    assert main([str(place)]) == 0
    return place


def edited(place, name, **entries):
    """Change entries of a JSON file of the folder."""
    body = json.loads((place / name).read_text())
    (place / name).write_text(json.dumps({**body, **entries}))


def no_real_place():
    pool = operation(
        "average_pool", [0], [1, 2], kernel=[1], stride=[3], padding=[2], count_padding=False, adaptive=False
    )
    operations = [
        operation("input", [], [1, 2]),
        pool,
        operation("reshape", [1], [2]),
        operation("relu", [2], [2], slope=0),
    ]
    return forged(operations, {}, logits=[[0.5, 0.5]])


def too_large():
    layers = [operation("linear", [i], [2], {"weight": "w"}) for i in range(12)]
    operations = [PLAIN[0], *layers, operation("relu", [12], [2], slope=0.0)]
    return forged(operations, {"w": 3e38 * np.eye(2)}, logits=[[0.0, 0.0]], inputs=[[0, 0]])


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
@pytest.mark.parametrize(("folder", "options"), [
    (no_real_place, []), (no_real_place, ["--exact"]), (too_large, ["--exact"]),
])  # fmt: skip
def test_networks_that_cannot_be_computed(folder, options, tmp_path, capsys):
    assert main([str(save(folder(), tmp_path / "c")), *options]) == 2
    assert "no certificate" in capsys.readouterr().err


def test_exceptions_of_python_become_refusals(monkeypatch):
    checker = Checker(forged())

    def divide(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(checker.network, "replay", divide)
    monkeypatch.setattr(checker.network, "pull_back", divide)
    calls = {
        "cannot be replayed": checker.check_replay,
        "inputs cannot": lambda: checker.find_openings(np.full((1, 2), 0.5, np.float32)),
    }
    for message, call in calls.items():
        with pytest.raises(BadCertificate, match=f"{message}.*ZeroDivision"):
            call()
    monkeypatch.setattr(checker, "check_replay", lambda: 0.0)
    with pytest.raises(BadCertificate, match=r"cannot be evaluated.*ZeroDivision"):
        checker.check()
    folder = forged()
    folder.network["operations"][1] = {}
    with pytest.raises(BadCertificate, match="operation 1 has no op"):
        Checker(folder)


@pytest.mark.parametrize("text", [
    "[" * 100_000, '{"kind":"expunge.certificate","schema_version":4,"epsilon":' + "1" * 6000 + "}", "\0", "[]", "{",
])  # fmt: skip
def test_json_that_cannot_be_read(text, plain, capsys):
    for name in ("network.json", "certificate.json"):
        (plain / name).write_text(text)
        assert main([str(plain)]) == 2
        assert f"no certificate: {name}" in capsys.readouterr().err


def test_entries_outside_the_range_of_numbers(plain, capsys):
    edited(plain, "certificate.json", epsilon=10**400)
    assert main([str(plain)]) == 2
    assert "epsilon" in capsys.readouterr().err
    whole = (plain / "network.json").read_text()
    edited(plain, "network.json", tensors=3)
    assert main([str(plain)]) == 2
    assert "no certificate: a file has a missing or wrong entry" in capsys.readouterr().err
    (plain / "network.json").write_text(whole)
    slope = json.dumps(
        {"patches": {"correction": "constant", "atoms": 2, "classes": 2, "gate": "soft", "slope": 10**400}}
    )
    save_file(forged().patches, str(plain / "patches.safetensors"), metadata={"expunge": slope})
    assert main([str(plain)]) == 2
    assert "no certificate: a file has a missing or wrong entry" in capsys.readouterr().err


def test_types_that_numpy_lacks(plain, capsys):
    """bfloat16 is a type of safetensors, but not of numpy."""
    raw = (plain / "replay.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    head = json.loads(raw[8 : 8 + size])
    head["inputs"] |= {"dtype": "BF16", "shape": [1, 4]}
    text = json.dumps(head).encode()
    (plain / "replay.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])
    assert main([str(plain)]) == 2
    assert "replay.safetensors cannot be read" in capsys.readouterr().err


def test_requests_that_cannot_be_done_are_refused_before_the_work(plain, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Checker, "check", lambda *_: pytest.fail("worked first"))
        for place in (tmp_path / "nowhere" / "out.json", tmp_path):
            assert main([str(plain), "--json", str(place)]) == 2
            assert "cannot be written" in capsys.readouterr().err
        for count in ("-5", "many", "1.5"):
            with pytest.raises(SystemExit) as left:
                main([str(plain), "--random", count])
            assert left.value.code == 2
            assert "--random" in capsys.readouterr().err
    assert main([str(plain), "--random", str(10**15)]) == 2
    assert "not checked" in capsys.readouterr().err
    (tmp_path / "full.json").symlink_to("/dev/full")
    assert main([str(plain), "--json", str(tmp_path / "full.json")]) == 2


def test_points_of_another_number_or_shape(plain, tmp_path, capsys):
    at = str(tmp_path / "p.safetensors")
    for shape in ((2, 2), (0, 2), (1, 3), (2,), ()):
        save_file({"inputs": np.full(shape, 0.5, np.float32)}, at)
        assert main([str(plain), "--points", at]) == 2
        assert "(1, 2)" in capsys.readouterr().err
        with pytest.raises(BadCertificate, match="one input per patch"):
            Checker(read_folder(plain)).check(np.full(shape, 0.5, np.float32))


def test_points_of_other_patches_do_not_pass(tmp_path, capsys):
    """The patches stay certified, but not for these points; the exit code must show it."""
    points, _, _ = written(tmp_path / "c", "mlp")
    at, out = str(tmp_path / "p.safetensors"), tmp_path / "out.json"
    for rows, code, strays in (([0, 1, 2], 0, 0), ([1, 0, 2], 1, 2)):
        save_file({"inputs": points[rows]}, at)
        assert main([str(tmp_path / "c"), "--points", at, "--json", str(out)]) == code
        body = json.loads(out.read_text())
        assert body["counts"][CERTIFIED] == 3
        assert body["strays"] == strays
        assert ("lie outside the box" in capsys.readouterr().out) == bool(strays)


def test_tensors_without_a_hash_are_refused(plain, tmp_path):
    """Otherwise an operation could use weights that no hash covers."""
    folder = forged()
    save_file({**folder.tensors, "more": np.ones(2, np.float32)}, str(plain / "network.safetensors"))
    with pytest.raises(BadCertificate, match="'more' is in only one of"):
        read_folder(plain)
    folder.network["tensors"] = {}
    with pytest.raises(BadCertificate, match="'w' is in only one of"):
        read_folder(save(rehashed_without(folder), tmp_path / "none"))
    save_file({"v": folder.tensors["w"]}, str(plain / "network.safetensors"))
    with pytest.raises(BadCertificate, match="in only one of"):
        read_folder(plain)


def rehashed_without(folder):
    """Return the folder with recomputed hashes although network.json records no tensor."""
    tensors = dict(folder.tensors)
    folder.tensors.clear()
    folder = rehashed(folder)
    folder.tensors.update(tensors)
    return folder


def test_the_recorded_shape_of_a_tensor_is_its_own(tmp_path):
    folder = forged()
    folder.network["tensors"]["w"]["shape"] = [4]
    assert folder.network["tensors"]["w"]["hash"] == hash_array(folder.tensors["w"])
    with pytest.raises(BadCertificate, match="'w' is not the one"):
        read_folder(save(rehashed(folder), tmp_path / "c"))
