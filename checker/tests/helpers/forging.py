"""Certificates made by hand, as a forger would: any operation list and any arrays, with hashes that fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from forged import declared, marks
from safetensors.numpy import save_file

from expunge_check.arithmetic.network import Network
from expunge_check.folder.files import Folder
from expunge_check.verify import Checker
from test_mutations import rehashed


def operation(op: str, inputs: list[int], shape: list[int], tensors: dict[str, str] | None = None, **at: Any) -> Any:
    """Return an operation of network.json."""
    return {"op": op, "inputs": inputs, "shape": shape, "attributes": at, "tensors": tensors or {}}


#: f(x) = relu(x) on two inputs, which are the logits.
PLAIN = [
    operation("input", [], [2]),
    operation("linear", [0], [2], {"weight": "w"}),
    operation("relu", [1], [2], slope=0.0),
]


def forged(
    operations: Any = PLAIN,
    tensors: Any = None,
    bits: Any = ((1, 1),),
    *,
    target: Any = 0,
    shift: Any = 1.1,
    correction: str = "constant",
    gate: str = "exact",
    group: Any = None,
    inputs: Any = None,
    logits: Any = None,
    claim: str = "float32",
    epsilon: float = 1e-3,
    label: Any = None,
) -> Folder:
    """Return a folder in memory over the box [0, 1], without multipliers.

    On `PLAIN` the pattern 11 needs a shift of 1.001.

    The logits of `inputs` are recorded as the checker replays them, or as given.
    """
    operations = json.loads(json.dumps(operations))
    arrays = {k: np.asarray(v, np.float32) for k, v in ({"w": np.eye(2)} if tensors is None else tensors).items()}
    shape, classes = operations[0]["shape"], operations[-1]["shape"][0]
    whole = np.asarray(bits, bool)
    count = len(whole)
    targets = np.broadcast_to(np.asarray(target, np.int16), (count,)).copy()
    patches = {
        "pattern": np.packbits(whole, axis=1, bitorder="little"),
        "target": targets,
        "label": np.where(targets == 0, 1, 0).astype(np.int16) if label is None else np.asarray(label, np.int16),
        "shift": np.broadcast_to(np.asarray(shift, np.float32), (count,)).copy(),
        "group": np.arange(count, dtype=np.int32) if group is None else np.asarray(group, np.int32),
    }
    if correction == "li2025":
        patches["alpha"], patches["beta"] = (
            np.ones((count, classes), np.float32),
            np.zeros((count, classes), np.float32),
        )
        patches["beta"][np.arange(count), 1 - targets] = -1.1
    proof = {
        "count": np.zeros((count, classes), np.uint16), "scale": np.zeros((count, classes), np.float32),
        "gap": np.zeros(0, np.uint8), "level": np.zeros(0, np.uint8),
        "box.low": np.zeros(shape), "box.high": np.ones(shape),
    }  # fmt: skip
    x = np.full((1, *shape), 0.5, np.float32) if inputs is None else np.asarray(inputs, np.float32)
    blank = np.zeros((len(x), classes), np.float32)
    replay = {"inputs": x, "base_logits": blank, "logits": blank.copy()}
    body = {
        "input_shape": shape, "classes": classes, "operations": operations,
        "tensors": {name: {"shape": list(array.shape)} for name, array in arrays.items()},
    }  # fmt: skip
    settings = {"correction": correction, "atoms": whole.shape[1], "classes": classes, "gate": gate, "slope": 1.0}
    header = {"claim": claim, "epsilon": epsilon, "points": count, **declared(claim, gate, correction)}
    folder = rehashed(Folder(header, body, arrays, patches, settings, proof, replay, marks()))
    if logits is None:
        checker = Checker(folder)
        base, atoms = Network(body, arrays).replay(x)
        replay["base_logits"] = base.astype(np.float32)
        replay["logits"] = checker.patches.apply(base, checker.compute_gates(checker.network, x, atoms)).astype(
            np.float32
        )
    else:
        replay["base_logits"] = replay["logits"] = np.asarray(logits, np.float32)
    return rehashed(folder)


def save(folder: Folder, place: Path) -> Path:
    """Write a folder to disk with its declared hashes."""
    place.mkdir(parents=True, exist_ok=True)
    marked = {"kind", "schema_version"} & set(folder.network)
    network = {**({} if marked else {"kind": "expunge.network", "schema_version": 3}), **folder.network}
    (place / "certificate.json").write_text(json.dumps(folder.header), encoding="utf-8")
    (place / "network.json").write_text(json.dumps(network), encoding="utf-8")
    held = {"network": folder.tensors, "patches": folder.patches, "proof": folder.proof, "replay": folder.replay}
    for name, arrays in held.items():
        body = {**folder.metadata[name], **({"patches": folder.settings} if name == "patches" else {})}
        save_file(arrays, str(place / f"{name}.safetensors"), metadata={"expunge": json.dumps(body)} if body else None)
    return place
