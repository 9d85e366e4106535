"""Values in few characters: plain ones as `repr` has them, large ones by their shape or number."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import expunge
from expunge.core.mask import MaskProvenance
from expunge.core.show import repr_fields, shorten, shorten_mapping, show_shape
from expunge.core.trained import Provenance
from expunge.data.records import Normalisation


@pytest.mark.parametrize(
    "value",
    [
        Normalisation((0.1,), (0.2, 0.3)),
        MaskProvenance("magnitude", layers=("conv",), details={"a": 1, "b": [1.5, None]}),
        expunge.get_recipe("one-cycle"),
        Provenance({"name": "a'b"}, seeds={"initial": 3}, history=("one",)),
        expunge.Architecture("mlp", {"widths": [16]}, (1, 8, 8), 10),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fields_of_small_values_print_as_those_of_any_dataclass(value: Any) -> None:
    fields = [(field.name, field.type) for field in dataclasses.fields(value)]
    plain = dataclasses.make_dataclass(type(value).__name__, fields)
    expected = repr(plain(*(getattr(value, name) for name, _ in fields)))
    assert repr_fields(value) == expected == repr(value)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.zeros((2, 3), dtype=np.float32), "float32[2, 3]"),
        (torch.zeros(2, 3), "float32[2, 3]"),
        (torch.zeros((), device="meta"), "float32[]"),
        (np.float64(0.5), "0.5"),
        ("a\x1b\u202e", "'a\\x1b\\u202e'"),
        ("x" * 200, "'" + 95 * "x" + "...'"),
        (10**99, "<integer of 329 bits>"),
        (nn.Linear(2, 2), "<Linear>"),
        (object(), "<object>"),
        (len, "<len>"),
        ({"record_ids": ["a", "b"], "a": {"b": {"c": 1}}}, "{'record_ids': <2 items>, 'a': {'b': {... 1 entries}}}"),
        (frozenset("ba"), "{a, b}"),
        ((1,), "(1,)"),
        (tuple(range(9)), "(0, 1, 2, ... 9 items)"),
        (torch.device("cpu"), "device(type='cpu')"),
        (Path("a"), "PosixPath('a')"),
    ],
    ids=str,
)
def test_shorten(value: Any, shown: str) -> None:
    assert shorten(value) == shown


def test_small_helpers() -> None:
    assert [show_shape(shape) for shape in ((3, 2), (54,), ())] == ["3 x 2", "54 features", "one number"]
    assert shorten_mapping({"epochs": 2, "ids": ["a"]}) == "epochs 2, ids <1 item>"
    loop: dict[str, Any] = {}
    loop["self"] = loop
    assert len(shorten(loop)) <= 100
