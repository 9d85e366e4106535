"""Masks: +0.0 exactly, whatever stood there before; files that were tampered with are refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from expunge.core.errors import FileError, MaskError
from expunge.core.files import read_tensors, write_tensors
from expunge.core.mask import Mask, MaskProvenance

INF, NAN = float("inf"), float("nan")


def layer(values: list[float]) -> nn.Linear:
    model = nn.Linear(len(values), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([values]))
    return model


def mask(kept: list[bool], name: str = "weight") -> Mask:
    return Mask({name: torch.tensor([kept])}, MaskProvenance("magnitude", layers=("linear",), details={"a": 1}))


def test_apply_assigns_positive_zero() -> None:
    model = layer([1.0, -1.0, INF, -INF, NAN, -0.0, 5.0])
    sparse = mask([False] * 6 + [True])
    sparse.apply_(model)
    assert model.weight.tolist() == [[0.0] * 6 + [5.0]]
    assert not torch.signbit(model.weight).any()
    assert sparse.count_violations(model) == {}


@pytest.mark.parametrize("value", [-0.0, 1e-45, 1.0, NAN, INF, -INF])
def test_violations_sees_everything_but_positive_zero(value: float) -> None:
    assert mask([False, True]).count_violations(layer([value, 1.0])) == {"weight": 1}
    assert mask([False, True]).count_violations(layer([0.0, value])) == {}


def test_a_product_would_not_do() -> None:
    """The control: masking by multiplication leaves what `violations` finds."""
    model = layer([-1.0, INF, 2.0])
    sparse = mask([False, False, True])
    with torch.no_grad():
        model.weight.mul_(sparse.kept["weight"])
    assert sparse.count_violations(model) == {"weight": 2}


def test_counts() -> None:
    m = Mask({"a": torch.tensor([True, False, False]), "b": torch.tensor([[True]])}, MaskProvenance("x"))
    assert (m.total, m.kept_count, m.density, m.sparsity) == (4, 2, 0.5, 0.5)
    assert m.layer_density() == {"a": pytest.approx(1 / 3), "b": 1.0}
    empty = Mask({}, MaskProvenance("x"))
    assert (empty.density, empty.count_violations(layer([1.0]))) == (1.0, {})


def test_hash_is_topology_alone() -> None:
    a = mask([True, False])
    assert a.hash() == Mask(a.kept, MaskProvenance("other")).hash() == mask([True, False], "module.weight").hash()
    assert a.hash() != mask([False, True]).hash()
    assert a.hash() != Mask({"other": a.kept["weight"]}, a.provenance).hash()


def test_wrong_masks_are_named() -> None:
    with pytest.raises(MaskError, match="bool"):
        Mask({"weight": torch.ones(1, 2)}, MaskProvenance("x"))
    for wrong, text in ((mask([True], "weight"), "shape"), (mask([True, True], "other"), "does not have")):
        for use in (wrong.check_fits, wrong.apply_):
            model = layer([1.0, 2.0])
            with pytest.raises(MaskError, match=text) as caught:
                use(model)
            assert caught.value.where in ("weight", "other")
            assert model.weight.tolist() == [[1.0, 2.0]]


def test_file_round_trip(tmp_path: Path) -> None:
    a = mask([True, False])
    a.save(tmp_path / "m")
    b = Mask.load(tmp_path / "m")
    assert b.hash() == a.hash()
    assert b.provenance == a.provenance
    model = layer([3.0, 4.0])
    copy.deepcopy(b).apply_(model)
    assert model.weight.tolist() == [[3.0, 0.0]]


def test_tampered_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    mask([True, False]).save(path)
    tensors, metadata = read_tensors(path)
    tries = {
        "hash": ({"weight": ~tensors["weight"]}, metadata),
        "damaged mask": ({"weight": tensors["weight"].float()}, metadata),
        "not an expunge mask": (tensors, {**metadata, "schema_version": 1}),
        "is not an expunge mask": (tensors, {**metadata, "kind": "x"}),
    }
    for message, (t, m) in tries.items():
        write_tensors(path, t, m)
        with pytest.raises(FileError, match=message):
            Mask.load(path)
    renamed = {"other": tensors["weight"]}
    write_tensors(path, renamed, metadata)
    with pytest.raises(FileError, match="hash"):
        Mask.load(path)
    save_file(tensors, str(path))
    with pytest.raises(FileError, match="not an expunge mask"):
        Mask.load(path)


@pytest.mark.parametrize("provenance", [None, 3, {}, [], {"criterion": "x", "layers": 3}])
def test_damaged_provenance_is_refused(tmp_path: Path, provenance: object) -> None:
    m = mask([True])
    metadata = {"kind": "expunge.mask", "schema_version": 2, "hash": m.hash(), "provenance": provenance}
    write_tensors(tmp_path / "m", m.kept, metadata)
    with pytest.raises(FileError):
        Mask.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("key", "value"),
    [("zero_parameters", "bias"), ("rounded_zeros", [1]), ("rounded_zeros", {"below": "x", "zeros": 1, "expected": 1})],
)
def test_details_of_an_import_are_checked(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        MaskProvenance.from_json({"criterion": "unknown", "details": {key: value}})
