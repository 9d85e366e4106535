"""The schema of network.json: types, numbers of inputs and lengths of lists, checked before any computation.

Python converts many values silently: `int(1.9)` is 1, `True` is 1, `float("1.0")` is 1.0. The computation must use
exactly the values that the hashes cover, so a folder is refused unless every entry has the type of
docs/formats/network.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from expunge_check.arithmetic.operations import ROLES
from expunge_check.errors import BadCertificate, quote
from expunge_check.limits import LIMIT

from .reading import AXES


def is_integer(value: Any) -> bool:
    """Return whether a JSON value is an integer (not `true`, not 2.0) of at most `LIMIT`."""
    return type(value) is int and abs(value) <= LIMIT


def is_integers(value: Any) -> bool:
    """Return whether a JSON value is a list of integers."""
    return isinstance(value, list) and all(is_integer(v) for v in value)


def is_short_list(value: Any) -> bool:
    """Return whether a JSON value is a list of integers, at most two per axis."""
    return is_integers(value) and len(value) <= 2 * AXES


def is_shape(value: Any) -> bool:
    """Return whether a JSON value is a shape: at most 16 axes, none below 1, at most `LIMIT` numbers."""
    if not is_integers(value) or len(value) > AXES or min([1, *value]) < 1:
        return False
    return math.prod(value) <= LIMIT


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite float64 number (not `true`, no integer that float64 rounds, not -0.0)."""
    try:
        finite = type(value) in (int, float) and math.isfinite(value) and float(value) == value
        return finite and (value != 0 or math.copysign(1, value) > 0)
    except OverflowError:
        return False


def is_bool(value: Any) -> bool:
    """Return whether a JSON value is `true` or `false`."""
    return isinstance(value, bool)


Test = Callable[[Any], bool]
#: Lists with one entry per axis of the plane.
_PLANE = ("kernel", "stride", "padding", "dilation")
#: The attributes of every operation.
ATTRIBUTES: dict[str, dict[str, Test]] = {
    "input": {},
    "linear": {},
    "conv": {"stride": is_integers, "padding": is_integers, "dilation": is_integers, "groups": is_integer},
    "batch_norm": {"epsilon": is_number},
    "add_constant": {"sign": is_integer},
    "multiply_constant": {},
    "divide_constant": {},
    "add": {"sign": is_integer},
    "average_pool": {
        "kernel": is_integers,
        "stride": is_integers,
        "padding": is_integers,
        "count_padding": is_bool,
        "adaptive": is_bool,
    },
    "mean": {"axes": is_short_list, "keep": is_bool},
    "reshape": {},
    "permute": {"axes": is_integers},
    "slice": {"axis": is_integer, "start": is_integer, "stop": is_integer, "step": is_integer},
    "pad": {"pairs": is_short_list, "value": is_number},
    "concat": {"axis": is_integer},
    "relu": {"slope": is_number},
    "max_pool": {"kernel": is_integers, "stride": is_integers, "padding": is_integers, "dilation": is_integers},
}


#: Keys of network.json besides the network itself.
_HEADER_KEYS = ("kind", "schema_version", "hash")
#: Names of tensors: no spaces, so that none is a sentence, and only characters that are always visible.
_NAME = re.compile(r"[A-Za-z0-9_.@/-]{1,200}")


def require_keys(where: str, entry: Any, names: tuple[str, ...], more: tuple[str, ...] = ()) -> None:
    """Refuse an entry with a missing or an unknown key, because an unread entry could claim anything."""
    if not isinstance(entry, Mapping) or set(entry) - set(names) - set(more):
        raise BadCertificate(f"{where} has an unknown entry")
    missing = [name for name in names if name not in entry]
    if missing:
        raise BadCertificate(f"{where} has no {missing[0]}")


def check_network(body: Mapping[str, Any]) -> None:
    """Check that network.json has the format of docs/formats/network.md.

    Raises:
        BadCertificate: an entry is missing, unknown, or of another type.
    """
    require_keys("network.json", body, ("input_shape", "classes", "operations", "tensors"), _HEADER_KEYS)
    for name, entry in body["tensors"].items():
        if not _NAME.fullmatch(name):
            raise BadCertificate(f"network.json: {quote(name)} is not the name of a tensor")
        require_keys(f"network.json: tensor {quote(name)}", entry, ("shape", "hash"))
        if not is_integers(entry["shape"]):
            raise BadCertificate(f"network.json: tensor {quote(name)} has a shape that is not a list of integers")
    if not is_shape(body["input_shape"]) or not is_integer(body["classes"]) or not isinstance(body["operations"], list):
        raise BadCertificate("network.json: input_shape, classes or operations are of the wrong type")
    for number, entry in enumerate(body["operations"]):
        where = f"network.json: operation {number}"
        require_keys(where, entry, ("op", "inputs", "shape", "attributes", "tensors"))
        op = entry["op"]
        if not isinstance(op, str) or op not in ATTRIBUTES:
            raise BadCertificate(f"{where} has the unknown op {quote(op)}")
        shape, inputs, attributes, names = (entry[n] for n in ("shape", "inputs", "attributes", "tensors"))
        if not is_shape(shape) or not is_integers(inputs):
            raise BadCertificate(f"{where} has no shape of at most {AXES} axes, or no list of integers as inputs")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise BadCertificate(f"{where} does not name its tensors")
        needed, optional = ROLES.get(op, ((), ()))
        require_keys(f"the tensors of operation {number} ({op}) of network.json", names, needed, optional)
        wanted = {"input": 0, "add": 2}.get(op, 1)
        if len(inputs) < 1 if op == "concat" else len(inputs) != wanted:
            raise BadCertificate(f"{where} ({op}) has {len(inputs)} inputs")
        tests = ATTRIBUTES[op]
        if not isinstance(attributes, dict) or set(attributes) != set(tests):
            raise BadCertificate(f"{where} ({op}) must have exactly the attributes {sorted(tests)}")
        for name, fits in tests.items():
            if not fits(attributes[name]):
                raise BadCertificate(f"{where} ({op}) has the attribute {name} of the wrong type")
            if name in _PLANE and not len(attributes[name]) == len(shape) - 1 >= 1:
                raise BadCertificate(f"{where} ({op}) needs one {name} for each axis of its plane")
    unused = sorted(set(body["tensors"]) - {name for entry in body["operations"] for name in entry["tensors"].values()})
    if unused:
        raise BadCertificate(f"network.json: no operation uses the tensor {quote(unused[0])}")
