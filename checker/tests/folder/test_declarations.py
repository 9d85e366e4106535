"""The texts, names, hashes and versions of a certificate must match what is checked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checker_case import ROOT, written
from expunge.core.errors import FileError, RequestError
from expunge.patches import certificate as library
from expunge.patches.bounds.solve import solve
from expunge.patches.network.regions import Box, compute_patterns
from expunge.patches.network.trace import trace
from forging import forged, save
from patch_networks import build
from safetensors.numpy import load_file, save_file

from expunge_check.cli import main
from expunge_check.errors import BadCertificate
from expunge_check.folder import declarations
from expunge_check.folder.files import Folder, read_folder
from expunge_check.verify import CERTIFIED, FAILED, POINT_ONLY, Checker
from test_mutations import rehashed

FOREIGN = "valid on any hardware, TF32 included"


def at(place: str, *path: Any, value: Any) -> Callable[[Folder], None]:
    """Return a change of one entry at any depth of the header, network, settings or metadata."""

    def change(folder: Folder) -> None:
        held = getattr(folder, place)
        for key in path[:-1]:
            held = held[key]
        if value is None:
            del held[path[-1]]
        else:
            held[path[-1]] = value

    return change


CHANGES = {
    "another statement": at("header", "statement", value=FOREIGN),
    "the statement of the other claim": at("header", "statement", value=declarations.STATEMENT["real"]),
    "no statement": at("header", "statement", value=None),
    "another execution": at("header", "execution", value=FOREIGN),
    "the execution of the other claim": at("header", "execution", value="real arithmetic"),
    "nothing that is not shown": at("header", "does_not_show", value=[]),
    "less that is not shown": at("header", "does_not_show", value=declarations.NOT_SHOWN[:3]),
    "more that is not shown": at("header", "does_not_show", value=[*declarations.NOT_SHOWN, FOREIGN]),
    "another gate": at("header", "gate", value="soft"),
    "another correction": at("header", "correction", value="minimal"),
    "a name": at("header", "signed", value="A. Person"),
    "a name among versions": at("header", "versions", value={"A. Person": "1.0"}),
    "words as a version": at("header", "versions", value={"torch": FOREIGN}),
    "words after a version": at("header", "versions", value={"torch": "2.0+" + FOREIGN}),
    "words as versions": at("header", "versions", value=FOREIGN),
    "a fifth hash": at("header", "hashes", "inputs", value="0" * 64),
    "version 3.0": at("header", "schema_version", value=3.0),
    "version of the network true": at("network", "schema_version", value=True),
    "version of the network 2.0": at("network", "schema_version", value=2.0),
    "an entry of the network": at("network", "note", value=FOREIGN),
    "an entry of an operation": at("network", "operations", 1, "note", value=FOREIGN),
    "a tensor of the input": at("network", "operations", 0, "tensors", "note", value=FOREIGN),
    "a tensor of a relu": at("network", "operations", 2, "tensors", "note", value=FOREIGN),
    "an entry of a tensor": at("network", "tensors", "w", "note", value=FOREIGN),
    "a shape of 2.0": at("network", "tensors", "w", "shape", value=[2.0, 2]),
    "an entry of the patches": at("settings", "note", value=FOREIGN),
    "version of the patches true": at("metadata", "patches", "schema_version", value=True),
    "version of the proof 2.0": at("metadata", "proof", "schema_version", value=2.0),
    "version of the proof 1": at("metadata", "proof", "schema_version", value=1),
    "another kind of file": at("metadata", "replay", "kind", value="expunge.proof"),
    "an entry of the replay": at("metadata", "replay", "note", value=FOREIGN),
    "metadata of the weights": at("metadata", "network", "note", value=FOREIGN),
    "an array of the proof": at("proof", FOREIGN, value=np.zeros(1, np.uint8)),
    "an array of the patches": at("patches", FOREIGN, value=np.zeros(1, np.uint8)),
}
HASHES = {
    "hash of the network": at("network", "hash", value="0" * 64),
    "no hash of the network": at("network", "hash", value=None),
    "hash of the patches": at("settings", "hash", value="0" * 64),
    "hash of the proof": at("header", "hashes", "proof", value="0" * 64),
}


@pytest.mark.parametrize("name", [*CHANGES, *HASHES])
def test_what_nothing_checks_is_refused(name, tmp_path, capsys):
    folder = forged()
    folder.network.update(kind="expunge.network", schema_version=3)
    assert main([str(save(rehashed(folder), tmp_path / "honest"))]) == 0
    change = {**CHANGES, **HASHES}[name]
    change(folder)
    if name not in HASHES:
        marked = {key: folder.header[key] for key in ("gate", "correction", "hashes")}
        rehashed(folder)
        folder.header.update({key: value for key, value in marked.items() if key != "hashes"})
        folder.header["hashes"] |= {k: v for k, v in marked["hashes"].items() if k not in folder.header["hashes"]}
    place = save(folder, tmp_path / "c")
    assert main([str(place)]) == 2
    shown = capsys.readouterr()
    assert "no certificate" in shown.err
    with pytest.raises(BadCertificate):
        Checker(read_folder(place)).check()


def test_metadata_besides_the_json_is_refused(tmp_path):
    place = save(forged(), tmp_path / "c")
    held = load_file(str(place / "network.safetensors"))
    save_file(held, str(place / "network.safetensors"), metadata={"note": FOREIGN})
    with pytest.raises(BadCertificate, match="metadata that its format"):
        read_folder(place)


def test_both_programs_and_the_format_page_have_the_same_texts():
    texts = [*library.STATEMENT.values(), library.EXECUTION, "real arithmetic", *library.NOT_SHOWN]
    assert list(declarations.STATEMENT.items()) == list(library.STATEMENT.items())
    assert [declarations.EXECUTION["float32"], declarations.EXECUTION["real"]] == [library.EXECUTION, "real arithmetic"]
    assert list(library.NOT_SHOWN) == declarations.NOT_SHOWN
    page = re.sub(r"[\s>]+", " ", (ROOT / "docs" / "formats" / "proof.md").read_text(encoding="utf-8"))
    for text in texts:
        assert text in page, text


def test_the_library_writes_version_numbers_and_no_other_words(small: Path):
    header = json.loads((small / "certificate.json").read_text())
    assert set(header["versions"]) <= set(declarations.PROGRAMS)
    assert {"python", "torch", "numpy"} <= set(header["versions"])
    assert Checker(read_folder(small)).check().passed


@pytest.mark.parametrize("exact", [False, True])
def test_a_label_that_the_base_does_not_predict_at_the_point_does_not_pass(exact, tmp_path, capsys):
    """f = x: at (0.9, 0.1) the base predicts 0, which is the target; the label 1 is false."""
    folder = save(forged(), tmp_path / "c")
    for point, code in (((0.1, 0.9), 0), ((0.9, 0.1), 1)):
        save_file({"inputs": np.asarray([point], np.float32)}, str(tmp_path / "p.safetensors"))
        words = [str(folder), "--points", str(tmp_path / "p.safetensors"), "--json", str(tmp_path / "o.json")]
        assert main([*words, "--exact"] if exact else words) == code
        body = json.loads((tmp_path / "o.json").read_text())
        assert (body["mislabelled"], body["strays"]) == (code, 0)
        assert ("does not predict the label" in capsys.readouterr().out) == bool(code)


@pytest.mark.parametrize("exact", [False, True])
def test_a_label_that_the_base_predicts_nowhere_in_the_region_fails_without_points(exact):
    """On the pattern 10 the second unit is 0: logit 0 is the larger one everywhere, with and without the patch."""
    honest = forged(bits=((1, 0),), target=1)
    assert Checker(honest, exact=exact).check().verdicts == [CERTIFIED]
    tensors = {"w": [[1.0, 0], [0, 1]], "c": [0.5, 0]}
    steps = [*honest.network["operations"], {
        "op": "add_constant", "inputs": [2], "shape": [2], "attributes": {"sign": 1}, "tensors": {"value": "c"},
    }]  # fmt: skip
    for target, verdict in ((1, CERTIFIED), (0, FAILED)):
        checker = Checker(forged(steps, tensors, ((1, 0),), target=target, shift=2.0), exact=exact)
        report = checker.check()
        assert report.verdicts == [verdict]
        assert any("nowhere in the region" in note for note in report.notes) == (verdict == FAILED)


def test_a_point_is_flipped_only_if_the_base_predicts_its_label():
    """The shift is too small for the region, but at both points the patched network does not predict 1."""
    checker = Checker(forged(shift=0.9))
    assert checker.check(np.asarray([[0.1, 0.9]], np.float32)).verdicts == [POINT_ONLY]
    assert checker.check(np.asarray([[0.9, 0.1]], np.float32)).verdicts == [FAILED]


@pytest.mark.parametrize(("correction", "gate", "claim"), [
    ("constant", "exact", "float32"), ("minimal", "exact", "float32"), ("li2025", "exact", "float32"),
    ("constant", "soft", "float32"), ("constant", "exact", "real"),
])  # fmt: skip
def test_honest_certificates_pass_with_their_points(correction, gate, claim, tmp_path):
    points, _, _ = written(tmp_path / "c", "mlp", correction=correction, gate=gate, claim=claim)
    report = Checker(read_folder(tmp_path / "c")).check(points)
    assert report.passed
    assert report.mislabelled == 0


def test_the_library_declares_no_label_that_the_network_does_not_predict_in_the_region():
    model, shape = build("mlp")
    network, box = trace(model, shape), Box.of(shape, 0.5, 0.5)
    logits, bits = compute_patterns(network, torch.full((1, *shape), 0.5))
    first, second = (int(v) for v in logits[0].argsort(descending=True)[:2])
    solve(network, bits, torch.tensor([first]), torch.tensor([second]), box)
    with pytest.raises(RequestError, match="prefers the target"):
        solve(network, bits, torch.tensor([second]), torch.tensor([first]), box)


def test_the_library_refuses_other_hashes_and_versions(small: Path, tmp_path: Path):
    import shutil

    place = shutil.copytree(small, tmp_path / "c")
    body = json.loads((place / "network.json").read_text())
    for change in ({"hash": "0" * 64}, {"schema_version": True}, {"schema_version": 1.0}):
        (place / "network.json").write_text(json.dumps({**body, **change}))
        with pytest.raises(FileError):
            library.load_network(place)
    (place / "network.json").write_text(json.dumps(body))
    assert library.load_network(place).hash == body["hash"]
    from safetensors import safe_open

    path = str(place / "patches.safetensors")
    arrays = load_file(path)
    with safe_open(path, framework="np") as file:
        held = json.loads(file.metadata()["expunge"])
    library.load_patches(path)
    settings = held["patches"]
    wrong = ({"schema_version": True}, {"kind": "x"}, {"patches": {**settings, "hash": "0" * 64}})
    for change in wrong:
        save_file(arrays, path, metadata={"expunge": json.dumps({**held, **change})})
        with pytest.raises(FileError):
            library.load_patches(path)
