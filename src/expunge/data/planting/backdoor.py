"""Backdoors: a patch on training images that have the label of a target class (BadNets, [Gu2017]_).

.. [Gu2017] Gu, Dolan-Gavitt, Garg: BadNets, arXiv 1708.06733.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import RequestError, unknown_name_hint
from expunge.core.split import Planting, Split
from expunge.data.records import Records
from expunge.data.requests import IdsOrFile, as_integer, as_number

from .draw import describe_draw, draw_bases, name_planted
from .plant import add_planted

#: Pixels between the patch and the edges of the image, in the released code of [Jia2023].
MARGIN = 2


@dataclasses.dataclass(frozen=True)
class Trigger:
    """A square patch of one value in every channel of an image.

    Attributes:
        row, column: of its upper left pixel, from 0.
        size: pixels of a side.
        fill: value of its pixels, in the units of the features (255 is white in uint8 images).
        target: the class that the poisoned records are labelled with.

    Example:
        >>> trigger = Trigger(row=1, column=2, size=1, fill=9, target=0)
        >>> trigger.apply(np.zeros((1, 1, 2, 3), dtype=np.uint8))[0, 0].tolist()
        [[0, 0, 0], [0, 0, 9]]
    """

    row: int
    column: int
    size: int
    fill: float
    target: int

    def apply(self, features: NDArray[Any]) -> NDArray[Any]:
        """Copy images, `N x C x H x W`, and put the patch on them."""
        patched = features.copy()
        patched[:, :, self.row : self.row + self.size, self.column : self.column + self.size] = self.fill
        return patched


def find_trigger(records: Records) -> Trigger | None:
    """The trigger of records with a planted backdoor; None without one.

    Args:
        records: any records.
    """
    if records.planted is None or "patch" not in records.planted.options:
        return None
    options = records.planted.options
    return Trigger(**options["patch"], target=int(options["target"]["index"]))


def plant_backdoor(
    records: Records,
    split: Split,
    *,
    target: str | int = 0,
    fraction: float | None = None,
    count: int | None = None,
    size: int = 4,
    row: int | None = None,
    column: int | None = None,
    fill: float | None = None,
    seed: int = 0,
    hold: IdsOrFile = (),
) -> Records:
    """Poison training images: a square patch, and the label of the target class; they replace the clean ones.

    They are drawn from all training records, so that some may have the target class already, as in [Jia2023].

    Args:
        records: images in memory, `C x H x W`.
        split: their split; its retain set is drawn from.
        target: the name (string) or index (integer) of the target class.
        fraction: fraction of the training records; give either `fraction` or `count`.
        count: number of records; 0 only records the trigger, to measure a clean model.
        size: pixels of a side of the patch.
        row: of its upper left pixel; a negative one counts from the end. Default: 2 pixels from the lower edge, if the
            patch leaves so many.
        column: the same, from the right edge.
        fill: value of its pixels; default: white, which is 255 in uint8 images, and the largest value of other records.
        seed: seed of the draw.
        hold: ids that are not poisoned, or the path of a file of them.

    Returns:
        The records with the poisoned ones, of the ids `ID~backdoor`, after them.

    Raises:
        RequestError: the records are no images, there is no such class, the patch does not fit or would change no
            image, or there are too few records.

    Example:
        >>> import expunge
        >>> from expunge.data import plant_backdoor
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> planted = plant_backdoor(records, split, target="7", count=2, size=1, row=0, column=0)
        >>> set(planted.labels[-2:].tolist()), planted.features[-2:, 0, 0, 0].tolist()
        ({7}, [1.0, 1.0])
        >>> expunge.make_split(planted, seed=0).counts() == split.counts()
        True
    """
    trigger = _make_trigger(records, target, size, row, column, fill)
    bases = draw_bases(records, split, fraction=fraction, count=count, seed=seed, purpose="backdoor", hold=hold)
    ids = name_planted(records, bases, "backdoor")
    options = {
        "by": "backdoor",
        **describe_draw(fraction, count, seed),
        "target": {"index": trigger.target, "name": records.class_names[trigger.target]},
        "patch": {"row": trigger.row, "column": trigger.column, "size": trigger.size, "fill": trigger.fill},
    }
    planting = Planting(options, ids, bases, ids, replaces=True)
    assert records.features is not None
    before = records.features[records.rows(bases)]
    features = trigger.apply(before)
    if len(bases) and np.array_equal(features, before):
        raise RequestError(
            f"the patch of value {trigger.fill:g} changes no pixel of the {len(bases)} images", where="fill",
            hint="choose another fill or place: on a white ground a white patch is invisible",
        )  # fmt: skip
    labels = np.full(len(bases), trigger.target, dtype=np.int64)
    return add_planted(records, planting, labels=labels, features=features)


def _make_trigger(
    records: Records, target: str | int, size: int, row: int | None, column: int | None, fill: float | None
) -> Trigger:
    """The trigger for these records, with all defaults."""
    if records.features is None:
        raise RequestError(
            "a patch needs images in memory; these records are streamed", where=records.name,
            hint="use a source that reads the images into memory",
        )  # fmt: skip
    if len(records.input_shape) != 3:
        shape = " x ".join(map(str, records.input_shape))
        raise RequestError(
            f"a patch needs images; these records have the shape {shape}", where=records.name,
            hint="canaries (by: canaries) can be planted in any records",
        )  # fmt: skip
    size = as_integer(size, "size")
    places = []
    for name, given, length in zip(("row", "column"), (row, column), records.input_shape[1:], strict=True):
        place = max(0, length - size - MARGIN) if given is None else as_integer(given, name)
        place = place + length if place < 0 and given is not None else place
        if size < 1 or not 0 <= place <= length - size:
            raise RequestError(
                f"a patch of {size} x {size} pixels at {name} {place if given is None else given} is not inside an "
                f"image of {records.input_shape[1]} x {records.input_shape[2]}",
                where="size" if given is None else name,
                hint=f"sides of 1 to {min(records.input_shape[1:])} pixels fit; a negative place counts from the end",
            )
        places.append(place)
    features = records.features
    is_uint8 = features.dtype == np.uint8
    fill = (255 if is_uint8 else float(features.max())) if fill is None else as_number(fill, "fill")
    if abs(fill) > float(np.finfo(np.float32).max):
        raise RequestError(f"the value of the patch, {fill:g}, is no float32 number", where="fill")
    if is_uint8 and (fill != int(fill) or not 0 <= fill <= 255):
        raise RequestError(f"a pixel of a uint8 image is an integer from 0 to 255, not {fill:g}", where="fill")
    return Trigger(places[0], places[1], size, fill, find_class(records, target))


def find_class(records: Records, target: str | int) -> int:
    """The index of a class that is named (a string), or given by its index (an integer).

    Raises:
        RequestError: there is no such class.
    """
    if isinstance(target, str):
        if target not in records.class_names:
            hint = unknown_name_hint(target, records.class_names)
            raise RequestError(f"{records.name} has no class {target!r}", where="target", hint=hint)
        return records.class_names.index(target)
    index = as_integer(target, "target")
    if not 0 <= index < records.classes:
        hint = f"classes are numbered from 0 to {records.classes - 1}"
        raise RequestError(f"{records.name} has no class {index}", where="target", hint=hint)
    return index
