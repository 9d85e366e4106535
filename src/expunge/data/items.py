"""Items of a dataset and labels: converted without loss, or refused with the name of the record."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, cast

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError, Interrupted, with_article
from expunge.core.seeds import global_rng
from expunge.core.split import Ids, as_ids

#: Characters that are drawn as nothing: white space, and marks such as the zero-width space.
BLANKS = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029"
BLANKS += "\u202f\u205f\u3000\xad\u180e\u200b\u200c\u200d\u200e\u200f\u2060\u2800\u3164\ufeff"
#: Below this, every integer is a float64 of its own.
_LARGEST = 2.0**53
_INTEGERS = "a list of integers"
_PAIR = "an item is a pair (features, label); docs/data.md describes it"
_ONE_HOT = "labels are class indices: take the argmax of each row"
_IMAGES = "let the dataset convert images to C x H x W tensors (uint8, or float32 in [0, 1])"
#: Modes of PIL images that are recognised: 8 bits a channel, and the channels mean what they are.
_PIL_MODES = ("L", "RGB")


@dataclasses.dataclass(frozen=True)
class Caution:
    """Something about records that is used as it is, and may not be what the user means.

    Attributes:
        message: what was found.
        hint: what to do if it is not meant, or empty.
    """

    message: str
    hint: str = ""


def hint_labels(labels: Any, names: Sequence[str]) -> str:
    """What to do about labels of which one is not an index of `names`.

    Example:
        >>> hint_labels(np.array([1, 2]), ("cat", "dog"))
        'labels start at 0: subtract 1'
        >>> hint_labels(np.array([3, 7]), ("3", "7"))
        'labels are numbers from 0 to 1, by the position in the list of classes; or strings: the names of the classes'
    """
    found = np.unique(labels)
    hint = f"labels are numbers from 0 to {len(names) - 1}, by the position in the list of classes"
    if (found[0], found[-1]) == (1, len(names)):
        hint = "labels start at 0: subtract 1"
    return hint + ("; or strings: the names of the classes" if set(map(str, found.tolist())) <= set(names) else "")


def as_labels(values: Any, where: object) -> NDArray[np.int64]:
    """Convert labels to `N` int64 class indices.

    Args:
        values: `N` integers, booleans, or numbers without a fraction: a list, an array, a tensor; `N x 1` is `N`.
        where: for messages.

    Raises:
        DataError: a label is not an integer (a fraction, a string, missing), or labels are one-hot or have more than
            one number for each record.

    Example:
        >>> as_labels([2, True, 0], "toy").tolist()
        [2, 1, 0]
        >>> as_labels([0.6, 1.0], "toy")
        Traceback (most recent call last):
        ...
        expunge.core.errors.DataError: toy: label 0 is 0.6, not an integer
          hint: ...
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"labels are not {_INTEGERS} ({error})", where=where) from error
    if array.ndim == 0:
        raise DataError(f"labels are not {_INTEGERS}: {str(values)[:60]}", where=where)
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim > 1:
        shape = " x ".join(map(str, array.shape))
        if _is_one_hot(array):
            raise DataError(f"labels are one-hot ({shape})", where=where, hint=_ONE_HOT)
        raise DataError(f"labels have the shape {shape}, not one integer for each record", where=where)
    if array.dtype.kind == "O":
        return np.asarray([_as_integer(value, f"{where}: label {row}") for row, value in enumerate(array)])
    if array.dtype.kind == "f":
        wrong = np.flatnonzero((array != np.floor(array)) | (np.abs(array) > _LARGEST))  # NaN and infinity too
        if not len(wrong):
            return array.astype(np.int64)
    if array.dtype.kind not in "biu":
        bad = int(wrong[0]) if array.dtype.kind == "f" else 0
        hint = "convert them to class indices, integers from 0"
        raise DataError(f"label {bad} is {str(array[bad])[:60]}, not an integer", where=where, hint=hint)
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise DataError(f"the label {array.max()} is not a class index", where=where)
    return array.astype(np.int64)


def as_label(value: Any, where: object) -> int:
    """Convert the label of one item to an integer; see `as_labels`.

    Raises:
        DataError: it is not one integer.

    Example:
        >>> as_label(np.asarray([3]), "toy: r0")
        3
    """
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the label is {with_article(type(value).__name__)}, not an integer", where=where) from error
    if array.size == 1 and array.dtype.kind in "biuf":
        number = array.reshape(-1)[0]
        if array.dtype.kind != "f" or (number == np.floor(number) and abs(number) <= _LARGEST):
            return int(number)
    if array.size > 1 and _is_one_hot(array.reshape(1, -1)):
        raise DataError(f"the label is one-hot ({array.size} numbers)", where=where, hint=_ONE_HOT)
    what = str(value)[:60] if array.size == 1 else f"an array of shape {array.shape}"
    raise DataError(
        f"the label is {what!r}, not an integer" if isinstance(value, str) else f"the label is {what}, not an integer",
        where=where,
        hint="an item is a pair (features, integer)",
    )


def as_names(values: Any, what: str, where: object) -> Ids:
    """Convert ids to strings; a missing or blank one is an error, since several would become one."""
    if not isinstance(values, (np.ndarray, str, bytes)) and isinstance(values, Iterable):
        values = list(values)
        missing = [row for row, value in enumerate(values) if value is None or _is_nan(value)]
    else:
        missing = []
        if isinstance(values, np.ndarray) and values.dtype.kind == "f":
            missing = np.flatnonzero(np.isnan(values)).tolist()
    names = as_ids(values)
    missing = missing or np.flatnonzero(np.char.strip(names, BLANKS) == "").tolist()
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(
            f"the {what} of row {missing[0]} is missing or blank{more}",
            where=where,
            hint=f"give each record its own {what}" if what == "record id" else f"fill in the {what}, or drop the row",
        )
    return names


def _is_nan(value: object) -> bool:
    """Whether a value is NaN, or a missing value of pandas."""
    return type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, (float, np.floating)) and value != value)


def _as_integer(value: object, where: str) -> int:
    try:
        return operator.index(cast(SupportsIndex, value))
    except TypeError as error:
        raise DataError(f"is {str(value)[:60]!r}, not an integer", where=where) from error


def _is_one_hot(array: NDArray[Any]) -> bool:
    """Whether each row is zeros and a single one."""
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        return False
    return bool(np.isin(array, (0, 1)).all() and (array.astype(np.int64).sum(axis=1) == 1).all())


def seed_item_reads() -> contextlib.AbstractContextManager[None]:
    """Seed torch's global generators within the block, since items of a stream may use them; restore them after it."""
    return global_rng(0, "items") if "torch" in sys.modules else contextlib.nullcontext()


def read_item(stream: Any, row: int, where: object) -> tuple[NDArray[Any], int]:
    """Read an item of a map-style dataset: its features as an array (uint8, float32 or int64), and its label.

    A PIL image of mode L or RGB becomes C x H x W uint8.

    Raises:
        DataError: the dataset fails to read it, or the item is not a pair of numbers and an integer.
    """
    try:
        item = stream[row]
    except Interrupted:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        text = str(error).strip() or "no message"
        raise DataError(
            f"the dataset cannot read item {row} ({type(error).__name__}: {text})",
            where=where,
            hint="repair or drop this item; the error is that of the dataset's own code",
        ) from error
    if not isinstance(item, Sequence) or isinstance(item, (str, bytes)) or len(item) != 2:
        keys = f" with the keys {', '.join(map(str, item))[:80]}" if isinstance(item, dict) else ""
        length = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        what = f"an item is not a pair (features, integer) but {with_article(type(item).__name__)}{length}{keys}"
        raise DataError(what, where=where, hint=_PAIR)
    features, label = item
    return as_features(features, where), as_label(label, where)


def as_features(item: Any, where: object) -> NDArray[Any]:
    """Convert the features of an item to a contiguous array: uint8 and floats (as float32), other integers as int64."""
    torch = sys.modules.get("torch")
    if hasattr(item, "getbands") and hasattr(item, "convert"):
        if item.mode not in _PIL_MODES:
            raise DataError(
                f"the image has the mode {item.mode!r}; {' and '.join(_PIL_MODES)} are recognised",
                where=where,
                hint='convert it in the dataset: image.convert("RGB")',
            )
        array = np.array(item, dtype=np.uint8)
        item = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    elif torch is not None and isinstance(item, torch.Tensor):
        tensor = item.detach().cpu()
        kept = tensor.dtype == torch.uint8 or not tensor.is_floating_point()
        item = np.asarray(tensor if kept else tensor.to(torch.float32))
    elif not isinstance(item, np.ndarray):
        raise DataError(f"features are a tensor or an array, not {type(item).__name__}", where=where, hint=_IMAGES)
    if item.dtype.kind not in "biuf":
        raise DataError(f"features are {item.dtype}, not numbers", where=where, hint=_IMAGES)
    if item.ndim == 0 or item.size == 0:
        raise DataError(f"features of shape {item.shape} have no axis or no numbers", where=where)
    kept = item.dtype == np.uint8 or item.dtype == np.int64
    wanted = item.dtype if kept else np.int64 if item.dtype.kind in "iu" else np.float32
    return np.ascontiguousarray(item, dtype=wanted)


def check_features(features: NDArray[Any], first: NDArray[Any], where: object) -> NDArray[Any]:
    """Return the features of an item.

    Raises:
        DataError: they have another shape or type than those of the first item, or NaN or infinite values.
    """
    if features.shape != first.shape:
        raise DataError(
            f"has the shape {features.shape}; the first record has {first.shape}",
            where=where,
            hint="let the dataset resize or crop all records to one shape",
        )
    if features.dtype != first.dtype:
        raise DataError(
            f"is {features.dtype}; the first record is {first.dtype}",
            where=where,
            hint="uint8 images are divided by 255 and other numbers are not: return one type for all records",
        )
    if features.dtype == np.float32 and not bool(np.isfinite(features).all()):
        raise DataError("the record has NaN or infinite values", where=where)
    return features
