"""The schema of network.json: types, numbers of inputs and lengths of lists, before anything is computed with them.

Python would read much nonsense as something else: `int(1.9)` is 1, `True` is 1, `"1.0"` becomes a float. What the
hashes cover and what is computed must be the same, so every entry has the type that docs/formats/network.md gives, or
the folder is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .errors import shown
from .files import LIMIT, BadCertificate
from .operations import ROLES
from .raw import AXES


def is_whole(value: Any) -> bool:
    """Whether a JSON value is a whole number (not `true`, not 2.0) of a size that a file may ask for."""
    return type(value) is int and abs(value) <= LIMIT


def is_wholes(value: Any) -> bool:
    """Whether a JSON value is a list of whole numbers."""
    return isinstance(value, list) and all(is_whole(v) for v in value)


def is_few(value: Any) -> bool:
    """Whether a JSON value is a list of whole numbers, no more than two an axis."""
    return is_wholes(value) and len(value) <= 2 * AXES


def is_shape(value: Any) -> bool:
    """Whether a JSON value is a shape: at most 16 axes, none negative, no more numbers than a file may ask for."""
    if not is_wholes(value) or len(value) > AXES or min([0, *value]) < 0:
        return False
    return math.prod(max(1, n) for n in value) <= LIMIT


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number that a float64 can hold (not `true`)."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def is_truth(value: Any) -> bool:
    """Whether a JSON value is `true` or `false`."""
    return isinstance(value, bool)


Test = Callable[[Any], bool]
#: Lists with one entry an axis of the plane.
_PLANE = ("kernel", "stride", "padding", "dilation")
#: The attributes of every operation.
ATTRIBUTES: dict[str, dict[str, Test]] = {
    "input": {},
    "linear": {},
    "conv": {"stride": is_wholes, "padding": is_wholes, "dilation": is_wholes, "groups": is_whole},
    "batch_norm": {"epsilon": is_number},
    "add_constant": {"sign": is_whole},
    "multiply_constant": {},
    "divide_constant": {},
    "add": {"sign": is_whole},
    "average_pool": {
        "kernel": is_wholes,
        "stride": is_wholes,
        "padding": is_wholes,
        "count_padding": is_truth,
        "adaptive": is_truth,
    },
    "mean": {"axes": is_few, "keep": is_truth},
    "reshape": {},
    "permute": {"axes": is_wholes},
    "slice": {"axis": is_whole, "start": is_whole, "stop": is_whole, "step": is_whole},
    "pad": {"pairs": is_few, "value": is_number},
    "concat": {"axis": is_whole},
    "relu": {"slope": is_number},
    "max_pool": {"kernel": is_wholes, "stride": is_wholes, "padding": is_wholes, "dilation": is_wholes},
}


#: What network.json says besides the network itself.
_MARKS = ("kind", "schema_version", "hash")


def need_keys(where: str, entry: Any, names: tuple[str, ...], more: tuple[str, ...] = ()) -> None:
    """Refuse an entry that lacks a key or has another one: what no rule reads could claim anything."""
    if not isinstance(entry, Mapping) or set(entry) - set(names) - set(more):
        raise BadCertificate(f"{where} has an entry that no format knows")
    missing = [name for name in names if name not in entry]
    if missing:
        raise BadCertificate(f"{where} has no {missing[0]}")


def check_network(body: Mapping[str, Any]) -> None:
    """Whether network.json has the form of docs/formats/network.md.

    Raises:
        BadCertificate: an entry is missing, of another type, or one too many.
    """
    need_keys("network.json", body, ("input_shape", "classes", "operations", "tensors"), _MARKS)
    for name, entry in body["tensors"].items():
        need_keys(f"network.json: tensor {shown(name)}", entry, ("shape", "hash"))
        if not is_wholes(entry["shape"]):
            raise BadCertificate(f"network.json: tensor {shown(name)} has a shape that is not a list of integers")
    if not is_shape(body["input_shape"]) or not is_whole(body["classes"]) or not isinstance(body["operations"], list):
        raise BadCertificate("network.json: input_shape, classes or operations are of the wrong type")
    for number, entry in enumerate(body["operations"]):
        where = f"network.json: operation {number}"
        need_keys(where, entry, ("kind", "inputs", "shape", "attributes", "tensors"))
        kind = entry["kind"]
        if not isinstance(kind, str) or kind not in ATTRIBUTES:
            raise BadCertificate(f"{where} is of the unknown kind {shown(kind)}")
        shape, inputs, attributes, names = (entry[n] for n in ("shape", "inputs", "attributes", "tensors"))
        if not is_shape(shape) or not is_wholes(inputs):
            raise BadCertificate(f"{where} has no shape of at most {AXES} axes, or inputs that are no list of integers")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise BadCertificate(f"{where} does not name its tensors")
        needed, optional = ROLES.get(kind, ((), ()))
        need_keys(f"the tensors of operation {number} ({kind}) of network.json", names, needed, optional)
        wanted = {"input": 0, "add": 2}.get(kind, 1)
        if len(inputs) < 1 if kind == "concat" else len(inputs) != wanted:
            raise BadCertificate(f"{where} ({kind}) has {len(inputs)} inputs")
        tests = ATTRIBUTES[kind]
        if not isinstance(attributes, dict) or set(attributes) != set(tests):
            raise BadCertificate(f"{where} ({kind}) must have exactly the attributes {sorted(tests)}")
        for name, fits in tests.items():
            if not fits(attributes[name]):
                raise BadCertificate(f"{where} ({kind}) has a {name} of the wrong type")
            if name in _PLANE and not len(attributes[name]) == len(shape) - 1 >= 1:
                raise BadCertificate(f"{where} ({kind}) needs a {name} for each axis of its plane")
