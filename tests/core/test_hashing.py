"""Hashes: golden values made with hashlib alone, and what must and must not change them."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from expunge.core.errors import ModelError
from expunge.core.hashing import (
    canonical_json,
    hash_array,
    hash_arrays,
    hash_bytes,
    hash_file,
    hash_json,
    hash_tensor,
    hash_tensors,
    plain_name,
)
from expunge.core.trained import plain_state


def golden(*parts: bytes) -> str:
    """Each part after its length as eight little-endian bytes, computed without the package."""
    return hashlib.sha256(b"".join(struct.pack("<Q", len(p)) + p for p in parts)).hexdigest()


def golden_json(value: object) -> str:
    return golden(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def test_golden_values() -> None:
    assert hash_bytes(b"ab", b"c") == golden(b"ab", b"c")
    assert hash_bytes() == hashlib.sha256(b"").hexdigest()
    assert hash_json({"b": 1, "a": [1.5, "x", None]}) == golden(b'{"a":[1.5,"x",null],"b":1}')
    assert hash_array(np.array([[1, 2], [3, 4]], dtype=np.int16)) == golden(
        b"int16", b"(2, 2)", b"\x01\x00\x02\x00\x03\x00\x04\x00"
    )
    assert hash_array(np.array(["né", "b"])) == golden(b"text", "né".encode(), b"b", b"(2,)")
    assert hash_tensor(torch.tensor([1.0, -2.0])) == golden(b"float32", b"(2,)", struct.pack("<2f", 1.0, -2.0))
    assert hash_tensor(torch.tensor([True, False])) == golden(b"bool", b"(2,)", b"\x01\x00")
    assert hash_tensor(torch.tensor(3)) == golden(b"int64", b"()", struct.pack("<q", 3))
    assert hash_tensor(torch.tensor([1.0], dtype=torch.bfloat16)) == golden(b"bfloat16", b"(1,)", b"\x80\x3f")
    tensors = {"w": torch.tensor([1.0]), "b": torch.zeros(0)}
    inner = {"w": golden(b"float32", b"(1,)", struct.pack("<f", 1.0)), "b": golden(b"float32", b"(0,)", b"")}
    assert hash_tensors(tensors) == golden_json(inner)


def test_golden_value_that_no_release_may_change() -> None:
    state = {"layer.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3), "layer.bias": torch.zeros(2)}
    assert hash_tensors(state) == "e29430502143ad70762f2ccc2566b1eaf18dc9e0cd2393fcb736216dbd6a6f54"


def test_parts_do_not_run_into_each_other() -> None:
    assert hash_bytes(b"ab", b"c") != hash_bytes(b"a", b"bc") != hash_bytes(b"abc")
    assert hash_array(np.array(["ab", "c"])) != hash_array(np.array(["a", "bc"]))


def test_order_of_names_does_not_matter() -> None:
    a, b = torch.rand(3), torch.rand(2)
    assert hash_tensors({"a": a, "b": b}) == hash_tensors({"b": b, "a": a})
    assert hash_tensors({"a": a, "b": b}) != hash_tensors({"a": b, "b": a})
    arrays = {"x": np.ones(2), "y": np.zeros(3)}
    assert hash_arrays(arrays) == hash_arrays(dict(reversed(arrays.items())))


def test_every_bit_counts() -> None:
    assert hash_tensor(torch.tensor([0.0])) != hash_tensor(torch.tensor([-0.0]))
    assert hash_array(np.array([0.0])) != hash_array(np.array([-0.0]))
    assert hash_tensor(torch.zeros(4)) != hash_tensor(torch.zeros(2, 2)) != hash_tensor(torch.zeros(4, 1))
    assert hash_tensor(torch.zeros(2)) != hash_tensor(torch.zeros(2, dtype=torch.int32))
    assert hash_array(np.float32(3)) != hash_array(np.array([3], dtype=np.float32)), "shape () is not (1,)"


def test_layout_does_not_count() -> None:
    x = torch.rand(2, 3, 4, 5)
    assert hash_tensor(x) == hash_tensor(x.to(memory_format=torch.channels_last))
    assert hash_tensor(x.transpose(0, 1)) == hash_tensor(x.transpose(0, 1).contiguous())
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert hash_array(array) == hash_array(np.asfortranarray(array)) == hash_array(array.astype(">i4"))
    assert hash_array(np.array(["a", "bb"])) == hash_array(np.array(["a", "bb"], dtype=object))
    assert hash_array(np.array(["a", "bb"])) == hash_array(np.array(["a", "bb"], dtype="<U40"))


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("fc.weight", "fc.weight"),
        ("module.fc.weight", "fc.weight"),
        ("_orig_mod.fc.weight", "fc.weight"),
        ("_forward_module.module._orig_mod.fc.weight", "fc.weight"),
        ("module._orig_mod.fc.weight", "fc.weight"),
        ("_forward_module._original_module.fc.weight", "fc.weight"),
        ("blocks._orig_mod.0.weight", "blocks.0.weight"),
        ("blocks._orig_mod._forward_module.0.weight", "blocks.0.weight"),
        ("encoder.module.weight", "encoder.module.weight"),
        ("module", "module"),
    ],
)
def test_wrapper_prefixes(name: str, plain: str) -> None:
    assert plain_name(name) == plain
    assert plain_name(plain) == plain
    assert hash_tensors({name: torch.ones(1)}) == hash_tensors({plain: torch.ones(1)})


def test_real_wrappers_hash_like_what_they_wrap() -> None:
    from lightning_fabric import Fabric

    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    plain = hash_tensors(model.state_dict())
    wrapped = nn.DataParallel(Fabric(accelerator="cpu").setup(model))
    assert set(plain_state(wrapped)) == set(model.state_dict())
    assert (
        hash_tensors(wrapped.state_dict())
        == hash_tensors(dict(wrapped.named_parameters()) | dict(wrapped.named_buffers()))
        == plain
    )


def test_names_that_become_one_are_an_error_not_a_lost_weight() -> None:
    with pytest.raises(ModelError, match="weight"):
        hash_tensors({"module.weight": torch.zeros(1), "weight": torch.ones(1)})

    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.weight = nn.Linear(1, 1), nn.Parameter(torch.zeros(1))

    with pytest.raises(ModelError, match="weight"):
        plain_state(Clash())


def test_canonical_json() -> None:
    value = {"path": Path("a/b"), "n": np.int64(3), "x": np.float32(0.5), "s": {"b", "a"}, "v": np.arange(2)}
    assert canonical_json(value) == '{"n":3,"path":"a/b","s":["a","b"],"v":[0,1],"x":0.5}'
    with pytest.raises(ValueError):
        canonical_json({"x": float("nan")})
    with pytest.raises(TypeError):
        canonical_json({"x": object()})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(json_values)
def test_canonical_json_is_json_and_ignores_order(value: object) -> None:
    assert json.loads(canonical_json(value)) == value
    if isinstance(value, dict):
        assert hash_json(dict(reversed(value.items()))) == hash_json(value)


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than a block
    (tmp_path / "a.bin").write_bytes(content)
    assert hash_file(tmp_path / "a.bin") == hashlib.sha256(content).hexdigest()
