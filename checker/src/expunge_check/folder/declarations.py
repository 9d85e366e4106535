"""The fixed texts of a certificate. A folder with any other text is refused.

docs/formats/proof.md lists these texts. A folder has no other prose and no entries that are not read, so it cannot
claim anything that was not checked.
"""

from __future__ import annotations

import re
from typing import Any

from expunge_check.errors import BadCertificate

from .files import Folder
from .schema import require_keys

#: The statement of each claim.
STATEMENT = {
    "float32": "for every input in the box whose executed float32 activation bits equal the pattern, the executed "
    "logit of the target class exceeds every other executed logit by at least epsilon",
    "real": "for every input in the box whose activation bits in real arithmetic equal the pattern, the logit of the "
    "target class exceeds every other logit by at least epsilon in real arithmetic; executed float32 numbers are not "
    "covered",
}
#: The execution that each claim is about.
EXECUTION = {
    "float32": "plain float32 on a CPU or GPU: products and sums rounded to nearest, in any order, with or without "
    "fused multiply-add, with subnormal numbers; direct or im2col convolution. The claim does not hold for autocast, "
    "TF32, bfloat16, int8, and Winograd or FFT convolutions.",
    "real": "real arithmetic",
}
#: What a certificate does not show.
NOT_SHOWN = [
    "no information was removed: the folder contains the base weights, which are the original model",
    "the folder contains the activation patterns of the forgotten points, which may reveal that they were members",
    "0 % accuracy on the forget set is over-forgetting: a retrained model has about its test accuracy there",
    "this is not an (epsilon, delta)-unlearning guarantee; inputs outside the regions are not covered",
]
#: Programs whose versions a certificate may list.
PROGRAMS = ("expunge", "python", "torch", "numpy", "scipy", "scikit-learn", "safetensors")
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,4}((a|b|rc)[0-9]{1,9})?(\.post[0-9]{1,9})?(\.dev[0-9]{1,9})?")
_HEADER = (
    "kind", "schema_version", "claim", "epsilon", "statement", "execution", "points", "gate", "correction", "hashes",
    "does_not_show", "versions",
)  # fmt: skip
_SETTINGS = ("correction", "atoms", "classes", "gate", "slope", "hash")
#: Kind and schema version in the metadata of the safetensors files; network.safetensors has no metadata.
_KINDS_AND_VERSIONS = {
    "patches": ("expunge.patches", 2),
    "proof": ("expunge.proof", 2),
    "replay": ("expunge.replay", 1),
}


def check_declared(folder: Folder) -> None:
    """Compare the texts, names and versions of a folder with those that are checked.

    Raises:
        BadCertificate: an entry is missing, unknown, or different.
    """
    header, settings = folder.header, folder.settings
    require_keys("certificate.json", header, _HEADER)
    require_keys("hashes of certificate.json", header["hashes"], ("network", "patches", "proof", "replay"))
    claim = header["claim"]
    wanted: dict[str, Any] = {
        "statement": STATEMENT[claim],
        "execution": EXECUTION[claim],
        "does_not_show": NOT_SHOWN,
        "gate": settings.get("gate"),
        "correction": settings.get("correction"),
    }
    for name, value in wanted.items():
        if type(header[name]) is not type(value) or header[name] != value:
            raise BadCertificate(f"certificate.json declares another {name} than the one that is checked")
    versions = header["versions"]
    if not isinstance(versions, dict) or set(versions) - set(PROGRAMS):
        raise BadCertificate(f"versions of certificate.json has other programs than {', '.join(PROGRAMS)}")
    if not all(isinstance(text, str) and _VERSION.fullmatch(text) for text in versions.values()):
        raise BadCertificate("versions of certificate.json has a value that is not a version number")
    require_keys("the metadata of the patches", settings, _SETTINGS)
    _check_metadata(folder)


def _check_metadata(folder: Folder) -> None:
    if folder.metadata.get("network"):
        raise BadCertificate("network.safetensors has metadata, and its format has none")
    for file, (kind, version) in _KINDS_AND_VERSIONS.items():
        found = folder.metadata.get(file, {})
        require_keys(f"the metadata of {file}.safetensors", found, ("kind", "schema_version"))
        if found["kind"] != kind or type(found["schema_version"]) is not int or found["schema_version"] != version:
            raise BadCertificate(f"{file}.safetensors is no {kind} of schema version {version}")
