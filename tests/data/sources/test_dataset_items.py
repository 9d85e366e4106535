"""Custom datasets: labels are those of the items, every item is checked, and an error names the item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from expunge.core.errors import DataError, Interrupted
from expunge.data import Batches, Records
from expunge.data.quality import check_items, find_cautions
from expunge.data.sources.python import wrap_dataset
from expunge.models.normalise import measure_normalisation


class Items:
    """A map-style dataset: `read` makes an item from its number."""

    def __init__(self, read: Callable[[int], Any], count: int = 40, **attributes: Any) -> None:
        self.read, self.count = read, count
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        return self.read(row)


def pair(row: int) -> tuple[torch.Tensor, int]:
    return torch.full((1, 4, 4), row / 64), row % 4


def load(read: Callable[[int], Any] = pair, **attributes: Any) -> Records:
    return wrap_dataset(Items(read, **attributes), "mine")


def read_all(records: Records) -> list[torch.Tensor]:
    return [x for x, _ in Batches(records, np.arange(len(records)), batch_size=7).in_order()]


MIXED = [row % 4 for row in range(40)]


@pytest.mark.parametrize("attribute", ["labels", "targets"])
@pytest.mark.parametrize(
    "make", [list, np.asarray, torch.tensor, lambda v: np.asarray(v, np.uint8), lambda v: torch.tensor(v)[:, None]]
)
def test_given_labels_that_agree(attribute: str, make: Callable[[list[int]], Any]) -> None:
    records = load(**{attribute: make(MIXED)})
    assert records.labels.tolist() == MIXED
    assert torch.equal(torch.cat(read_all(records)), torch.stack([pair(row)[0] for row in range(40)]))


@pytest.mark.parametrize("attribute", ["labels", "targets"])
@pytest.mark.parametrize(
    "change",
    [
        lambda label: 3 - label,  # a target_transform of torchvision
        lambda label: 0 if label == 2 else label,  # of one class only
        lambda label: label + 1,
        lambda label: int(label > 1),
    ],
)
def test_labels_that_a_transform_changes(attribute: str, change: Callable[[int], int]) -> None:
    with pytest.raises(DataError, match=f"the item has the label [0-4], but `{attribute}` has"):
        load(lambda row: (pair(row)[0], change(row % 4)), **{attribute: MIXED})


def test_one_wrong_label_is_found_when_its_item_is_read() -> None:
    records = load(lambda row: (pair(row)[0], 3 if row == 17 else row % 4), count=400, labels=MIXED * 10)
    with pytest.raises(DataError, match="mine: item-000017: the item has the label 3, but"):
        read_all(records)
    with pytest.raises(DataError, match="mine: item-000017: the item has the label 3, but"):
        check_items(records, np.arange(400))


@pytest.mark.parametrize(
    ("attributes", "match"),
    [
        ({"labels": [0.6] * 40}, "mine: labels: label 0 is 0.6, not an integer"),
        ({"targets": [1.0] * 39 + [1.5]}, "mine: targets: label 39 is 1.5, not an integer"),
        ({"targets": ["cat"] * 40}, "mine: targets: label 0 is cat"),
        ({"labels": np.eye(40, dtype=int)}, "mine: labels: labels are one-hot"),
        ({"classes": 4}, "`classes` is '4', not a list"),
        ({"classes": "abcd"}, "`classes` is 'abcd', not a list"),
        ({"classes": ["a", "b", "a", "c"]}, "classes 0 and 2 have the same name"),
        ({"record_ids": [None] * 40}, "record id of row 0"),
        ({"subject_ids": ["a"] * 39 + [""]}, "subject id of row 39"),
        ({"count": 0}, "there are no records"),
    ],
)
def test_attributes_that_are_refused(attributes: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        load(**attributes)


def test_huge_labels_do_not_make_huge_lists() -> None:
    for label in (300000, 2**32 - 1, -1):
        with pytest.raises(DataError, match=r"classes for 40 records|is not one of 0 to"):
            load(lambda row, label=label: (pair(row)[0], label))


X = torch.zeros(1, 4, 4)


@pytest.mark.parametrize("attributes", [{}, {"labels": MIXED}, {"targets": MIXED}], ids=["items", "labels", "targets"])
@pytest.mark.parametrize(
    ("read", "match"),
    [
        (lambda row: {"image": X, "label": row % 4}, "not a pair .* but a dict with the keys image, label"),
        (lambda row: X, "not a pair"),
        (lambda row: (X, row % 4, 1), "not a pair .* tuple of 3"),
        (lambda row: [X], "not a pair .* list of 1"),
        (lambda row: "ab", "not a pair .* str"),
        (lambda row: (X, 0.6), "label is 0.6, not an integer"),
        (lambda row: (X, "1"), "label is '1', not an integer"),
        (lambda row: (X, torch.eye(4)[row % 4]), "label is one-hot"),
        (lambda row: (X, torch.eye(4, dtype=torch.int64)[row % 4]), "label is one-hot"),
        (lambda row: (X, None), "label is None, not an integer"),
        (lambda row: (X.tolist(), row % 4), "features are a tensor or an array, not list"),
        (lambda row: (np.asarray(["a"]), row % 4), "not numbers"),
        (lambda row: (torch.tensor(1.0), row % 4), "no axis or no numbers"),
    ],
)
def test_items_of_another_kind(read: Callable[[int], Any], match: str, attributes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"mine: item 0: .*{match}"):
        load(read, **attributes)


@pytest.mark.parametrize("error", [OSError("broken JPEG"), ValueError("bad"), KeyError("x"), SystemExit(3), OSError()])
def test_an_error_of_the_dataset_names_the_item(error: BaseException) -> None:
    def read(row: int) -> Any:
        if row == 23:
            raise error
        return pair(row)

    with pytest.raises(DataError, match=f"item 23: the dataset cannot read item 23 .{type(error).__name__}"):
        load(read)
    records = load(read, count=400, labels=MIXED * 10)
    for act in (read_all, lambda records: check_items(records, np.arange(400))):
        with pytest.raises(DataError, match=f"mine: item-000023: .*{type(error).__name__}"):
            act(records)


def test_an_interruption_is_not_an_error_of_the_dataset() -> None:
    def read(row: int) -> Any:
        raise stop

    for stop in (KeyboardInterrupt(), Interrupted("stopped")):
        with pytest.raises(type(stop)):
            load(read)


@pytest.mark.parametrize(
    ("shape", "dtype", "match"),
    [
        ((1, 4, 5), torch.float32, r"has the shape \(1, 4, 5\); the first record has \(1, 4, 4\)"),
        ((4, 4), torch.float32, "has the shape"),
        ((1, 4, 4), torch.uint8, "is uint8; the first record is float32"),
    ],
)
def test_images_of_another_size_or_type(shape: tuple[int, ...], dtype: torch.dtype, match: str) -> None:
    records = load(lambda row: (torch.zeros(shape, dtype=dtype), 3) if row == 31 else pair(row))
    for act in (read_all, lambda records: check_items(records, np.arange(40))):
        with pytest.raises(DataError, match=f"mine: item-000031: {match}"):
            act(records)


def test_every_type_of_array_becomes_the_same_batch() -> None:
    base = np.arange(40 * 16).reshape(40, 1, 4, 4) % 200
    expected = torch.tensor(base, dtype=torch.float32)
    makers: list[Callable[[int], Any]] = [
        lambda row: base[row],
        lambda row: base[row].astype(">f8"),
        lambda row: base[row].astype(np.uint16),
        lambda row: np.flip(np.flip(base[row], 2).copy(), 2),
        lambda row: torch.tensor(base[row], dtype=torch.bfloat16).to(torch.int64),
        lambda row: torch.tensor(base[row], dtype=torch.float64, requires_grad=True),
    ]
    for make in makers:
        assert torch.equal(torch.cat(read_all(load(lambda row, make=make: (make(row), row % 4)))), expected)
    small = torch.tensor(base % 100, dtype=torch.bfloat16)
    assert torch.equal(torch.cat(read_all(load(lambda row: (small[row], row % 4)))), small.float())
    pixels = load(lambda row: (base[row].astype(np.uint8), row % 4))
    assert torch.equal(torch.cat(read_all(pixels)), expected / 255)


def test_pil_images_are_recognised_and_channels_last_arrays_are_named() -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 5, 6, 3), dtype=np.uint8)
    colour = load(lambda row: (Image.fromarray(pixels[row]), row % 4))
    assert colour.input_shape == (3, 5, 6)
    expected = torch.tensor(pixels.transpose(0, 3, 1, 2)) / 255
    assert torch.equal(torch.cat(read_all(colour)), expected)
    stored = Records("s", colour.record_ids, colour.labels, colour.class_names, pixels.transpose(0, 3, 1, 2).copy())
    assert measure_normalisation(colour, colour.record_ids) == measure_normalisation(stored, stored.record_ids)
    grey = load(lambda row: (Image.fromarray(pixels[row, :, :, 0]), row % 4))
    assert grey.input_shape == (1, 5, 6)
    assert find_cautions(colour) == find_cautions(grey) == ()
    with pytest.raises(DataError, match="mode 'RGBA'"):
        load(lambda row: (Image.fromarray(pixels[row]).convert("RGBA"), row % 4))
    arrays = load(lambda row: (pixels[row], row % 4))
    assert "5 channels of 6 x 3" in find_cautions(arrays)[0].message
