"""`Records.from_dataset`: rows, labels and features are those of the object; what is unclear is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from expunge.core.errors import ConfigError, DataError
from expunge.data import Batches, Records, find_cautions, load_records

X = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
Y = np.arange(20) % 3
NAMES = np.asarray(["cat", "dog", "eel"])


class Pairs(Dataset[Any]):
    """Images with integer labels, as torchvision's datasets have them."""

    classes = ("cat", "dog", "eel")

    def __init__(self, count: int = 20, mode: str = "RGB") -> None:
        self.count, self.mode, self.targets = count, mode, [i % 3 for i in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        pixels = np.random.default_rng(row).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        return Image.fromarray(pixels).convert(self.mode), self.targets[row]


class Named(Pairs):
    """Items as mappings, as Hugging Face trainers take them."""

    def __getitem__(self, row: int) -> Any:
        return {"pixel_values": torch.full((3, 4, 4), float(row)), "labels": row % 3, "source": f"file{row}"}


def test_arrays_and_tensors() -> None:
    tensors = torch.from_numpy(X), torch.from_numpy(Y)
    for data in ((X, Y), tensors, TensorDataset(*tensors)):
        records = Records.from_dataset(data)
        np.testing.assert_array_equal(records.features, X)
        assert records.labels.tolist() == Y.tolist()
        assert records.record_ids[:2].tolist() == ["row-000000", "row-000001"]
    named = Records.from_dataset((X.astype(np.float64), NAMES[Y]))
    assert named.class_names == ("cat", "dog", "eel")
    assert named.hash == Records.from_dataset((X, Y), classes=NAMES.tolist()).hash
    turned = Records.from_dataset((X, NAMES[Y]), classes=["eel", "dog", "cat"])
    assert turned.labels.tolist() == (2 - Y).tolist()
    assert Records.from_dataset((np.zeros((20, 3, 4, 4), np.uint8), Y)).features.dtype == np.uint8
    assert Records.from_dataset((np.zeros((20, 4), np.int32), Y)).features.dtype == np.int64
    ids, subjects = [f"p{i}" for i in range(20)], ["s"] * 20
    given = Records.from_dataset((X, Y), ids=ids, subjects=subjects, name="mine")
    assert (given.name, given.record_ids.tolist(), given.subject_ids.tolist()) == ("mine", ids, subjects)


def test_several_tensors_need_names() -> None:
    parts = torch.arange(40).reshape(20, 2), torch.ones(20, 2, dtype=torch.int64), torch.from_numpy(Y)
    with pytest.raises(ConfigError, match="the inputs need names"):
        Records.from_dataset(TensorDataset(*parts))
    records = Records.from_dataset(TensorDataset(*parts), features=["input_ids", "attention_mask"])
    assert records.fields is not None
    assert records.fields.names == ("input_ids", "attention_mask")
    np.testing.assert_array_equal(records.features, torch.cat(parts[:2], 1).numpy())


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pairs_are_streamed_as_they_are(mode: str) -> None:
    data = Pairs(mode=mode)
    records = Records.from_dataset(data)
    assert records.features is None
    assert records.class_names == ("cat", "dog", "eel")
    assert records.labels.tolist() == data.targets
    for row in range(20):
        array = np.asarray(data[row][0])
        np.testing.assert_array_equal(
            records.read_features(row), array[None] if mode == "L" else array.transpose(2, 0, 1)
        )
    some = Records.from_dataset(Subset(data, [4, 2, 9]))
    assert some.labels.tolist() == [1, 2, 0]
    assert Records.from_dataset(Subset(data, [0, 3])).class_names == ("cat", "dog", "eel")
    np.testing.assert_array_equal(some.read_features(1), records.read_features(2))
    given = Records.from_dataset(data, label=NAMES[::-1][data.targets])
    assert given.labels.tolist() == [2 - t for t in data.targets]
    np.testing.assert_array_equal(given.read_features(3), records.read_features(3))


def test_mappings_are_packed_by_name() -> None:
    data = Named()
    records = Records.from_dataset(data)
    assert records.fields is not None
    assert records.fields.names == ("pixel_values",)
    assert records.labels.tolist() == data.targets
    (caution,) = (c for c in find_cautions(records) if "not used" in c.message)
    assert "source" in caution.message
    x, y = next(iter(Batches(records, [5, 7], batch_size=2, workers=1).in_order()))
    assert torch.equal(x, torch.stack([data[5]["pixel_values"], data[7]["pixel_values"]]))
    assert y.tolist() == [2, 1]
    apart = Records.from_dataset(data, label=NAMES[::-1][data.targets])
    assert apart.labels.tolist() == [2 - t for t in data.targets]
    np.testing.assert_array_equal(apart.read_features(4), records.read_features(4))
    by_source = Records.from_dataset(data, ids="source")
    assert by_source.record_ids[3] == "file3"


def test_a_mapping_with_one_image() -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict(
        {"image": [Pairs()[i][0] for i in range(6)], "label": [0, 1, 2, 0, 1, 2]},
        features=datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES.tolist())),
    )
    records = Records.from_dataset(data)
    assert records.fields is None
    assert records.class_names == ("cat", "dog", "eel")
    np.testing.assert_array_equal(records.read_features(4), np.asarray(Pairs()[4][0]).transpose(2, 0, 1))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames(library: str) -> None:
    frames = pytest.importorskip(library)
    columns = {
        "a": X[:, 0].tolist(), "b": list(range(20)), "ward": NAMES[Y].tolist(), "who": [f"s{i % 4}" for i in range(20)],
        "late": [i % 2 == 0 for i in range(20)], "label": NAMES[Y].tolist(),
    }  # fmt: skip
    frame = frames.DataFrame(columns)
    with pytest.raises(
        ConfigError, match=r"'ward' is a column of strings: it is not clear whether it is a feature(.|\n)*tokenizer="
    ):
        Records.from_dataset(frame, subjects="who")
    records = Records.from_dataset(frame, features=["a", "b"], subjects="who")
    np.testing.assert_array_equal(records.features[:, 0], X[:, 0])
    np.testing.assert_array_equal(records.features[:, 1], np.arange(20))
    assert records.class_names == ("cat", "dog", "eel")
    assert records.subject_ids.tolist() == columns["who"]
    assert records.columns["ward"].tolist() == columns["ward"]
    assert records.columns["late"].tolist() == columns["late"]
    hot = Records.from_dataset(frame, features=["ward"], ids=[f"r{i}" for i in range(20)])
    np.testing.assert_array_equal(hot.features, np.eye(3)[Y])
    unused = Records.from_dataset((frame.drop(["ward", "who"], axis=1) if library == "pandas"
                                   else frame.drop("ward", "who"), Y))  # fmt: skip
    assert unused.input_shape == (3,)  # the column `label` is no feature, although the labels are given apart
    apart = Records.from_dataset((frame.drop(["ward", "who", "label"], axis=1) if library == "pandas"
                                  else frame.drop("ward", "who", "label"), Y))  # fmt: skip
    assert apart.labels.tolist() == Y.tolist()
    assert apart.input_shape == (3,)
    with pytest.raises(ConfigError, match="no column 'lable'"):
        Records.from_dataset(frame, label="lable")


def test_null_labels_and_unequal_columns() -> None:
    frames = pytest.importorskip("pandas")
    with pytest.raises(DataError, match="'label' is missing in row 1"):
        Records.from_dataset(frames.DataFrame({"a": [1.0, 2.0], "label": ["x", None]}))
    with pytest.raises(DataError, match="'label' is missing in row 1"):  # pandas makes it a column of floats
        Records.from_dataset(frames.DataFrame({"a": [1.0, 2.0], "label": [1, None]}))
    with pytest.raises(DataError, match="the label 'label' is double"):
        Records.from_dataset(frames.DataFrame({"a": [1.0, 2.0], "label": [1.5, 2.0]}))
    with pytest.raises(DataError, match="'a' is missing in row 0"):
        Records.from_dataset(frames.DataFrame({"a": [None, 2.0], "label": ["x", "y"]}))
    with pytest.raises(DataError, match="several types"):
        Records.from_dataset(frames.DataFrame({"a": [object(), 2.0], "label": ["x", "y"]}))
    with pytest.raises(DataError, match="arrays of different lengths"):
        Records.from_dataset((X, Y[:19]))
    with pytest.raises(DataError, match="'b' has 2 rows, and there are 3 labels"):
        Records.from_dataset({"b": [[1], [2]], "labels": [0, 1, 0]})
    with pytest.raises(DataError, match="19 labels for 20"):
        Records.from_dataset(Pairs(), label=Y[:19])
    with pytest.raises(DataError, match="the label of row 1 is missing"):
        Records.from_dataset((X[:2], ["x", None]))
    with pytest.raises(DataError, match="not an integer"):
        Records.from_dataset((X[:2], [0.5, 1.0]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("data.csv", "files are read by expunge.load_records"),
        (Path("data.csv"), "files are read by expunge.load_records"),
        (3, "cannot be made from an int"),
        (X, "cannot be made from an ndarray"),
        (torch.utils.data.DataLoader([(X, 0)]), "DataLoader(.|\n)*loader.dataset"),
        (iter([(X, 0)]), "cannot be made from a"),
        ([], "there are no records"),
        ([{"a": "x", "label": 0}], "no value of an item is an input"),
        ([{"a": [1.0]}], "has no 'labels' or 'label'"),
        ([(X[0], 0), (X[1], "dog")], "not an integer"),
        ([({"a": [1]}, 0), ({"b": [1]}, 0)], "item 1 is not like the first"),
        ((X.astype(str), Y), "not numbers"),
        ((X[:, 0], Y), "not N x"),
    ],
)  # fmt: skip
def test_what_is_not_a_dataset(data: Any, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        Records.from_dataset(data)


def test_an_item_that_fails_is_named() -> None:
    class Failing(Pairs):
        def __getitem__(self, row: int) -> Any:
            if row == 0:
                raise RuntimeError("the disk is gone")
            return super().__getitem__(row)

    with pytest.raises(DataError, match=r"cannot read item 0.*the disk is gone"):
        Records.from_dataset(Failing())


def _make_saved(folder: Path, images: list[Any]) -> Any:
    """A saved Hugging Face dataset of images and numbers, in another order than it is stored in."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(),
        first=datasets.Sequence(datasets.Value("float32"), 3),
        second=datasets.Sequence(datasets.Value("float32"), 2),
        label=datasets.ClassLabel(names=["a", "b"]),
    )
    generator = np.random.default_rng(0)
    columns = {
        "first": generator.random((len(images), 3)).tolist(),
        "second": generator.random((len(images), 2)).tolist(),
    }
    labels = [row % 2 for row in range(len(images))]
    datasets.Dataset.from_dict({"image": images, "label": labels, **columns}, features).save_to_disk(folder)
    return datasets.load_from_disk(str(folder)).select(range(len(images) - 1, -1, -1))


def _draw_image(seed: int, size: tuple[int, int] = (6, 5)) -> Any:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("style", [None, "torch", "numpy"])
@pytest.mark.parametrize("names", [("image",), ("first", "second"), ("second",)])
def test_a_hugging_face_dataset_is_read_in_batches_of_the_same_bytes(tmp_path, style, names):
    data = _make_saved(tmp_path / "saved", [_draw_image(seed) for seed in range(10)]).with_format(style)
    records = Records.from_dataset(data, features=names, name="saved")
    rows = np.array([7, 2, 2, 9])
    single = np.stack([records.read_features(row) for row in rows])
    calls = []
    original = type(data).__getitem__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(data), "__getitem__", lambda self, key: (calls.append(key), original(self, key))[1])
        batch = records.read_batch(rows)
    assert calls == [rows.tolist()]
    assert (batch.dtype, batch.shape) == (single.dtype, single.shape)
    assert batch.tobytes() == single.tobytes()


def test_a_transform_is_applied_to_items(tmp_path):
    """A transform that depends on its batch or draws would give other records in batches."""

    def transform(batch):
        count = len(batch["label"])
        noise = torch.rand(count, 3) + count
        return {"x": [*noise], "label": batch["label"]}

    data = _make_saved(tmp_path / "saved", [_draw_image(seed) for seed in range(6)]).with_transform(transform)
    records = Records.from_dataset(data, label="label", name="saved")
    x, _ = next(Batches(records, np.arange(6), batch_size=6).epoch(0, 0))
    one, _ = next(Batches(records, np.arange(6), batch_size=1).epoch(0, 0))
    assert x.max() < 2
    assert torch.equal(x[:1], one)


def test_a_damaged_image_in_a_batch_is_named(tmp_path):
    buffer = io.BytesIO()
    _draw_image(1).save(buffer, "PNG")
    whole = {"bytes": buffer.getvalue(), "path": None}
    damaged = {"bytes": buffer.getvalue()[:60], "path": None}
    records = Records.from_dataset(
        _make_saved(tmp_path / "a", [whole, damaged, whole, whole]), features="image", name="d"
    )
    with pytest.raises(DataError, match="cannot read item 2"):
        records.read_batch(np.arange(4))
    sizes = [_draw_image(0), _draw_image(1, (4, 4)), _draw_image(2), _draw_image(3)]
    records = Records.from_dataset(_make_saved(tmp_path / "b", sizes), features="image", name="sizes")
    with pytest.raises(DataError, match=r"row-000002: has the shape \(3, 4, 4\); the first record has \(3, 6, 5\)"):
        records.read_batch(np.arange(4))


def test_images_of_a_saved_dataset_have_no_role_in_a_table(tmp_path):
    _make_saved(tmp_path / "saved", [_draw_image(seed) for seed in range(4)])
    with pytest.raises(DataError, match=r"'image' is struct(.|\n)*the source folder; or read the dataset in Python"):
        load_records(
            "hf-dataset", data_dir=tmp_path, path="saved", label="label", numeric=["image"], ignore=["first", "second"]
        )
