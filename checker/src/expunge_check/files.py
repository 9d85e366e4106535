"""Reading a certificate folder: the six files, and the hashes that tie them together."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .errors import MALFORMED, BadCertificate, TooLarge, refusing, shown
from .limits import DEFAULT, Limits
from .raw import Opened, parse_arrays, parse_json, read_file

__all__ = ["MALFORMED", "BadCertificate", "Folder", "TooLarge", "read_arrays", "read_folder", "refusing"]

Arrays = Mapping[str, NDArray[Any]]

#: Largest atom and input counts that a file may ask memory for.
LIMIT = 2**31


def hash_parts(*parts: bytes) -> str:
    """Hex SHA-256 of parts, each after its length as 8 little-endian bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def hash_value(value: Any) -> str:
    """Hash of a JSON value in its canonical text (sorted keys, no spaces)."""
    return hash_parts(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def hash_array(array: NDArray[Any]) -> str:
    """Hash of dtype name, shape and little-endian bytes in C order."""
    return hash_parts(array.dtype.name.encode(), str(tuple(array.shape)).encode(), array.tobytes(order="C"))


def hash_arrays(arrays: Arrays) -> str:
    """Hash of named arrays, whatever their order."""
    return hash_value({name: hash_array(array) for name, array in arrays.items()})


def _document(data: bytearray, name: str, kind: str, version: int, limits: Limits) -> dict[str, Any]:
    """A JSON document of the given kind and schema version."""
    document = parse_json(data, name, limits)
    found = document.get("schema_version") if isinstance(document, dict) else None
    if type(found) is not int or found != version or document.get("kind") != kind:
        raise BadCertificate(f"{name} is no {kind} of schema version {version}")
    return document


def read_arrays(path: Path, limits: Limits = DEFAULT) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and metadata of a safetensors file that the user names.

    Raises:
        BadCertificate: it is not a regular file, not whole, or beyond the limits.
    """
    return parse_arrays(read_file(path, limits), path.name, limits)


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """What a certificate folder holds, with hashes checked.

    Attributes:
        header: certificate.json.
        network: the body of network.json.
        tensors: network.safetensors.
        patches, settings: patches.safetensors and its metadata.
        proof: proof.safetensors.
        replay: replay.safetensors.
        metadata: the rest of the metadata of the four safetensors files, by their names without the ending.
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
        path: the folder. Its six files must be regular files in it, no links; other entries are not read.
        limits: what reading may take.

    Raises:
        BadCertificate: a file is missing or damaged, a hash does not match, or a tensor has none.
        TooLarge: the files are beyond the limits.
    """
    with Opened(path, limits) as opened:
        header = _document(opened.read("certificate.json"), "certificate.json", "expunge.certificate", 3, limits)
        network = _document(opened.read("network.json"), "network.json", "expunge.network", 2, limits)
        read = {}
        for name in ("network", "patches", "proof", "replay"):
            file = f"{name}.safetensors"
            read[name] = parse_arrays(opened.read(file), file, limits, strict=True)
    tensors, patches, proof, replay = (arrays for arrays, _ in read.values())
    metadata = {name: texts for name, (_, texts) in read.items()}
    settings = metadata["patches"].pop("patches", None)
    hashes = header.get("hashes")
    if not isinstance(settings, dict) or not isinstance(hashes, dict):
        raise BadCertificate("the header or the patches lack their metadata")
    with refusing("a file lacks an entry or holds a wrong one"):
        names = ("input_shape", "classes", "operations", "tensors")
        body = {name: network[name] for name in names}
        found = {
            "network": hash_value(body),
            "patches": hash_value(
                {
                    **{name: settings[name] for name in ("kind", "atoms", "classes", "gate")},
                    "slope": float(settings["slope"]),
                    "arrays": hash_arrays(patches),
                }
            ),
            "proof": hash_arrays(proof),
            "replay": hash_arrays(replay),
        }
        strange = sorted(set(body["tensors"]) ^ set(tensors))
        if strange:
            raise BadCertificate(f"tensor {shown(strange[0])} is in only one of network.json and network.safetensors")
        for name, entry in body["tensors"].items():
            if hash_array(tensors[name]) != entry["hash"] or list(tensors[name].shape) != entry["shape"]:
                raise BadCertificate(
                    f"tensor {shown(name)} is not the one that network.json records: the weights were changed"
                )
    for name, value in found.items():
        if hashes.get(name) != value:
            raise BadCertificate(f"the {name} files are not those that certificate.json records")
    if network.get("hash") != found["network"] or settings.get("hash") != found["patches"]:
        raise BadCertificate("network.json or the metadata of the patches states a hash that is not its own")
    return Folder(header, network, tensors, patches, settings, proof, replay, metadata)
