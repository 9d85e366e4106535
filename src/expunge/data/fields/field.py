"""One named input of a model: its shape and type, and how values of it become an array."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError
from expunge.core.show import repr_fields

#: Types of a field, and whether its values are integers in the model's input.
DTYPES = {"int64": True, "bool": True, "float32": False, "uint8": False}
#: Every integer up to this size is a float32 of its own.
LARGEST_EXACT = 2**24


@dataclasses.dataclass(frozen=True)
class Field:
    """One named input of a model.

    Attributes:
        name: the keyword argument of the model; "" for the only, positional one.
        shape: shape for one record, without the batch axis; () for one number.
        dtype: `int64`, `bool`, `float32`, or `uint8` (0..255; the model's input is x / 255, as for images).

    Raises:
        DataError: a size is below 1, or the type is unknown.

    Example:
        >>> Field("input_ids", (16,), "int64").size
        16
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if not isinstance(self.name, str) or (self.name and not self.name.isidentifier()):
            raise DataError(f"{self.name!r} is not the name of an argument", where="input field")
        if self.dtype not in DTYPES:
            raise DataError(f"the type is {self.dtype!r}, not one of {', '.join(DTYPES)}", where=self.title)
        if any(size < 1 for size in self.shape):
            raise DataError(f"an input of shape {self.shape} has no numbers", where=self.title)

    @property
    def title(self) -> str:
        """The name for messages."""
        return f"input {self.name}" if self.name else "input"

    @property
    def size(self) -> int:
        """Number of values of one record."""
        return math.prod(self.shape)

    @property
    def is_integer(self) -> bool:
        """Whether the model's input is integers (or booleans)."""
        return DTYPES[self.dtype]

    def convert(self, value: Any, lead: tuple[int, ...], *, exact: bool) -> NDArray[Any]:
        """Convert values to an array of this type (`bool` as int64).

        Args:
            value: an array, a tensor, or nested lists.
            lead: the shape before that of a record: `()`, or `(N,)`.
            exact: whether integers must be exact in float32.

        Raises:
            DataError: the shape is another one, the values cannot have this type, or are not finite.
        """
        array = as_array(value, self.title)
        if array.shape != (*lead, *self.shape):
            raise DataError(
                f"has the shape {array.shape}, not {(*lead, *self.shape)}",
                where=self.title,
                hint="pad or cut all records to one length",
            )
        if self.dtype == "float32":
            if array.dtype.kind not in "biuf":
                raise DataError(f"is {array.dtype}, not numbers", where=self.title)
            array = array.astype(np.float32)
            if not np.isfinite(array).all():
                raise DataError("has NaN or infinite values", where=self.title)
            return array
        if array.dtype.kind not in "biu":
            raise DataError(f"is {array.dtype}, not integers ({self.dtype})", where=self.title)
        low, high = {"uint8": (0, 255), "bool": (0, 1)}.get(self.dtype, (-(2**63), 2**63 - 1))
        if exact:
            low, high = max(low, -LARGEST_EXACT), min(high, LARGEST_EXACT)
        if array.size and (int(array.min()) < low or int(array.max()) > high):
            wrong = int(array.min()) if int(array.min()) < low else int(array.max())
            beside = "beside a float input, integers are stored as float32: at most 2^24"
            raise DataError(f"has the value {wrong}, outside {low} .. {high}", where=self.title,
                            hint=beside if exact and self.dtype == "int64" else None)  # fmt: skip
        return array.astype(np.uint8 if self.dtype == "uint8" else np.int64)


def as_array(value: Any, where: str) -> NDArray[Any]:
    """Convert a tensor, an array or nested lists of equal lengths to an array.

    Raises:
        DataError: the lists have unequal lengths, or the values are not numbers.
    """
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        if value.is_floating_point():
            value = value.float()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"is not an array of numbers ({str(error)[:120]})", where=where) from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"is {array.dtype}, not numbers", where=where)
    return array
