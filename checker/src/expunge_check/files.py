"""Reading a certificate folder: JSON, safetensors, and the hashes that tie them together."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

#: Largest atom and input counts that a file may ask memory for.
LIMIT = 2**31


class BadCertificate(Exception):
    """The folder does not hold what a certificate must hold; nothing in it is certified."""


#: What damaged or hostile files make Python raise while they are read and computed with: missing entries, other types,
#: divisions by zero and overflows (also of fractions), nesting without end, arrays beyond the memory.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError)


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn what damaged files make Python raise into `BadCertificate`: a traceback is no verdict."""
    try:
        yield
    except MALFORMED as error:
        raise BadCertificate(f"{what}: {error!r}") from error


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


def read_json(path: Path, kind: str, version: int) -> dict[str, Any]:
    """A JSON document of the given kind and schema version."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *MALFORMED) as error:
        raise BadCertificate(f"{path.name} cannot be read: {error}") from error
    found = document.get("schema_version") if isinstance(document, dict) else None
    if type(found) is not int or found != version or document.get("kind") != kind:
        raise BadCertificate(f"{path.name} is no {kind} of schema version {version}")
    return document


def read_arrays(path: Path, *, strict: bool = False) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and metadata of a safetensors file; `strict`: there is no metadata besides the JSON under `expunge`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            texts = file.metadata() or {}
            metadata = json.loads(texts.get("expunge", "{}"))
    except (OSError, SafetensorError, *MALFORMED) as error:
        raise BadCertificate(f"{path.name} cannot be read: {error}") from error
    if strict and set(texts) - {"expunge"}:
        raise BadCertificate(f"{path.name} has metadata besides that under `expunge`")
    if not isinstance(metadata, dict):
        raise BadCertificate(f"{path.name} has damaged metadata")
    return arrays, metadata


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


def read_folder(path: Path) -> Folder:
    """Read a folder and compare every hash it records.

    Raises:
        BadCertificate: a file is missing or damaged, a hash does not match, or a tensor has none.
    """
    header = read_json(path / "certificate.json", "expunge.certificate", 3)
    network = read_json(path / "network.json", "expunge.network", 1)
    names = ("network", "patches", "proof", "replay")
    read = {name: read_arrays(path / f"{name}.safetensors", strict=True) for name in names}
    tensors, patches, proof, replay = (read[name][0] for name in names)
    metadata = {name: read[name][1] for name in names}
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
            raise BadCertificate(f"tensor {strange[0]} is in only one of network.json and network.safetensors")
        for name, entry in body["tensors"].items():
            if hash_array(tensors[name]) != entry["hash"] or list(tensors[name].shape) != entry["shape"]:
                raise BadCertificate(
                    f"tensor {name} is not the one that network.json records: the weights were changed"
                )
    for name, value in found.items():
        if hashes.get(name) != value:
            raise BadCertificate(f"the {name} files are not those that certificate.json records")
    if network.get("hash") != found["network"] or settings.get("hash") != found["patches"]:
        raise BadCertificate("network.json or the metadata of the patches states a hash that is not its own")
    return Folder(header, network, tensors, patches, settings, proof, replay, metadata)
