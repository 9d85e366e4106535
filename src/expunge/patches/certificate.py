"""Certificates as files: the network, the patches, the proofs, and recorded inputs. See docs/formats/proof.md.

Nothing in the folder is trusted by the program that checks it (`expunge-check`): it recomputes whatever is claimed.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.core.errors import FileError, ModelError, RequestError
from expunge.core.files import PathLike, read_json, read_tensors, staged_directory, staged_file, write_json
from expunge.core.hashing import hash_arrays
from expunge.core.outcome import versions
from expunge.core.seeds import torch_generator
from expunge.patches.bounds.proof import Proof
from expunge.patches.model.patch_set import PatchSet
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.operations import Network, Operation
from expunge.patches.network.regions import Box

KIND = "expunge.certificate"
NETWORK_KIND = "expunge.network"
NETWORK_VERSION = 2
SCHEMA_VERSION = 3
PROOF_VERSION = 2

_RELEASE = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,4}((a|b|rc)[0-9]{1,9})?(\.post[0-9]{1,9})?(\.dev[0-9]{1,9})?")

#: What a certificate folder holds.
FILES = (
    "certificate.json",
    "network.json",
    "network.safetensors",
    "patches.safetensors",
    "proof.safetensors",
    "replay.safetensors",
)

EXECUTION = (
    "plain float32 on a CPU or GPU: products and sums rounded to nearest, in any order, with or without fused "
    "multiply-add, subnormal numbers kept; direct or im2col convolution. Autocast, TF32, bfloat16, int8, Winograd and "
    "FFT convolutions void it."
)
STATEMENT = {
    "float32": "for every input in the box whose executed float32 activation bits equal the pattern, the executed "
    "logit of the target class exceeds every other executed logit by at least epsilon",
    "real": "for every input in the box whose activation bits in real arithmetic equal the pattern, the target's logit "
    "exceeds every other by at least epsilon in real arithmetic; nothing is said about executed float32 numbers",
}
NOT_SHOWN = (
    "no information was removed: the base weights are inside and whoever has them has the original model",
    "the activation patterns of the forgotten points are in the file and may reveal that they were members",
    "0 % accuracy on the forget set is over-forgetting: a retrained model keeps its test accuracy there",
    "this is no (epsilon, delta)-unlearning guarantee; nothing is said outside the regions",
)


#: What entries that are missing or of another kind raise.
_MISFIT = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


def save_network(network: Network, directory: Path) -> None:
    """Write network.json and network.safetensors (docs/formats/network.md)."""
    from safetensors.numpy import save_file

    arrays = {name: tensor.numpy() for name, tensor in network.tensors.items()}
    with staged_file(directory / "network.safetensors") as temporary:
        save_file(arrays, str(temporary))
    write_json(directory / "network.json", NETWORK_KIND, NETWORK_VERSION, {"hash": network.hash, **network.to_json()})


@contextlib.contextmanager
def _member(path: Path) -> Iterator[Path]:
    """A file of a certificate folder: no link, and damage in it is named.

    Raises:
        FileError: it is a link, which could lead out of the folder, or lacks an entry.
    """
    if path.is_symlink():
        raise FileError("is a link; a certificate folder holds regular files only", where=path)
    try:
        yield path
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"is not what expunge wrote ({error!r})", where=path, hint="copy the folder again") from error


def load_network(directory: PathLike) -> Network:
    """Read what `save_network` wrote.

    Raises:
        FileError: a file is missing, a link, damaged, has a duplicate key, or a hash in network.json is not that of
            what it stands for.
    """
    with _member(Path(directory) / "network.safetensors") as path:
        tensors, _ = read_tensors(path)
    with _member(Path(directory) / "network.json") as path:
        body = read_json(path, NETWORK_KIND, NETWORK_VERSION)
        operations = []
        for entry in body["operations"]:
            attributes = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["attributes"].items()}
            shape = tuple(entry["shape"])
            operations.append(Operation(entry["kind"], tuple(entry["inputs"]), shape, attributes, entry["tensors"]))
        network = Network(tuple(operations), tensors, tuple(body["input_shape"]), int(body["classes"]))
        if body["hash"] != network.hash or body["tensors"] != network.to_json()["tensors"]:
            raise FileError("its hash is not that of the network that it holds", where=path)
        return network


def _save_arrays(path: Path, arrays: dict[str, NDArray[Any]], metadata: dict[str, Any]) -> None:
    from safetensors.numpy import save_file

    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with staged_file(path) as temporary:
        save_file(whole, str(temporary), metadata={"expunge": json.dumps(metadata, sort_keys=True)})


def save_patches(patches: PatchSet, path: PathLike) -> None:
    """Write a patch set (docs/formats/patch.md)."""
    names = ("kind", "atoms", "classes", "gate", "slope", "hash")
    metadata = {"kind": "expunge.patches", "schema_version": 1, "patches": {n: getattr(patches, n) for n in names}}
    _save_arrays(Path(path), patches.arrays(), metadata)


def load_patches(path: PathLike) -> PatchSet:
    """Read a patch set.

    Raises:
        FileError: missing, a link, damaged, with a duplicate key, of another kind or version, or its hash is not that
            of the patches.
    """
    with _member(Path(path)) as file:
        tensors, metadata = read_tensors(file)
        version = metadata["schema_version"]
        if metadata["kind"] != "expunge.patches" or type(version) is not int or version != 1:
            raise FileError("holds no patches of schema_version 1", where=file)
        held = metadata["patches"]
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        empty = np.zeros((len(arrays["target"]), 0), np.float32)
        arrays = {"alpha": empty, "beta": empty, **arrays}
        settings: dict[str, Any] = {name: held[name] for name in ("kind", "atoms", "classes", "gate", "slope")}
        patches = PatchSet(**settings, **arrays)
        if held["hash"] != patches.hash:
            raise FileError("its hash is not that of the patches that it holds", where=file)
        return patches


def write_certificate(
    directory: PathLike,
    model: PatchedModel,
    patches: PatchSet,
    proof: Proof,
    box: Box,
    *,
    claim: str,
    epsilon: float,
    replay: Tensor | None = None,
    seed: int = 0,
) -> None:
    """Write a certificate folder; it appears whole or not at all.

    Args:
        directory: replaced if it is there.
        model: the patched model, whose executed logits are recorded.
        patches: the patches, in the order of the proof.
        proof: point p of the proof belongs to patch p.
        box: the inputs spoken of.
        claim: `float32` or `real`.
        epsilon: as solved for.
        replay: inputs `B x ...` to record with their logits; by default 32 random ones from the box. Inputs of
            forgotten points are personal data and are not recorded unless given here.
        seed: draws the random inputs.

    Raises:
        ModelError: there is no patch: a certificate that says nothing would look like one that says all is well.
        RequestError: a given replay input lies outside the box, of which alone the certificate speaks.
    """
    if not len(patches):
        raise ModelError("the model has no patches, so there is nothing to certify", where="certificate")
    network = model.network
    if replay is None:
        draws = torch.rand(32, *network.input_shape, generator=torch_generator(seed, "replay"), dtype=torch.float64)
        replay = (box.low + draws * (box.high - box.low)).float()
        replay = torch.minimum(torch.maximum(replay, _inner(box.low, 1)), _inner(box.high, -1))
    outside = ~box.contains(replay)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise RequestError("a replay input lies outside the box", where=f"replay input {row}", hint="give one inside")
    with torch.no_grad():
        logits, base = model(replay), PatchedModel(model.module, network, patches.take(np.zeros(0, np.int64)))(replay)
    arrays = {name: getattr(proof, name) for name in ("count", "scale", "gap", "level")}
    arrays |= {"box.low": box.low.numpy(), "box.high": box.high.numpy()}
    recorded = {"inputs": replay.numpy(), "base_logits": base.numpy(), "logits": logits.numpy()}
    with staged_directory(directory) as folder:
        save_network(network, folder)
        save_patches(patches, folder / "patches.safetensors")
        _save_arrays(folder / "proof.safetensors", arrays, {"kind": "expunge.proof", "schema_version": PROOF_VERSION})
        _save_arrays(folder / "replay.safetensors", recorded, {"kind": "expunge.replay", "schema_version": 1})
        body = {
            "claim": claim,
            "epsilon": float(epsilon),
            "statement": STATEMENT[claim],
            "execution": EXECUTION if claim == "float32" else "real arithmetic",
            "points": len(patches),
            "gate": patches.gate,
            "patch_kind": patches.kind,
            "hashes": {
                "network": network.hash,
                "patches": patches.hash,
                "proof": hash_arrays(arrays),
                "replay": hash_arrays(recorded),
            },
            "does_not_show": list(NOT_SHOWN),
            "versions": _releases(),
        }
        write_json(folder / "certificate.json", KIND, SCHEMA_VERSION, body)


def _releases() -> dict[str, str]:
    """Version numbers of the programs that wrote a certificate, without local parts: there is no free text in it."""
    found = {name: _RELEASE.match(text) for name, text in versions().items() if name != "platform"}
    return {name: match.group() for name, match in found.items() if match}


def _inner(bound: Tensor, direction: int) -> Tensor:
    """The float32 nearest to a bound that lies inside the box."""
    near = bound.float()
    outside = near.double() < bound if direction > 0 else near.double() > bound
    return torch.where(outside, torch.nextafter(near, torch.full_like(near, direction * torch.inf)), near)
