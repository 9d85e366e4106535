"""Look-alikes: near copies of forgotten records that stay in training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, RequestError, unknown_name_hint
from expunge.core.reading.limits import LOOK_ALIKES
from expunge.core.seeds import derive, mix, numpy_generator
from expunge.core.split import Ids, Planting, Split
from expunge.data.forget_set import forget_random
from expunge.data.quality.copies import measure_usual_distance
from expunge.data.records import Records
from expunge.data.requests import IdsOrFile, as_integer, as_number

from .draw import describe_draw, name_planted
from .plant import CHANGES, add_planted

#: A copy at a larger distance, in units of the usual one, looks like no record.
MOST_DISTANCE = 100


def plant_look_alikes(
    records: Records,
    split: Split,
    *,
    copies: int = 1,
    change: str = "noise",
    distance: float = 0.1,
    pixels: int = 1,
    fraction: float | None = None,
    count: int | None = None,
    seed: int = 0,
    hold: IdsOrFile = (),
) -> Records:
    """Draw records to forget, and plant near copies of each, which stay in the retain set.

    The records to forget are those of `forget_random` with the same seed, however many copies there are. A copy has
    the label, the subject and the columns of its base.

    Args:
        records: the records, in memory.
        split: their split; its retain set is drawn from.
        copies: near copies of each; 0 is the control without look-alikes.
        change: `noise`, Gaussian noise at the distance `distance`; or `shift`, images moved by up to `pixels`.
        distance: of a copy from its base, as a fraction of the usual distance of a training record to the nearest other
            one (see `expunge.data.quality`, which calls 0.2 and less a near copy). Integers are rounded afterwards, and
            clipped to 0..255.
        pixels: the largest shift along each axis; no two copies of a record are shifted equally. The edge is repeated.
        fraction: fraction of the training records to forget; give either `fraction` or `count`.
        count: number of records to forget.
        seed: seed of the draw of records, noise and shifts.
        hold: ids that are not forgotten, or the path of a file of them.

    Returns:
        The records with the copies, of the ids `ID~look-alike-1`, ..., after them.

    Raises:
        RequestError: there are too few records; the records are streamed, or are no images to shift; there are fewer
            different shifts than copies; a copy would equal its base.
        ConfigError: the change is unknown.

    Example:
        >>> import expunge
        >>> from expunge.data import plant_look_alikes
        >>> records = expunge.load_records("digits")
        >>> planted = plant_look_alikes(records, expunge.make_split(records, seed=0), copies=2, count=5)
        >>> len(planted) - len(records), len(planted.planted.forget)
        (10, 5)
    """
    if change not in CHANGES:
        raise ConfigError(f"unknown change {change!r}", where="change", hint=unknown_name_hint(change, CHANGES))
    copies = as_integer(copies, "copies")
    if not 0 <= copies <= LOOK_ALIKES:
        raise RequestError(f"{copies} copies of each record", where="copies", hint=f"0 to {LOOK_ALIKES:,}")
    if records.features is None:
        raise RequestError(
            "near copies need records in memory; these are streamed", where=records.name,
            hint="use a source that reads the records into memory",
        )  # fmt: skip
    forget = forget_random(records, split, fraction=fraction, count=count, seed=seed, hold=hold).record_ids
    how = {"change": change, **({"distance": distance} if change == "noise" else {"pixels": pixels})}
    options = {"by": "look-alikes", **describe_draw(fraction, count, seed), "copies": copies, **how}
    before = records.features[records.rows(forget)]
    if change == "noise":
        made = _make_noise(records, split, forget, before, copies, as_number(distance, "distance"), seed)
    else:
        made = _make_shifts(records, forget, before, copies, as_integer(pixels, "pixels"), seed)
    for part in made:
        same = (part == before).reshape(len(forget), -1).all(axis=1)
        if same.any():
            raise RequestError(
                "a near copy would equal the record", where=str(forget[same][0]),
                hint="raise the distance; an image of one value cannot be shifted",
            )  # fmt: skip
    ids = [name_planted(records, forget, f"look-alike-{number}") for number in range(1, copies + 1)]
    planting = Planting(
        options, np.concatenate([forget[:0], *ids]), np.concatenate([forget[:0], *[forget] * copies]), forget,
        replaces=False,
    )  # fmt: skip
    return add_planted(records, planting, features=np.concatenate([before[:0], *made]))


def _make_noise(
    records: Records, split: Split, forget: Ids, before: NDArray[Any], copies: int, distance: float, seed: int
) -> list[NDArray[Any]]:
    """Near copies at a distance: noise of a random direction, in units of the standard deviation of each channel."""
    if not copies:
        return []
    if not 0 < distance <= MOST_DISTANCE:
        raise RequestError(
            f"the distance of a near copy is {distance:g}, not above 0 and at most {MOST_DISTANCE}", where="distance",
            hint="up to 0.2 is a near copy; at 1 it is as far as the nearest other record usually is",
        )  # fmt: skip
    usual, scale = measure_usual_distance(records, records.rows(split.retain))
    if usual == 0:
        raise RequestError(
            "most training records have an exact copy: there is no usual distance", where=records.name,
            hint="use change: shift, or remove the copies from the data",
        )  # fmt: skip
    made = []
    for number in range(1, copies + 1):
        noise = np.stack(
            [
                numpy_generator(seed, "look-alikes", name, number).standard_normal(before.shape[1:])
                for name in forget.tolist()
            ]
        )
        lengths = np.sqrt(np.square(noise).reshape(len(noise), -1).sum(axis=1))
        noise *= scale * (distance * usual / lengths).reshape(-1, *[1] * (noise.ndim - 1))
        after = before + noise
        if before.dtype == np.uint8:
            after = np.clip(np.rint(after), 0, 255)
        made.append(after.astype(before.dtype))
    return made


def _make_shifts(
    records: Records, forget: Ids, before: NDArray[Any], copies: int, pixels: int, seed: int
) -> list[NDArray[Any]]:
    """Images moved by at most `pixels` along each axis, each copy of a record by another offset; the edge repeats."""
    if before.ndim != 4:
        shape = " x ".join(map(str, records.input_shape))
        raise RequestError(
            f"only images can be shifted; these records have the shape {shape}", where="change", hint="change: noise"
        )
    side = min(before.shape[2:])
    if not 1 <= pixels < side:
        raise RequestError(
            f"a shift of {pixels} pixels of images with a side of {side}", where="pixels", hint=f"1 to {side - 1}"
        )
    steps = range(-pixels, pixels + 1)
    offsets = np.asarray([(down, right) for down in steps for right in steps if (down, right) != (0, 0)])
    if copies > len(offsets):
        raise RequestError(
            f"{copies} copies of a record, but there are {len(offsets)} shifts by at most {pixels}", where="copies",
            hint="raise pixels, or use change: noise",
        )  # fmt: skip
    keys = records.keys[records.rows(forget)]
    draws = np.stack([mix(keys, derive(seed, "look-alikes", number)) for number in range(len(offsets))], axis=1)
    order = np.argsort(draws, axis=1, kind="stable")
    rows, columns = np.arange(before.shape[2]), np.arange(before.shape[3])
    made = []
    for number in range(copies):
        moved = np.empty_like(before)
        for index, (down, right) in enumerate(offsets[order[:, number]]):
            taken = np.clip(rows - down, 0, len(rows) - 1), np.clip(columns - right, 0, len(columns) - 1)
            moved[index] = before[index][:, taken[0][:, None], taken[1][None, :]]
        made.append(moved)
    return made
