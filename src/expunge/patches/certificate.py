"""Certificates as folders: the network, the patches, the proofs and recorded inputs. See docs/formats/proof.md.

The independent checker (`expunge-check`) trusts nothing in a folder and recomputes every claim.
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

from expunge.core.errors import ConfigError, FileError, ModelError, RequestError
from expunge.core.files import PathLike, read_json, read_tensors, staged_directory, staged_file, write_json
from expunge.core.hashing import hash_arrays
from expunge.core.outcome import versions
from expunge.core.seeds import torch_generator
from expunge.patches.bounds.proof import Proof
from expunge.patches.model.patch_set import PatchSet
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.builder import TENSOR_NAME
from expunge.patches.network.execute import check_shapes
from expunge.patches.network.operations import Network, Operation
from expunge.patches.network.regions import Box

KIND = "expunge.certificate"
NETWORK_KIND = "expunge.network"
NETWORK_VERSION = 3
SCHEMA_VERSION = 4
PROOF_VERSION = 2

_RELEASE = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,4}((a|b|rc)[0-9]{1,9})?(\.post[0-9]{1,9})?(\.dev[0-9]{1,9})?")

#: The files of a certificate folder.
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
    "multiply-add, with subnormal numbers; direct or im2col convolution. The claim does not hold for autocast, TF32, "
    "bfloat16, int8, and Winograd or FFT convolutions."
)
STATEMENT = {
    "float32": "for every input in the box whose executed float32 activation bits equal the pattern, the executed "
    "logit of the target class exceeds every other executed logit by at least epsilon",
    "real": "for every input in the box whose activation bits in real arithmetic equal the pattern, the logit of the "
    "target class exceeds every other logit by at least epsilon in real arithmetic; executed float32 numbers are not "
    "covered",
}
NOT_SHOWN = (
    "no information was removed: the folder contains the base weights, which are the original model",
    "the folder contains the activation patterns of the forgotten points, which may reveal that they were members",
    "0 % accuracy on the forget set is over-forgetting: a retrained model has about its test accuracy there",
    "this is not an (epsilon, delta)-unlearning guarantee; inputs outside the regions are not covered",
)


#: Raised by missing entries and entries of another type.
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


def save_network(network: Network, directory: Path) -> None:
    """Write network.json and network.safetensors (docs/formats/network.md).

    Args:
        network: a traced operation list.
        directory: an existing directory.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from expunge.patches import load_network, save_network, trace
        >>> network = trace(torch.nn.Linear(4, 2), (4,))
        >>> save_network(network, Path("."))
        >>> load_network(".").hash == network.hash
        True
    """
    from safetensors.numpy import save_file

    arrays = {name: tensor.numpy() for name, tensor in network.tensors.items()}
    with staged_file(directory / "network.safetensors") as temporary:
        save_file(arrays, str(temporary))
    write_json(directory / "network.json", NETWORK_KIND, NETWORK_VERSION, {"hash": network.hash, **network.to_json()})


@contextlib.contextmanager
def _checked_file(path: Path) -> Iterator[Path]:
    """Yield the path of a file of a certificate folder, and report a link or a missing entry as a `FileError`.

    Raises:
        FileError: the file is a link, which could lead out of the folder, or lacks an entry.
    """
    if path.is_symlink():
        raise FileError("is a link; a certificate folder has regular files only", where=path)
    try:
        yield path
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise FileError(
            f"was not written by expunge, or is damaged ({error!r})", where=path, hint="copy the folder again"
        ) from error


def load_network(directory: PathLike) -> Network:
    """Read the network that `save_network` wrote.

    Args:
        directory: the directory of network.json and network.safetensors.

    Raises:
        FileError: a file is missing, a link or damaged, has a duplicate key or another schema version, or a hash in
            network.json does not match.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from expunge.patches import load_network, save_network, trace
        >>> save_network(trace(torch.nn.Linear(4, 2), (4,)), Path("."))
        >>> [operation.op for operation in load_network(".").operations]
        ['input', 'linear']
    """
    with _checked_file(Path(directory) / "network.safetensors") as path:
        tensors, _ = read_tensors(path)
    with _checked_file(Path(directory) / "network.json") as path:
        body = read_json(path, NETWORK_KIND, NETWORK_VERSION)
        operations = []
        for entry in body["operations"]:
            attributes = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["attributes"].items()}
            shape = tuple(entry["shape"])
            operations.append(Operation(entry["op"], tuple(entry["inputs"]), shape, attributes, entry["tensors"]))
        network = Network(tuple(operations), tensors, tuple(body["input_shape"]), int(body["classes"]))
        if body["hash"] != network.hash or body["tensors"] != network.to_json()["tensors"]:
            raise FileError("the recorded hash is not that of the network", where=path)
        _require_defined(network, path)
        return network


def _require_defined(network: Network, path: Path) -> None:
    """Raise FileError unless torch executes every operation as docs/formats/network.md defines it."""
    if any(not TENSOR_NAME.fullmatch(name) for name in network.tensors):
        raise FileError("a tensor has a name that the format does not allow", where=path)
    for number, operation in enumerate(network.operations):
        held, where = operation.attributes, f"{path}: operation {number}"
        if operation.op == "mean" and not held["axes"]:
            raise FileError("a mean names no axis", where=where)
        if operation.op == "relu" and not operation.shape:
            raise FileError("a relu has a result without axes, which has no units", where=where)
        for name in ("slope", "value"):
            if name in held and float(torch.tensor(float(held[name]), dtype=torch.float32)) != held[name]:
                raise FileError(f"the {name} {held[name]!r} is not a float32 number", where=where)
        if "epsilon" in held and float(held["epsilon"]) != held["epsilon"]:
            raise FileError(f"the epsilon {held['epsilon']!r} is not a float64 number", where=where)
    try:
        check_shapes(network)
    except RuntimeError as error:
        raise FileError(f"an operation cannot be executed ({str(error).splitlines()[0]})", where=path) from error


def _save_arrays(path: Path, arrays: dict[str, NDArray[Any]], metadata: dict[str, Any]) -> None:
    from safetensors.numpy import save_file

    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with staged_file(path) as temporary:
        save_file(whole, str(temporary), metadata={"expunge": json.dumps(metadata, sort_keys=True)})


def save_patches(patches: PatchSet, path: PathLike) -> None:
    """Write a patch set (docs/formats/patch.md).

    Args:
        patches: the patches.
        path: of the safetensors file.

    Example:
        >>> from expunge.patches import PatchSet, load_patches, save_patches
        >>> save_patches(PatchSet.empty("constant", atoms=3, classes=2), "patches.safetensors")
        >>> len(load_patches("patches.safetensors"))
        0
    """
    names = ("correction", "atoms", "classes", "gate", "slope", "hash")
    metadata = {"kind": "expunge.patches", "schema_version": 2, "patches": {n: getattr(patches, n) for n in names}}
    _save_arrays(Path(path), patches.arrays(), metadata)


def load_patches(path: PathLike) -> PatchSet:
    """Read a patch set that `save_patches` wrote.

    Args:
        path: of the safetensors file.

    Raises:
        FileError: the file is missing, a link or damaged, has a duplicate key, another kind or schema version, or a
            hash that does not match.

    Example:
        >>> from expunge.patches import PatchSet, load_patches, save_patches
        >>> save_patches(PatchSet.empty("minimal", atoms=3, classes=2), "patches.safetensors")
        >>> load_patches("patches.safetensors").correction
        'minimal'
    """
    with _checked_file(Path(path)) as file:
        tensors, metadata = read_tensors(file)
        version = metadata["schema_version"]
        if metadata["kind"] != "expunge.patches" or type(version) is not int or version != 2:
            raise FileError("has no patches of schema_version 2", where=file)
        recorded = metadata["patches"]
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        empty = np.zeros((len(arrays["target"]), 0), np.float32)
        arrays = {"alpha": empty, "beta": empty, **arrays}
        settings: dict[str, Any] = {
            name: recorded[name] for name in ("correction", "atoms", "classes", "gate", "slope")
        }
        try:
            patches = PatchSet(**settings, **arrays)
            patches.require_consistent()
        except ConfigError as error:
            raise FileError(f"has no patches that can be executed: {error.what}", where=file) from error
        if recorded["hash"] != patches.hash:
            raise FileError("the recorded hash is not that of the patches", where=file)
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
    """Write a certificate folder (docs/formats/proof.md). It is written atomically.

    Args:
        directory: the folder; replaced if it exists.
        model: the patched model, whose executed logits are recorded.
        patches: the patches, in the order of the proofs.
        proof: the proofs.
        box: the input box.
        claim: `float32` or `real`, as solved for.
        epsilon: margin of the target class, as solved for.
        replay: inputs `B x ...` to record with their logits; by default 32 random inputs from the box. Inputs of
            forgotten points are personal data and are recorded only if they are given here.
        seed: seeds the random inputs.

    Raises:
        ModelError: there is no patch; an empty certificate could be mistaken for a passed one.
        RequestError: a replay input lies outside the box.

    Example:
        >>> import os, torch
        >>> from expunge.patches import Box, PatchedModel, compute_patterns, solve, trace, write_certificate
        >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU())
        >>> network, box = trace(model, (2,)), Box.of((2,))
        >>> bits = compute_patterns(network, torch.tensor([[0.75, 0.25]]))[1]
        >>> patches, proof = solve(network, bits, torch.tensor([0]), torch.tensor([1]), box)
        >>> patched = PatchedModel(model, network, patches)
        >>> write_certificate("certificate", patched, patches, proof, box, claim="float32", epsilon=1e-3)
        >>> len(os.listdir("certificate"))
        6
    """
    if not len(patches):
        raise ModelError("the model has no patches, so there is nothing to certify", where="certificate")
    network = model.network
    if replay is None:
        draws = torch.rand(32, *network.input_shape, generator=torch_generator(seed, "replay"), dtype=torch.float64)
        replay = (box.low + draws * (box.high - box.low)).float()
        replay = torch.minimum(torch.maximum(replay, _round_inside(box.low, 1)), _round_inside(box.high, -1))
    outside = ~box.contains(replay)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise RequestError(
            "a replay input lies outside the box", where=f"replay input {row}", hint="give inputs inside the box"
        )
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
            "correction": patches.correction,
            "hashes": {
                "network": network.hash,
                "patches": patches.hash,
                "proof": hash_arrays(arrays),
                "replay": hash_arrays(recorded),
            },
            "does_not_show": list(NOT_SHOWN),
            "versions": _list_releases(),
        }
        write_json(folder / "certificate.json", KIND, SCHEMA_VERSION, body)


def _list_releases() -> dict[str, str]:
    """Return the versions of the programs that write a certificate, without local parts (free text)."""
    found = {name: _RELEASE.match(text) for name, text in versions().items() if name != "platform"}
    return {name: match.group() for name, match in found.items() if match}


def _round_inside(bound: Tensor, direction: int) -> Tensor:
    """Return the float32 nearest to a bound that lies inside the box."""
    near = bound.float()
    outside = near.double() < bound if direction > 0 else near.double() > bound
    return torch.where(outside, torch.nextafter(near, torch.full_like(near, direction * torch.inf)), near)
