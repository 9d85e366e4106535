"""What a certificate declares in words: compared with the texts that the formats allow, or refused.

docs/formats/proof.md lists these texts. Nothing else in a folder is prose, and no entry is allowed that nothing reads,
so that a folder cannot claim anything that was not checked.
"""

from __future__ import annotations

import re
from typing import Any

from .files import BadCertificate, Folder
from .schema import need_keys

#: What is claimed, by the claim's name.
STATEMENT = {
    "float32": "for every input in the box whose executed float32 activation bits equal the pattern, the executed "
    "logit of the target class exceeds every other executed logit by at least epsilon",
    "real": "for every input in the box whose activation bits in real arithmetic equal the pattern, the target's logit "
    "exceeds every other by at least epsilon in real arithmetic; nothing is said about executed float32 numbers",
}
#: Under which execution.
EXECUTION = {
    "float32": "plain float32 on a CPU or GPU: products and sums rounded to nearest, in any order, with or without "
    "fused multiply-add, subnormal numbers kept; direct or im2col convolution. Autocast, TF32, bfloat16, int8, "
    "Winograd and FFT convolutions void it.",
    "real": "real arithmetic",
}
#: What is not claimed.
NOT_SHOWN = [
    "no information was removed: the base weights are inside and whoever has them has the original model",
    "the activation patterns of the forgotten points are in the file and may reveal that they were members",
    "0 % accuracy on the forget set is over-forgetting: a retrained model keeps its test accuracy there",
    "this is no (epsilon, delta)-unlearning guarantee; nothing is said outside the regions",
]
#: Programs whose version numbers may stand in a certificate.
PROGRAMS = ("expunge", "python", "torch", "numpy", "scipy", "scikit-learn", "safetensors")
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,4}((a|b|rc)[0-9]{1,9})?(\.post[0-9]{1,9})?(\.dev[0-9]{1,9})?")
_HEADER = (
    "kind", "schema_version", "claim", "epsilon", "statement", "execution", "points", "gate", "patch_kind", "hashes",
    "does_not_show", "versions",
)  # fmt: skip
_SETTINGS = ("kind", "atoms", "classes", "gate", "slope", "hash")
#: Kind and schema version in the metadata of the safetensors files; that of the weights is empty.
_MARKS = {"patches": ("expunge.patches", 1), "proof": ("expunge.proof", 2), "replay": ("expunge.replay", 1)}


def check_declared(folder: Folder) -> None:
    """Compare the words, names and version numbers of a folder with what is checked.

    Raises:
        BadCertificate: something is missing, one too many, or says something else.
    """
    header, settings = folder.header, folder.settings
    need_keys("certificate.json", header, _HEADER)
    need_keys("hashes of certificate.json", header["hashes"], ("network", "patches", "proof", "replay"))
    claim = header["claim"]
    wanted: dict[str, Any] = {
        "statement": STATEMENT[claim],
        "execution": EXECUTION[claim],
        "does_not_show": NOT_SHOWN,
        "gate": settings.get("gate"),
        "patch_kind": settings.get("kind"),
    }
    for name, value in wanted.items():
        if type(header[name]) is not type(value) or header[name] != value:
            raise BadCertificate(f"certificate.json declares another {name} than the one that is checked")
    versions = header["versions"]
    if not isinstance(versions, dict) or set(versions) - set(PROGRAMS):
        raise BadCertificate(f"versions of certificate.json are of other programs than {', '.join(PROGRAMS)}")
    if not all(isinstance(text, str) and _VERSION.fullmatch(text) for text in versions.values()):
        raise BadCertificate("versions of certificate.json are no version numbers")
    need_keys("the metadata of the patches", settings, _SETTINGS)
    _check_marks(folder)


def _check_marks(folder: Folder) -> None:
    if folder.metadata.get("network"):
        raise BadCertificate("network.safetensors has metadata, and its format has none")
    for file, (kind, version) in _MARKS.items():
        found = folder.metadata.get(file, {})
        need_keys(f"the metadata of {file}.safetensors", found, ("kind", "schema_version"))
        if found["kind"] != kind or type(found["schema_version"]) is not int or found["schema_version"] != version:
            raise BadCertificate(f"{file}.safetensors is no {kind} of schema version {version}")
