"""The named inputs of a model as one array a record: packed for `Records`, unpacked for the call of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError, unknown_name_hint
from expunge.core.show import repr_fields

from .field import Field, as_array

if TYPE_CHECKING:
    import torch

#: The name of a padding mask in Hugging Face models: 0 where a record is padded.
_PADDING = "attention_mask"


@dataclasses.dataclass(frozen=True)
class InputFields:
    """The named inputs of a model, in the order in which a record stores them.

    One field keeps its shape and type, so images stay `C x H x W`. Several integer fields become one int64 array, the
    flattened fields one after the other. If any of several is float32 or uint8, the array is float32 (`uint8` is
    divided by 255, as a batch of images is), and integers must be at most 2^24.

    Attributes:
        fields: the inputs.
        padding: the name of the field that is 0 where a record is padded; "" for none.

    Raises:
        DataError: there is no field, a name is a duplicate or missing, or the padding field is not one of integers.

    Example:
        >>> fields = InputFields.infer({"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0]})
        >>> fields.input_shape, fields.dtype, fields.padding
        ((6,), 'int64', 'attention_mask')
        >>> packed = fields.pack({"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0]})
        >>> packed.tolist()
        [5, 6, 0, 1, 1, 0]
        >>> import torch
        >>> {name: x.tolist() for name, x in fields.unpack(torch.from_numpy(packed)[None]).items()}
        {'input_ids': [[5, 6]], 'attention_mask': [[1, 1]]}
    """

    fields: tuple[Field, ...]
    padding: str = ""

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple(self.fields))
        names = [field.name for field in self.fields]
        if not names:
            raise DataError("a model has at least one input", where="input fields")
        twice = [name for name in names if names.count(name) > 1]
        if twice or (len(names) > 1 and "" in names):
            what = f"{twice[0]!r} is a duplicate" if twice else "one of several inputs has no name"
            raise DataError(what, where="input fields", hint="each input is a keyword argument of the model")
        if self.padding:
            if self.padding not in names:
                raise DataError(f"there is no input {self.padding!r} that could mark padding", where="input fields",
                                hint=unknown_name_hint(self.padding, names))  # fmt: skip
            mask = self.fields[names.index(self.padding)]
            if not mask.is_integer or len(mask.shape) != 1:
                raise DataError(f"padding is marked by integers, one a position, not {mask.dtype} {mask.shape}",
                                where=mask.title)  # fmt: skip

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(field.name for field in self.fields)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the array of one record."""
        return self.fields[0].shape or (1,) if len(self.fields) == 1 else (sum(field.size for field in self.fields),)

    @property
    def dtype(self) -> str:
        """Type of the array of a record: `int64`, `float32` or `uint8`."""
        if len(self.fields) == 1:
            return "int64" if self.fields[0].is_integer else self.fields[0].dtype
        return "int64" if all(field.is_integer for field in self.fields) else "float32"

    def pack(self, values: Mapping[str, Any]) -> NDArray[Any]:
        """Pack one record: a value for each field becomes one array of `input_shape`.

        Raises:
            DataError: a field is missing or unknown, or has another shape or type.
        """
        return self._pack(values, ())

    def pack_batch(self, values: Mapping[str, Any]) -> NDArray[Any]:
        """Pack `N` records: arrays `N x ...` become one array `N x input_shape`.

        Raises:
            DataError: see `pack`; or the fields have unequal numbers of records.
        """
        self._check_names(values)
        return self._pack(values, as_array(values[self.names[0]], self.fields[0].title).shape[:1])

    def _check_names(self, values: Mapping[str, Any]) -> None:
        missing = [name for name in self.names if name not in values]
        if missing:
            raise DataError(f"the record has no {missing[0]!r}", where="input fields",
                            hint=unknown_name_hint(missing[0], list(map(str, values))))  # fmt: skip
        more = [str(name) for name in values if name not in self.names]
        if more:
            raise DataError(f"{more[0]!r} is none of the inputs ({', '.join(self.names)})", where="input fields",
                            hint="leave it out of the record, or describe it as a field")  # fmt: skip

    def _pack(self, values: Mapping[str, Any], lead: tuple[int, ...]) -> NDArray[Any]:
        self._check_names(values)
        exact = len(self.fields) > 1 and self.dtype == "float32"
        arrays = [field.convert(values[field.name], lead, exact=exact) for field in self.fields]
        if len(arrays) == 1:
            return arrays[0].reshape(*lead, *self.input_shape)
        wanted = np.dtype(self.dtype)
        if exact:  # the arithmetic of `to_input`
            arrays = [a.astype(np.float32) / np.float32(255) if a.dtype == np.uint8 else a for a in arrays]
        return np.concatenate([a.reshape(*lead, -1).astype(wanted) for a in arrays], axis=-1)

    def unpack(self, batch: torch.Tensor, *, trim: bool = True) -> dict[str, torch.Tensor]:
        """Unpack a batch of the model's input (`expunge.data.transforms.to_input`) into one tensor for each field.

        Positions at the end that are padding in every record are cut from all fields of the length of the padding
        field, as a collate function that pads to the longest record would. They stay inside `torch.func` transforms
        and where the batch has no values (compilation, tracing, the meta device).

        Args:
            batch: `B x input_shape`.
            trim: whether to cut them.

        Raises:
            DataError: the batch has another shape, or a type in which integers are not exact.
        """
        import torch

        if isinstance(batch, torch.Tensor) and tuple(batch.shape[1:]) != self.input_shape:
            raise DataError(f"a batch has the shape {tuple(batch.shape)}, not B x {self.input_shape}",
                            where="input fields")  # fmt: skip
        if any(field.is_integer for field in self.fields) and batch.dtype in (torch.float16, torch.bfloat16):
            raise DataError(f"integer inputs are not exact in {batch.dtype}", where="input fields",
                            hint="leave the batch as it is; mixed precision casts inside the model")  # fmt: skip
        found = dict(self._split(batch))
        if trim and self.padding and has_values(batch):
            columns = found[self.padding].ne(0).any(dim=0).nonzero()
            length, end = found[self.padding].shape[1], int(columns[-1]) + 1 if len(columns) else 1
            if end < length:
                long = {field.name for field in self.fields if field.shape[:1] == (length,)}
                found = {name: x[:, :end] if name in long else x for name, x in found.items()}
        return found

    def _split(self, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        import torch

        start = 0
        for field in self.fields:
            x = batch
            if len(self.fields) > 1:
                x, start = batch.narrow(1, start, field.size), start + field.size
                x = x.reshape(len(batch), *field.shape)
            elif not field.shape:
                x = batch.reshape(len(batch))
            if field.is_integer:
                x = x.to(torch.bool if field.dtype == "bool" else torch.int64)
            yield field.name, x

    def probe(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Make `count` records with which a model can be tried: integers are 0, the padding field is 1.

        Args:
            count: number of records.
            generator: of the float values, uniform in [0, 1); None: zeros.
        """
        import torch

        parts = []
        for field in self.fields:
            shape = (count, *field.shape)
            if field.is_integer:
                parts.append(torch.full(shape, int(field.name == self.padding != ""), dtype=torch.int64))
            else:
                parts.append(torch.zeros(shape) if generator is None else torch.rand(shape, generator=generator))
        if len(parts) == 1:
            return parts[0].reshape(count, *self.input_shape)
        wanted = torch.int64 if self.dtype == "int64" else torch.float32
        return torch.cat([part.reshape(count, -1).to(wanted) for part in parts], 1)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values (docs/formats/trained.md)."""
        fields = [{"name": f.name, "shape": list(f.shape), "dtype": f.dtype} for f in self.fields]
        return {"fields": fields, "padding": self.padding}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> InputFields:
        """Read what `to_json` wrote.

        Raises:
            DataError: a value is missing or has the wrong type.
        """
        try:
            fields = tuple(Field(str(f["name"]), tuple(f["shape"]), str(f["dtype"])) for f in body["fields"])
            return cls(fields, str(body.get("padding", "")))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the input fields cannot be read ({repr(error)[:200]})") from error

    @classmethod
    def infer(cls, item: Mapping[str, Any]) -> InputFields:
        """Describe the inputs of one record: a value for each argument of the model, without the label.

        Integers become int64, 16- and 64-bit floats float32; uint8 and bool stay. A field `attention_mask` marks
        padding.

        Raises:
            DataError: a value is not an array of numbers, or there is none.
        """
        kinds = {"i": "int64", "u": "int64", "f": "float32", "b": "bool"}
        fields = []
        for name, value in item.items():
            array = as_array(value, f"input {name}")
            integer_mask = name == _PADDING and array.dtype.kind in "iu"
            dtype = "uint8" if array.dtype == np.uint8 and not integer_mask else kinds[array.dtype.kind]
            fields.append(Field(str(name), array.shape, dtype))
        masks = [f for f in fields if f.name == _PADDING and f.is_integer and len(f.shape) == 1 and len(fields) > 1]
        return cls(tuple(fields), _PADDING if masks else "")


def has_values(batch: torch.Tensor) -> bool:
    """Whether the values of a tensor can be read: not inside a `torch.func` transform, nor while code is traced."""
    import torch

    if type(batch) is not torch.Tensor or batch.device.type == "meta" or torch.compiler.is_compiling():
        return False
    if torch.jit.is_tracing() or torch._C._functorch.is_functorch_wrapped_tensor(batch):
        return False
    return not (batch.device.type == "cuda" and torch.cuda.is_current_stream_capturing())
