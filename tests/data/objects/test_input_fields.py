"""Named inputs of a model as one array: packing loses nothing, and padding is cut where that is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from expunge.core.errors import DataError
from expunge.data import Batches, Records
from expunge.data.fields import Field, InputFields
from expunge.data.items import read_item
from expunge.data.transforms import to_input

TOKENS = InputFields(
    (Field("input_ids", (4,), "int64"), Field("token_type_ids", (4,), "int64"), Field("attention_mask", (4,), "int64")),
    "attention_mask",
)


def draw_value(draw, field: Field, count: int, exact: bool):
    shape = (count, *field.shape)
    if field.dtype == "float32":
        return draw(hnp.arrays(np.float32, shape, elements=st.floats(-(2.0**60), 2.0**60, width=32)))
    high = {"uint8": 255, "bool": 1}.get(field.dtype, 2**24 if exact else 2**63 - 1)
    low = 0 if field.dtype in ("uint8", "bool") else -high
    dtype = {"uint8": np.uint8, "bool": np.bool_}.get(field.dtype, np.int64)
    return draw(hnp.arrays(dtype, shape, elements=st.integers(low, high) if dtype != np.bool_ else st.booleans()))


@st.composite
def described_batches(draw):
    shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
    types = st.sampled_from(["int64", "bool", "float32", "uint8"])
    several = draw(st.integers(1, 4))
    fields = tuple(Field(f"f{i}", draw(shapes), draw(types)) for i in range(several))
    exact = several > 1 and any(f.dtype in ("float32", "uint8") for f in fields)
    count = draw(st.integers(1, 3))
    return InputFields(fields), {f.name: draw_value(draw, f, count, exact) for f in fields}


@settings(max_examples=150, deadline=None)
@given(described_batches())
def test_pack_and_unpack_are_inverse(case):
    fields, values = case
    packed = fields.pack_batch(values)
    assert (packed.shape[1:], str(packed.dtype)) == (fields.input_shape, fields.dtype)
    for row in range(len(packed)):
        one = fields.pack({name: value[row] for name, value in values.items()})
        assert np.array_equal(one, packed[row])
    found = fields.unpack(to_input(torch.from_numpy(packed)))
    for name, value in values.items():
        want = torch.from_numpy(value)
        want = want.to(torch.float32).div_(255) if want.dtype == torch.uint8 else want
        assert found[name].dtype == want.dtype
        assert torch.equal(found[name], want)
    assert InputFields.from_json(fields.to_json()) == fields


def test_types_of_the_stored_array():
    image, ids, age = Field("pixels", (3, 2, 2), "uint8"), Field("ids", (2,), "int64"), Field("age", (), "float32")
    assert (InputFields((image,)).dtype, InputFields((image,)).input_shape) == ("uint8", (3, 2, 2))
    assert (InputFields((ids,)).dtype, InputFields((ids, Field("b", (2,), "bool"))).dtype) == ("int64", "int64")
    assert (InputFields((ids, age)).dtype, InputFields((image, ids)).input_shape) == ("float32", (14,))
    assert InputFields((age,)).input_shape == (1,)


def test_infer_describes_what_a_tokenizer_returns():
    item = {"input_ids": [1, 2], "attention_mask": torch.tensor([1, 1], dtype=torch.int32), "x": np.zeros((2, 1))}
    found = InputFields.infer(item)
    assert found.fields == (
        Field("input_ids", (2,), "int64"),
        Field("attention_mask", (2,), "int64"),
        Field("x", (2, 1), "float32"),
    )
    assert found.padding == "attention_mask"
    assert InputFields.infer({"x": np.zeros(3, np.uint8), "flag": True}).fields[1] == Field("flag", (), "bool")


def test_trailing_padding_is_cut_from_every_field_of_its_length():
    fields = InputFields((*TOKENS.fields, Field("other", (2,), "int64")), "attention_mask")
    values = {
        "input_ids": [[7, 8, 0, 0], [0, 9, 5, 0]],
        "token_type_ids": [[0, 1, 0, 0], [0, 0, 1, 0]],
        "attention_mask": [[1, 1, 0, 0], [0, 1, 1, 0]],
        "other": [[1, 2], [3, 4]],
    }
    batch = torch.from_numpy(fields.pack_batch(values))
    found = fields.unpack(batch)
    assert found["input_ids"].tolist() == [[7, 8, 0], [0, 9, 5]]
    assert found["attention_mask"].shape == found["token_type_ids"].shape == (2, 3)
    assert found["other"].tolist() == values["other"]
    assert fields.unpack(batch, trim=False)["input_ids"].shape == (2, 4)
    assert fields.unpack(torch.zeros_like(batch))["input_ids"].shape == (2, 1)  # never empty


def test_padding_stays_inside_vmap_and_grad_and_on_the_meta_device():
    batch = torch.from_numpy(TOKENS.pack_batch({name: [[1, 0, 0, 0]] * 3 for name in TOKENS.names}))
    widths = []

    def read(row):
        found = TOKENS.unpack(row[None])
        widths.append(found["input_ids"].shape[1])
        return found["input_ids"].sum()

    assert torch.vmap(read)(batch).tolist() == [1, 1, 1]
    torch.func.grad(lambda w, x: (w * read(x)).float())(torch.tensor(2.0), batch[0])
    assert TOKENS.unpack(batch.to("meta"))["input_ids"].shape == (3, 4)
    assert widths[0] == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input_ids": [1, 2, 3, 4], "token_type_ids": [0] * 4}, "no 'attention_mask'"),
        ({**{n: [0] * 4 for n in TOKENS.names}, "labels": 1}, "'labels' is none of the inputs"),
        ({**{n: [0] * 4 for n in TOKENS.names}, "input_ids": [1, 2]}, r"the shape \(2,\), not \(4,\)"),
        ({**{n: [0] * 4 for n in TOKENS.names}, "input_ids": [1.5, 2, 3, 4]}, "not integers"),
        ({**{n: [0] * 4 for n in TOKENS.names}, "input_ids": ["a", "b", "c", "d"]}, "not numbers"),
        ({**{n: [0] * 4 for n in TOKENS.names}, "input_ids": [[1], [2, 3]]}, "not an array of numbers"),
    ],
)
def test_a_record_that_does_not_fit_names_the_input(values, message):
    with pytest.raises(DataError, match=message):
        TOKENS.pack(values)


def test_an_integer_that_float32_cannot_hold_is_refused():
    fields = InputFields((Field("code", (), "int64"), Field("x", (1,), "float32")))
    assert fields.pack({"code": 2**24, "x": [0.5]}).tolist() == [2**24, 0.5]
    with pytest.raises(DataError, match=r"input code: has the value 16777217, outside .*\n.*2\^24"):
        fields.pack({"code": 2**24 + 1, "x": [0.5]})
    with pytest.raises(DataError, match="NaN"):
        fields.pack({"code": 1, "x": [float("nan")]})
    with pytest.raises(DataError, match="not exact in"):
        fields.unpack(torch.zeros(1, 2, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InputFields(()), "at least one input"),
        (lambda: InputFields((Field("a", ()), Field("a", ()))), "duplicate"),
        (lambda: InputFields((Field("", ()), Field("a", ()))), "no name"),
        (lambda: InputFields((Field("a", (2,), "int64"),), "mask"), "no input 'mask'"),
        (lambda: InputFields((Field("a", (2,), "float32"),), "a"), "padding is marked by integers"),
        (lambda: Field("a", (0,)), "no numbers"),
        (lambda: Field("a b", (1,)), "not the name of an argument"),
        (lambda: Field("a", (1,), "float16"), "the type is 'float16'"),
        (lambda: InputFields.from_json({"fields": [{"name": "a"}]}), "cannot be read"),
        (lambda: TOKENS.unpack(torch.zeros(2, 5, dtype=torch.int64)), "not B x"),
    ],
)
def test_a_wrong_description_is_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_probe_is_a_batch_that_the_fields_unpack():
    fields = InputFields((*TOKENS.fields, Field("image", (1, 2, 2), "uint8")), "attention_mask")
    batch = fields.probe(3, torch.Generator().manual_seed(1))
    found = fields.unpack(batch)
    assert found["attention_mask"].tolist() == [[1] * 4] * 3
    assert found["input_ids"].eq(0).all()
    assert 0 < found["image"].mean() < 1
    assert TOKENS.probe(2).dtype == torch.int64
    assert InputFields((Field("x", ()),)).probe(2).shape == (2, 1)


def make_records(features, **more):
    return Records("toy", ["a", "b", "c"], [0, 1, 1], ("no", "yes"), features, **more)


def test_records_of_integers_stay_integers_in_their_batches():
    features = np.arange(36, dtype=np.int64).reshape(3, 12) + 2**40  # not exact in float32
    records = make_records(features, fields=TOKENS)
    ((x, _),) = Batches(records, range(3), batch_size=3).in_order()
    assert x.dtype == torch.int64
    assert np.array_equal(x.numpy(), features)
    assert records.hash != make_records(features).hash
    with pytest.raises(DataError, match="its fields are int64"):
        make_records(features.astype(np.float32), fields=TOKENS)
    with pytest.raises(DataError, match="its fields are int64"):
        make_records(features[:, :5], fields=TOKENS)
    with pytest.raises(DataError, match="not float64"):
        make_records(features.astype(np.float64))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint16])
def test_integer_items_of_a_stream_become_int64(dtype):
    features, label = read_item([(np.asarray([3, 7], dtype=dtype), 1)], 0, "toy")
    assert (features.dtype, features.tolist(), label) == (np.int64, [3, 7], 1)
    assert read_item([(torch.tensor([3, 7], dtype=torch.int32), 1)], 0, "toy")[0].dtype == np.int64
    assert read_item([(np.asarray([True, False]), 1)], 0, "toy")[0].dtype == np.float32


def test_a_stream_whose_items_do_not_fit_its_fields_is_refused():
    stream = [(np.zeros(5, dtype=np.int64), label) for label in (0, 1, 1)]
    records = Records("toy", ["a", "b", "c"], [0, 1, 1], ("no", "yes"), stream=stream, fields=TOKENS)
    with pytest.raises(DataError, match=r"a record is int64 \(5,\)"):
        _ = records.input_shape
