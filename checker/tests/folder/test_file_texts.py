"""JSON that can be read in two ways, and text that a terminal would not show as it is."""

from __future__ import annotations

import io
import json
import struct
import sys

import numpy as np
import pytest
from expunge.core.errors import FileError
from expunge.core.files import read_json, read_tensors
from forging import PLAIN, forged, save
from safetensors import safe_open
from safetensors.numpy import save_file

from expunge_check.cli import main
from expunge_check.errors import BadCertificate, escape, quote
from expunge_check.folder.files import read_folder
from expunge_check.folder.reading import parse_arrays, parse_json
from expunge_check.limits import DEFAULT

FAKE = "3 points: 3 certified, 0 flipped at the point only, 0 failed"


@pytest.fixture
def plain(tmp_path):
    """A certificate of one patch on disk, which is accepted."""
    place = save(forged(), tmp_path / "plain")
    assert main([str(place)]) == 0
    return place


def doubled(value, path=()):
    """Yield JSON texts of a value, each with one duplicate key, and its position."""
    found = []
    if isinstance(value, dict):
        for key in value:
            inner = {k: v for k, v in value.items() if k != key}
            texts = [f"{json.dumps(key)}: {json.dumps(value[key])}", f"{json.dumps(key)}: {json.dumps(value[key])}"]
            texts += [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in inner.items()]
            found.append((path, key, "{" + ", ".join(texts) + "}"))
    for key, member in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(member, (dict, list)):
            found += doubled(member, (*path, key))
    return found


def with_text(value, path, text):
    """Return the JSON text of `value` with `text` as the member at `path`."""
    mark = "@@@"
    if not path:
        return text
    copy = json.loads(json.dumps(value))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = mark
    return json.dumps(copy).replace(f'"{mark}"', text)


def header_of(path):
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def put_header(path, text, rest):
    path.write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + rest)


@pytest.mark.parametrize("name", ["certificate.json", "network.json"])
def test_duplicate_keys_of_json_files_are_refused_at_every_depth(name, plain, capsys):
    whole = (plain / name).read_text()
    cases = doubled(json.loads(whole))
    assert len(cases) > 9
    for path, key, text in cases:
        (plain / name).write_text(with_text(json.loads(whole), path, text))
        assert json.loads((plain / name).read_text()) == json.loads(whole)  # Python's reader sees no difference
        assert main([str(plain)]) == 2
        assert f"duplicate key '{key}'" in capsys.readouterr().err
    (plain / name).write_text(whole)
    assert main([str(plain)]) == 0


@pytest.mark.parametrize("name", ["network", "patches", "proof", "replay"])
def test_duplicate_keys_of_tensor_files_are_refused_at_every_depth(name, plain, capsys):
    at = plain / f"{name}.safetensors"
    header, rest = header_of(at)
    cases = doubled(header)
    assert len(cases) > 3
    for path, key, text in cases:
        put_header(at, with_text(header, path, text), rest)
        assert main([str(plain)]) == 2
        assert f"duplicate key '{key}'" in capsys.readouterr().err
        with pytest.raises(FileError, match="duplicate key"):
            read_tensors(at)
    if name == "patches":
        settings = json.loads(header["__metadata__"]["expunge"])
        for path, key, text in doubled(settings):
            inner = with_text(settings, path, text)
            put_header(at, json.dumps({**header, "__metadata__": {"expunge": inner}}), rest)
            assert main([str(plain)]) == 2
            assert f"duplicate key '{key}'" in capsys.readouterr().err
            with pytest.raises(FileError, match="metadata"):
                read_tensors(at)
    put_header(at, json.dumps(header), rest)
    assert main([str(plain)]) == 0


def test_points_with_duplicate_arrays(plain, tmp_path, capsys):
    at = tmp_path / "p.safetensors"
    save_file({"inputs": np.full((1, 2), 0.5, np.float32)}, str(at))
    header, rest = header_of(at)
    text = json.dumps(header)
    put_header(at, text[:-1] + ", " + text[1:], rest)
    with safe_open(str(at), "np") as file:
        assert list(file.keys()) == ["inputs"]  # the library of safetensors takes the last
    for option in ("--points", "--inputs"):
        assert main([str(plain), option, str(at)]) == 2
        assert "duplicate key 'inputs'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400", "1" * 2000, "[" * 33 + "]" * 33, "[" * 10**5, "01"]
)
def test_numbers_and_nesting_that_readers_disagree_on(value, plain, capsys):
    body = (plain / "certificate.json").read_text()
    (plain / "certificate.json").write_text(body[:-1] + f', "more": {value}}}')
    assert main([str(plain)]) == 2
    assert "certificate.json cannot be read" in capsys.readouterr().err
    (plain / "certificate.json").write_text(body)
    header, rest = header_of(plain / "patches.safetensors")
    inner = header["__metadata__"]["expunge"][:-1] + f', "more": {value}}}'
    put_header(plain / "patches.safetensors", json.dumps({**header, "__metadata__": {"expunge": inner}}), rest)
    assert main([str(plain)]) == 2
    assert "metadata of patches.safetensors cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "[" * 10**5, "1" * 5000, '{"a": 1, "a": 2}'])
def test_the_library_refuses_such_json_too(value, tmp_path):
    (tmp_path / "a.json").write_text(f'{{"kind": "k", "schema_version": 1, "x": [{{"y": {value}}}]}}')
    with pytest.raises(FileError, match=r"is not JSON|nested deeper"):
        read_json(tmp_path / "a.json", "k", 1)


# what reaches the terminal

NAMES = {
    "a line": f"w\n{FAKE}\n", "carriage return": f"w\r{FAKE}", "escape": f"w\x1b[2K\x1b[1G{FAKE}",
    "one-byte escape": f"w\x9b2K{FAKE}", "backspace": "w" + "\b" * 80 + FAKE, "right to left": f"w\u202e{FAKE[::-1]}",
    "isolate": f"w\u2066{FAKE}", "line separator": f"w\u2028{FAKE}", "hidden": "w\u200b", "hebrew": "w\u05d0",
    "hangul filler": "w\u3164", "blank": "w\u2800", "variation": "w\ufe00",
    "surrogate": "w\ud800", "long": "w" * 100_000, "nothing": "\x00",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_cannot_be_printed_are_refused_and_not_printed(name, plain, capsys):
    """In a tensor name, a key, an op, the claim: the output has only lines of the checker."""
    text = NAMES[name]
    operations = json.loads(json.dumps(PLAIN))
    operations[1]["tensors"] = {"weight": text}
    network = json.loads((plain / "network.json").read_text())
    held = json.dumps({**network, "operations": operations, "tensors": {text: network["tensors"]["w"]}})
    certificate = json.loads((plain / "certificate.json").read_text())
    header, rest = header_of(plain / "network.safetensors")
    cases = {
        "network.json": held,
        "certificate.json": json.dumps({**certificate, text: 1}),
        "network.safetensors": json.dumps({text: header["w"]}),
    }
    if name != "long":
        cases |= {"replay.safetensors": json.dumps({"__metadata__": {"expunge": text}})}
    for file, body in cases.items():
        whole = (plain / file).read_bytes()
        if file.endswith(".json"):
            (plain / file).write_text(body)
        else:
            put_header(plain / file, body, rest if file.startswith("network") else b"")
        assert main([str(plain)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("no certificate: ")
        assert err.rstrip("\n").isprintable()
        assert FAKE not in err
        assert len(err) < 1000
        (plain / file).write_bytes(whole)
    assert main([str(plain)]) == 0


@pytest.mark.parametrize("change", [
    lambda header, network, patches: header.update(claim=FAKE),
    lambda header, network, patches: header.update(points=FAKE),
    lambda header, network, patches: network["operations"][1].update(op=FAKE),
    lambda header, network, patches: network["tensors"].update({FAKE: 1}),
    lambda header, network, patches: network["operations"][1].update(tensors={"weight": FAKE}),
    lambda header, network, patches: network["operations"][1]["tensors"].update({FAKE: "w"}),
])  # fmt: skip
def test_printable_values_cannot_pose_as_a_verdict(change, plain, capsys):
    """A terminal wraps long lines, so even a printable value must not look like a line of output."""
    parts = [json.loads((plain / f"{name}.json").read_text()) for name in ("certificate", "network")]
    change(*parts, None)
    for name, body in zip(("certificate", "network"), parts, strict=True):
        (plain / f"{name}.json").write_text(json.dumps(body))
    assert main([str(plain)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "3 points" not in err


def test_paths_and_streams(plain, tmp_path, capsys, monkeypatch):
    """A path may have any characters, and a terminal may support ASCII only."""
    for name in (f"p\n{FAKE}", "p\x1b[2K", "p\udcff", "größe"):
        at = tmp_path / name
        save_file({"inputs": np.full((3, 2), 0.5, np.float32)}, str(tmp_path / "x"))
        (tmp_path / "x").rename(at)
        assert main([str(plain), "--inputs", str(at), "--json", str(tmp_path / "out.json")]) == 0
        out = capsys.readouterr().out
        assert all(line.isprintable() for line in out.split("\n"))
        assert out.count("points:") == 1 + (FAKE in name)
        assert sum(line.startswith("3 points") for line in out.split("\n")) == 0
        text = (tmp_path / "out.json").read_text()
        assert text.isascii()
        assert str(at) in json.loads(text)["openings"]
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main([str(plain), "--inputs", str(tmp_path / "größe")]) == 0
    stream.flush()
    assert b"gr\\xf6\\xdfe" in stream.buffer.getvalue()


def test_printed_json_has_no_number_that_json_lacks(plain, tmp_path):
    folder = forged(claim="float32", tensors={"w": np.eye(2) * 3e38}, logits=[[0, 0]], inputs=[[0, 0]], bits=[[0, 0]])
    at = save(folder, tmp_path / "large")
    assert main([str(at), "--json", str(tmp_path / "out.json")]) == 1
    body = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert body["spare"] == [None]


def test_escape_and_quote():
    assert escape("größe, naïve: 日本") == "größe, naïve: 日本"
    assert escape("a\tb\u202ec\U000e0001") == "a\\x09b\\u202ec\\U000e0001"
    assert escape("x" * 2000, 10) == "xxxxxxxxxx... (1990 more characters)"
    assert quote("a b") == "'a\\x20b'"
    assert quote(7) == "7"
    assert len(quote(list(range(10**5)))) < 300


# the decoder of safetensors beside its library


def test_arrays_are_those_of_the_library(tmp_path):
    kinds = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
    draws = np.random.default_rng(0)
    arrays = {f"a{kind}": (100 * draws.random((3, 1, n))).astype(kind) for n, kind in enumerate(kinds)}
    arrays["scalar"] = np.asarray(2.5, np.float32)
    save_file(arrays, str(tmp_path / "a"), metadata={"expunge": '{"x": [1, 2]}', "more": "text"})
    found, metadata = parse_arrays(bytearray((tmp_path / "a").read_bytes()), "a", DEFAULT)
    assert metadata == {"x": [1, 2]}
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert (found[name] == array).all()


def entry(kind="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize("header", [
    {"a": entry(offsets=(4, 8))},
    {"a": entry(offsets=(0, 8), shape=(2,))},
    {"a": entry(), "b": entry()},
    {"a": entry(), "b": entry(offsets=(2, 6))},
    {"a": entry(offsets=(0, 4), shape=(2,))},
    {"a": entry(shape=(-1,))},
    {"a": entry(shape=(True,))},
    {"a": entry(shape=(1.0,))},
    {"a": entry(shape=(1,) * 17)},
    {"a": entry(shape=(2**70, 0), offsets=(0, 0))},
    {"a": entry(kind="BF16", shape=(2,))},
    {"a": entry(kind=["F32"])},
    {"a": entry(more=1)},
    {"a": {"dtype": "F32", "shape": [1]}},
    {"a": []}, {"a": 7}, {}, [], 7, {"__metadata__": {"x": 1}, "a": entry()}, {"__metadata__": [], "a": entry()},
    {"__metadata__": {"expunge": "[]"}, "a": entry()},
])  # fmt: skip
def test_headers_that_do_not_fit_their_bytes(header):
    text = json.dumps(header).encode()
    with pytest.raises(BadCertificate, match="x"):
        parse_arrays(bytearray(struct.pack("<Q", len(text)) + text + b"\0\0\0\0"), "x", DEFAULT)


def test_strict_json_reads_what_json_reads(plain):
    for text in ((plain / "network.json").read_text(), '"\\u0041"', "[1e3, -0.0, 5e-324]", '{"a": {"a": 1}}', "1"):
        assert parse_json(text, "x", DEFAULT) == json.loads(text)
    assert read_folder(plain).network["classes"] == 2
