"""Reads the six files of a certificate folder and compares their hashes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from expunge_check.errors import MALFORMED, BadCertificate, TooLarge, quote, reject_malformed
from expunge_check.limits import DEFAULT, Limits

from .reading import OpenFolder, parse_arrays, parse_json, read_file

__all__ = ["MALFORMED", "BadCertificate", "Folder", "TooLarge", "read_arrays", "read_folder", "reject_malformed"]

Arrays = Mapping[str, NDArray[Any]]

#: Largest number of atoms and of inputs.
LIMIT = 2**31


def hash_parts(*parts: bytes) -> str:
    """Return the hex SHA-256 of parts, each preceded by its length as 8 little-endian bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def hash_value(value: Any) -> str:
    """Return the hash of the canonical text of a JSON value (sorted keys, no spaces)."""
    return hash_parts(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def hash_array(array: NDArray[Any]) -> str:
    """Return the hash of dtype name, shape and little-endian bytes in C order."""
    return hash_parts(array.dtype.name.encode(), str(tuple(array.shape)).encode(), array.tobytes(order="C"))


def hash_arrays(arrays: Arrays) -> str:
    """Return the hash of named arrays, independent of their order."""
    return hash_value({name: hash_array(array) for name, array in arrays.items()})


def _read_document(data: bytearray, name: str, kind: str, version: int, limits: Limits) -> dict[str, Any]:
    """Return a JSON document after checking its kind and schema version."""
    document = parse_json(data, name, limits)
    found = document.get("schema_version") if isinstance(document, dict) else None
    if type(found) is not int or found != version or document.get("kind") != kind:
        raise BadCertificate(f"{name} is not of kind {kind} and schema version {version}")
    return document


def read_arrays(path: Path, limits: Limits = DEFAULT) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays and metadata of a safetensors file whose path the user gives.

    Raises:
        BadCertificate: it is not a regular file, incomplete, or exceeds a limit.
    """
    return parse_arrays(read_file(path, limits), path.name, limits)


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """Content of a certificate folder, with checked hashes.

    Attributes:
        header: certificate.json.
        network: the body of network.json.
        tensors: network.safetensors.
        patches, settings: patches.safetensors and its metadata.
        proof: proof.safetensors.
        replay: replay.safetensors.
        metadata: other metadata of the four safetensors files, by file name without extension.
    """

    header: dict[str, Any]
    network: dict[str, Any]
    tensors: dict[str, NDArray[Any]]
    patches: dict[str, NDArray[Any]]
    settings: dict[str, Any]
    proof: dict[str, NDArray[Any]]
    replay: dict[str, NDArray[Any]]
    metadata: dict[str, dict[str, Any]]


def read_folder(path: Path, limits: Limits = DEFAULT) -> Folder:
    """Read a folder and compare every hash it records.

    Args:
        path: the folder. Its six files must be regular files, not links; other entries are not read.
        limits: memory and work limits.

    Raises:
        BadCertificate: a file is missing or damaged, or a hash is missing or does not match.
        TooLarge: the files exceed a limit.
    """
    with OpenFolder(path, limits) as opened:
        header = _read_document(opened.read("certificate.json"), "certificate.json", "expunge.certificate", 4, limits)
        network = _read_document(opened.read("network.json"), "network.json", "expunge.network", 3, limits)
        read = {}
        for name in ("network", "patches", "proof", "replay"):
            file = f"{name}.safetensors"
            read[name] = parse_arrays(
                opened.read(file), file, limits, allowed=() if name == "network" else ("expunge",)
            )
    tensors, patches, proof, replay = (arrays for arrays, _ in read.values())
    metadata = {name: texts for name, (_, texts) in read.items()}
    settings = metadata["patches"].pop("patches", None)
    hashes = header.get("hashes")
    if not isinstance(settings, dict) or not isinstance(hashes, dict):
        raise BadCertificate("the header or the patches lack their metadata")
    with reject_malformed("a file has a missing or wrong entry"):
        names = ("input_shape", "classes", "operations", "tensors")
        body = {name: network[name] for name in names}
        found = {
            "network": hash_value(body),
            "patches": hash_value(
                {
                    **{name: settings[name] for name in ("correction", "atoms", "classes", "gate")},
                    "slope": float(settings["slope"]),
                    "arrays": hash_arrays(patches),
                }
            ),
            "proof": hash_arrays(proof),
            "replay": hash_arrays(replay),
        }
        strange = sorted(set(body["tensors"]) ^ set(tensors))
        if strange:
            raise BadCertificate(f"tensor {quote(strange[0])} is in only one of network.json and network.safetensors")
        for name, entry in body["tensors"].items():
            if hash_array(tensors[name]) != entry["hash"] or list(tensors[name].shape) != entry["shape"]:
                raise BadCertificate(
                    f"tensor {quote(name)} is not the one that network.json records: the weights were changed"
                )
    for name, value in found.items():
        if hashes.get(name) != value:
            raise BadCertificate(f"the {name} files are not those that certificate.json records")
    if network.get("hash") != found["network"] or settings.get("hash") != found["patches"]:
        raise BadCertificate("network.json or the metadata of the patches declares a wrong hash")
    return Folder(header, network, tensors, patches, settings, proof, replay, metadata)
