"""Certificate folders written by hand, as a forger would: hashes fit, nothing else is promised."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from expunge_check.folder.declarations import EXECUTION, NOT_SHOWN, STATEMENT
from expunge_check.folder.files import hash_array, hash_arrays, hash_value


def declared(claim: str, gate: str, correction: str) -> dict[str, Any]:
    """Return the texts of certificate.json, as in docs/formats/proof.md."""
    return {
        "kind": "expunge.certificate", "schema_version": 4, "statement": STATEMENT[claim],
        "execution": EXECUTION[claim], "gate": gate, "correction": correction, "does_not_show": list(NOT_SHOWN),
        "versions": {},
    }  # fmt: skip


def marks() -> dict[str, dict[str, Any]]:
    """Return kind and schema version for the metadata of the safetensors files."""
    versions = {"patches": 2, "proof": 2, "replay": 1}
    return {"network": {}, **{n: {"kind": f"expunge.{n}", "schema_version": v} for n, v in versions.items()}}


def operation(op: str, inputs: list[int], shape: tuple[int, ...], tensors: dict[str, str] | None = None, **at: Any):
    """Return an operation of network.json."""
    return {"op": op, "inputs": inputs, "shape": list(shape), "attributes": at, "tensors": tensors or {}}


def linear(weight: str, before: int, shape: tuple[int, ...], bias: str | None = None):
    return operation("linear", [before], shape, {"weight": weight, **({"bias": bias} if bias else {})})


@dataclasses.dataclass
class Forged:
    """Content of a forged folder. Its proofs are empty, so every bound is the plain bound over the box.

    Attributes:
        operations, tensors: of the network.
        bits: `P x L`.
        target: class of each patch; the label is another one.
        shift: of each patch.
        low, high: ends of the box.
        claim, epsilon, gate, slope: of the certificate.
        logits: recorded, `1 x K` at the lower end of the box; by default those of `executed`.
    """

    operations: list[dict[str, Any]]
    tensors: dict[str, Any]
    bits: Any
    target: list[int]
    shift: list[float]
    low: float = 0.0
    high: float = 1.0
    claim: str = "float32"
    epsilon: float = 1e-3
    gate: str = "exact"
    slope: float = 1.0
    logits: Any = None

    def write(self, folder: Path) -> Path:
        folder.mkdir()
        shape, classes = tuple(self.operations[0]["shape"]), self.operations[-1]["shape"][0]
        tensors = {name: np.asarray(value, np.float32) for name, value in self.tensors.items()}
        named = {name: {"shape": list(t.shape), "hash": hash_array(t)} for name, t in tensors.items()}
        body = {"input_shape": list(shape), "classes": classes, "operations": self.operations, "tensors": named}
        bits, target = np.asarray(self.bits, bool), np.asarray(self.target, np.int16)
        patches = {
            "pattern": np.packbits(bits, axis=1, bitorder="little"), "target": target,
            "label": np.where(target == 0, 1, 0).astype(np.int16), "shift": np.asarray(self.shift, np.float32),
            "group": np.arange(len(bits), dtype=np.int32),
        }  # fmt: skip
        none = np.zeros(0, np.uint8)
        proof = {
            "count": np.zeros((len(bits), classes), np.uint16), "scale": np.zeros((len(bits), classes), np.float32),
            "gap": none, "level": none,
            "box.low": np.full(shape, self.low, np.float64), "box.high": np.full(shape, self.high, np.float64),
        }  # fmt: skip
        settings = {"correction": "constant", "atoms": bits.shape[1], "classes": classes, "gate": self.gate}
        digest = hash_value({**settings, "slope": float(self.slope), "arrays": hash_arrays(patches)})
        settings |= {"slope": self.slope, "hash": digest}
        mark = {"kind": "expunge.network", "schema_version": 3}
        (folder / "network.json").write_text(json.dumps({**body, **mark, "hash": hash_value(body)}))
        for name, arrays, held in (("network", tensors, {}), ("patches", patches, {"patches": settings}),
                                   ("proof", proof, {})):  # fmt: skip
            body_of = {**marks()[name], **held}
            metadata = {"expunge": json.dumps(body_of)} if body_of else None
            save_file(arrays, str(folder / f"{name}.safetensors"), metadata=metadata)
        x = np.full((1, *shape), self.low, np.float32)
        logits = self.logits if self.logits is not None else executed(folder, x)
        plain = logits if self.logits is not None else executed(folder, x, patched=False)
        replay = {"inputs": x, "base_logits": np.asarray(plain, np.float32), "logits": np.asarray(logits, np.float32)}
        mark = {"expunge": json.dumps(marks()["replay"])}
        save_file(replay, str(folder / "replay.safetensors"), metadata=mark)
        hashes = {"network": hash_value(body), "patches": digest, "proof": hash_arrays(proof)}
        header = {
            **declared(self.claim, self.gate, "constant"), "claim": self.claim, "epsilon": self.epsilon,
            "points": len(bits), "hashes": {**hashes, "replay": hash_arrays(replay)},
        }  # fmt: skip
        (folder / "certificate.json").write_text(json.dumps(header))
        return folder


def executed(folder: Path, x: np.ndarray, *, patched: bool = True) -> np.ndarray:
    """Return float32 logits of the network of a folder in torch, with or without its patches."""
    import torch
    from expunge.patches.certificate import load_network, load_patches
    from expunge.patches.model.patched_model import PatchedModel

    network, patches = load_network(folder), load_patches(folder / "patches.safetensors")
    patches = patches if patched else patches.take(np.zeros(0, np.int64))
    with torch.no_grad():
        return PatchedModel(torch.nn.Identity(), network, patches)(torch.from_numpy(np.asarray(x, np.float32))).numpy()


def library_spares(folder: Path) -> np.ndarray:
    """Return the spares that the library computes for a folder."""
    import torch
    from expunge.patches.bounds.proof import Proof
    from expunge.patches.bounds.verify import verify_patches
    from expunge.patches.certificate import load_network, load_patches
    from expunge.patches.network.regions import Box

    from expunge_check.folder.files import read_folder

    held = read_folder(folder)
    proof = Proof(**{name: held.proof[name] for name in ("count", "scale", "gap", "level")})
    box = Box(*(torch.from_numpy(held.proof[f"box.{end}"]) for end in ("low", "high")))
    patches, claim = load_patches(folder / "patches.safetensors"), held.header["claim"]
    return verify_patches(load_network(folder), patches, proof, box, claim=claim, epsilon=held.header["epsilon"])
