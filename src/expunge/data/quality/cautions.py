"""Cautions about records: what is used as it is, and may not be what the user means."""

from __future__ import annotations

import contextlib
import random
import sys
import unicodedata

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ExpungeError, join_names
from expunge.core.seeds import global_rng
from expunge.data.items import read_item
from expunge.data.records import Caution, Records

#: Spellings of a missing value that became a name: of numpy and pandas, of spreadsheets, and of data sets.
_MISSING = ("nan", "na", "n/a", "#n/a", "null", "none", "nat", "<na>", "?", "-")
#: The largest number of colour channels of an image, with or without transparency.
_COLOURS = 4
_SHOWN = 10


def find_cautions(records: Records) -> tuple[Caution, ...]:
    """List what may be wrong with records although they can be used: for `check`, the notes of scores, and reports.

    Args:
        records: any records; of a stream, the first item is read.

    Example:
        >>> records = Records("toy", ["a", "b"], [0, 2], ("0", "1", "2"), np.zeros((2, 4), dtype=np.float32))
        >>> [caution.message for caution in find_cautions(records)]
        ['1 of 3 classes has no record: 1']
    """
    found = [
        *records.cautions,
        *_find_empty_classes(records),
        *_find_similar_names(records),
        *_find_missing_values(records),
        *_find_layout(records),
        *_find_scale(records),
        *find_random_items(records),
    ]
    return tuple(dict.fromkeys(found))


def find_random_items(records: Records) -> list[Caution]:
    """Whether a stream gives other features when it is read again: its dataset augments them by itself.

    Args:
        records: any records; of a stream, two items are read twice.
    """
    if records.stream is None:
        return []
    for row in sorted({0, len(records) - 1}):
        first, second = (_read_seeded(records, row, seed) for seed in (1, 2))
        if first is None or second is None or (first.shape == second.shape and np.array_equal(first, second)):
            continue
        return [
            Caution(
                "the items of the dataset differ from reading to reading: it augments them itself",
                "scores are then measured on augmented inputs: give a dataset without random transforms, and the "
                "augmentation in the recipe (augment)",
            )
        ]
    return []


def _read_seeded(records: Records, row: int, seed: int) -> NDArray[np.generic] | None:
    """The features of an item with seeded generators of torch, numpy and Python; None: it cannot be read."""
    assert records.stream is not None
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (the dataset may use it)
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        with global_rng(seed, "items") if "torch" in sys.modules else contextlib.nullcontext():
            return np.array(read_item(records.stream, row, records.name)[0])
    except ExpungeError:
        return None
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _find_empty_classes(records: Records) -> list[Caution]:
    counts = np.bincount(records.labels, minlength=records.classes)
    empty = [records.class_names[index] for index in np.flatnonzero(counts == 0)]
    if not empty:
        return []
    verb = "has" if len(empty) == 1 else "have"
    more = f" and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else ""
    hint = "number the classes from 0 without gaps, or remove the class; the model gets an output for each class"
    if counts[0] == 0 and len(empty) == 1:
        hint = f"do the labels start from 1? {hint}"
    return [
        Caution(f"{len(empty)} of {records.classes} classes {verb} no record: {join_names(empty[:_SHOWN])}{more}", hint)
    ]


def _fold(name: str) -> str:
    """The name without what is easily overlooked: case, blanks, composition of letters, zeros before a number."""
    folded = "".join(unicodedata.normalize("NFKC", name).casefold().split())
    return (folded.lstrip("0") or "0").removesuffix(".0") if folded.replace(".", "", 1).isdecimal() else folded


def _find_similar_names(records: Records) -> list[Caution]:
    found = []
    groups: dict[str, list[str]] = {}
    for name in records.class_names:
        groups.setdefault(_fold(name), []).append(name)
    for names in groups.values():
        if len(names) > 1:
            text = (
                f"the names of {len(names)} classes are nearly the same: {join_names(list(map(repr, names[:_SHOWN])))}"
            )
            found.append(Caution(text, "if they are one class, give it one name"))
    for what, ids in (("record id", records.record_ids), ("subject id", records.subject_ids)):
        if ids is None:
            continue
        blanks = int((np.char.strip(ids) != ids).sum())
        if blanks:
            text = f"{blanks} {what}{'s' * (blanks > 1)} begin or end with a blank"
            found.append(
                Caution(text, "files of ids are read without such blanks, so these records cannot be named there")
            )
    return found


def _find_missing_values(records: Records) -> list[Caution]:
    found = []
    names = [name for name in records.class_names if name.strip().casefold() in _MISSING]
    if names:
        text = f"the class {names[0]!r} looks like a missing label ({len(names)} of {records.classes} classes)"
        found.append(Caution(text, "drop these records if their class is unknown"))
    for what, ids in (("record id", records.record_ids), ("subject id", records.subject_ids)):
        if ids is None:
            continue
        rows = np.isin(np.char.lower(np.char.strip(ids)), _MISSING)
        if rows.any():
            text = f"{int(rows.sum())} records have the {what} {str(ids[rows][0])!r}, which looks like a missing value"
            found.append(Caution(text, "they count as one subject" if what == "subject id" else ""))
    return found


def _find_layout(records: Records) -> list[Caution]:
    shape = records.input_shape
    if len(shape) == 3:
        channels, middle, last = shape
        if last <= _COLOURS and (channels > _COLOURS or (channels == middle and last < channels)):
            text = (
                f"records of shape {shape} are used as {channels} channels of {middle} x {last} numbers, "
                f"and look like images of {channels} x {middle} pixels with {last} channel{'s' * (last > 1)}"
            )
            return [
                Caution(text, "images are C x H x W: the option layout=nhwc of `npz`, or a transpose, moves the axis")
            ]
    is_uint8 = records.features is not None and records.features.dtype == np.uint8
    if len(shape) == 3 and shape[1] <= _COLOURS < min(shape[0], shape[2]):
        text = f"records of shape {shape} are used as {shape[0]} channels, and may be images with their axes exchanged"
        return [Caution(text, "images are C x H x W: the option layout of `npz` says what the file has")]
    if len(shape) == 2 and min(shape) > _COLOURS and (is_uint8 or shape[0] == shape[1]):
        text = (
            f"records of shape {shape} are used as {shape[0]} channels of {shape[1]} steps, and look like grey images"
        )
        return [
            Caution(text, "images are C x H x W: the option layout=nhw of `npz`, or a further axis, adds the channel")
        ]
    return []


def _find_scale(records: Records) -> list[Caution]:
    features = records.features
    if features is None or features.size == 0:
        return []
    if features.dtype != np.uint8:
        return _find_pixels(features)
    if int(features.max()) > 1:
        return []
    text = f"the largest of the uint8 features is {int(features.max())}; uint8 means images of 0..255, divided by 255"
    return [Caution(text, "store zeros and ones, counts and codes as float32")]


def _find_pixels(features: NDArray[np.float32]) -> list[Caution]:
    """Images whose numbers are whole and reach beyond 1, judged by some records."""
    if features.ndim != 4 or min(features.shape[1], features.shape[3]) > _COLOURS:
        return []
    some = features[:: max(1, len(features) // 100)]
    least, most = float(some.min()), float(some.max())
    if least < 0 or most <= 1 or most > 65535 or not bool((some == np.floor(some)).all()):
        return []
    text = f"the images are {features.dtype} with integers up to {most:g}: they are not divided by 255"
    return [Caution(text, "store images of 0..255 as uint8, or divide them")]
