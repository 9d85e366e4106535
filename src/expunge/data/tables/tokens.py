"""Text as integers: a tokenizer of a local folder, whose tokens are padded once to the longest text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError, TrustError
from expunge.core.files import read_text
from expunge.core.reading.limits import BYTES
from expunge.core.show import repr_fields
from expunge.data.fields import Field, InputFields
from expunge.data.reading.extras import import_extra
from expunge.data.records import Caution

#: Texts that are tokenized at once, and records that are padded at once.
_TEXTS, _PADDED = 1_000, 8_192
#: A larger `model_max_length` means that a tokenizer has none.
_NO_LIMIT = 1_000_000
#: Files of a folder that a tokenizer reads.
_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*", "config.json", "*.model")
_MASK = "attention_mask"


def list_tokenizer_files(folder: Path) -> list[Path]:
    """The files of a tokenizer folder."""
    return sorted({path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()})


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a local folder (`save_pretrained`); nothing is downloaded, and no code of the folder runs.

    Raises:
        ConfigError: transformers is not installed.
        TrustError: the tokenizer has Python code of its own.
        DataError: there is no tokenizer, it is damaged, or it has no padding token.
    """
    if not folder.is_dir():
        hint = "nothing is downloaded: save the tokenizer with save_pretrained"
        raise DataError("there is no such folder", where=folder, hint=hint)
    for name in ("tokenizer_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            try:
                body = json.loads(read_text(path, error=DataError))
            except ValueError as error:
                raise DataError(f"is not JSON ({error})", where=path) from error
            if isinstance(body, dict) and "AutoTokenizer" in (body.get("auto_map") or {}):
                raise TrustError(
                    "the tokenizer needs Python code of its own (auto_map), which is never run",
                    where=path,
                    hint="save it as a fast tokenizer (tokenizer.json) without custom code",
                )
    if not list_tokenizer_files(folder):
        raise DataError("has no tokenizer", where=folder, hint="it is the folder that tokenizer.save_pretrained wrote")
    transformers = import_extra("transformers", "hf", "a tokenizer")
    try:
        found = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of any class: the library's, of its parts, and of the folder's contents
        text = " ".join(str(error).split())[:150]
        raise DataError(f"the tokenizer cannot be read ({type(error).__name__}: {text})", where=folder) from error
    check_tokenizer(found, folder)
    return found


def check_tokenizer(tokenizer: Any, where: object) -> None:
    """Raise DataError if a tokenizer has no padding token."""
    if getattr(tokenizer, "pad_token_id", None) is None:
        raise DataError(
            "the tokenizer has no padding token, and records are padded to one length",
            where=where,
            hint="set tokenizer.pad_token = tokenizer.eos_token, tell the model (config.pad_token_id), and save both",
        )


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Lists of integers of `N` records, of several names; the lists of one record have one length.

    Attributes:
        names: names of the inputs.
        values: by name, the numbers of all records one after the other.
        ends: `N` ends of the records in `values`.
        fill: by name, the number that pads.
        left: whether records are padded on the left.
        cut: number of texts that were cut.
    """

    names: tuple[str, ...]
    values: dict[str, NDArray[np.int32]]
    ends: NDArray[np.int64]
    fill: dict[str, int]
    left: bool = False
    cut: int = 0

    __repr__ = repr_fields

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.ends, prepend=0)

    @property
    def fields(self) -> InputFields:
        """The description of the packed records: all padded to the longest."""
        length = max(1, int(self.lengths.max(initial=1)))
        return InputFields(
            tuple(Field(name, (length,), "int64") for name in self.names), _MASK if _MASK in self.names else ""
        )

    def blocks(self) -> Iterator[NDArray[np.int64]]:
        """Yield the packed records, some at a time."""
        fields, lengths = self.fields, self.lengths
        width = fields.fields[0].shape[0]
        columns = np.arange(width)
        for start in range(0, len(lengths), _PADDED):
            size = lengths[start : start + _PADDED, None]
            used = columns >= width - size if self.left else columns < size
            first = self.ends[start] - lengths[start]
            last = self.ends[min(start + _PADDED, len(lengths)) - 1]
            values = {}
            for name in self.names:
                padded = np.full(used.shape, self.fill[name], dtype=np.int64)
                padded[used] = self.values[name][first:last]
                values[name] = padded
            yield fields.pack_batch(values)

    def pack(self) -> NDArray[np.int64]:
        """All packed records.

        Raises:
            DataError: they take more memory than the limit.
        """
        width = self.fields.input_shape[0]
        BYTES.check(8 * len(self.ends) * width, "the padded tokens take", where="tokens", error=DataError)
        out = np.empty((len(self.ends), width), dtype=np.int64)
        start = 0
        for block in self.blocks():
            out[start : start + len(block)] = block
            start += len(block)
        return out

    @property
    def cautions(self) -> tuple[Caution, ...]:
        """A caution if texts were cut."""
        if not self.cut:
            return ()
        length = int(self.lengths.max(initial=0))
        return (
            Caution(
                f"{self.cut:,} of {len(self.ends):,} texts are longer than {length} tokens and are cut",
                "max_length is the limit",
            ),
        )


def tokenize(tokenizer: Any, parts: Iterable[Sequence[Sequence[str]]], max_length: int | None, where: object) -> Tokens:
    """Tokenize texts.

    Args:
        tokenizer: of Hugging Face transformers.
        parts: lists of texts, some records at a time; one list, or two of equal length (a pair for each record).
        max_length: most tokens of a record; None: what the tokenizer says, if it says something.
        where: for messages.

    Raises:
        ConfigError: `max_length` is not a positive integer.
    """
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise ConfigError(f"is {max_length!r}, not a positive integer", where="max_length")
    check_tokenizer(tokenizer, where)
    limit = max_length if max_length is not None else int(getattr(tokenizer, "model_max_length", _NO_LIMIT))
    options: dict[str, Any] = {"truncation": True, "max_length": limit} if limit < _NO_LIMIT else {}
    values: dict[str, list[NDArray[np.int32]]] = {}
    lengths: list[int] = []
    cut = 0
    for texts in parts:
        for start in range(0, len(texts[0]), _TEXTS):
            found = tokenizer(*(list(part[start : start + _TEXTS]) for part in texts), padding=False, **options)
            sizes = [len(ids) for ids in found["input_ids"]]
            lengths += sizes
            cut += sum(bool(getattr(e, "overflowing", ())) for e in getattr(found, "encodings", None) or ())
            for name in found:
                flat = [number for ids in found[name] for number in ids]
                values.setdefault(name, []).append(np.asarray(flat, dtype=np.int32))
    return Tokens(
        tuple(values),
        {name: np.concatenate(arrays) for name, arrays in values.items()},
        np.cumsum(lengths, dtype=np.int64),
        find_fill(values, tokenizer),
        getattr(tokenizer, "padding_side", "right") == "left",
        cut,
    )


def find_fill(names: Iterable[str], tokenizer: Any) -> dict[str, int]:
    """The number that pads each input: that of the tokenizer for `input_ids` and `token_type_ids`, else 0."""
    known = {"input_ids": "pad_token_id", "token_type_ids": "pad_token_type_id"}
    return {name: int(getattr(tokenizer, known[name], 0) or 0) if name in known else 0 for name in names}


def join_lists(columns: Mapping[str, Sequence[Any]], fill: dict[str, int], where: object) -> Tokens:
    """Tokens from lists of integers, one list a record and name; records can have unequal lengths.

    Without `attention_mask`, one is added if lengths differ: 1 for every given number.

    Raises:
        DataError: the lists of one record have unequal lengths, or hold something else than integers.
    """
    names = list(columns)
    lengths = np.asarray([len(row) for row in columns[names[0]]], dtype=np.int64)
    values = {}
    for name in names:
        other = np.asarray([len(row) for row in columns[name]], dtype=np.int64)
        if len(other) != len(lengths) or (other != lengths).any():
            row = (
                int(np.flatnonzero(other != lengths)[0])
                if len(other) == len(lengths)
                else min(len(other), len(lengths))
            )
            raise DataError(f"{name!r} and {names[0]!r} have unequal lengths in row {row}", where=where)
        rows = [np.asarray(row) for row in columns[name]]
        flat = np.concatenate([row.reshape(-1) for row in rows]) if rows else np.empty(0, dtype=np.int64)
        if flat.dtype.kind not in "biu":
            raise DataError(f"{name!r} is {flat.dtype}, not integers", where=where)
        if flat.size and (flat.min() < -(2**31) or flat.max() >= 2**31):
            raise DataError(f"{name!r} has numbers beyond 32 bits", where=where)
        values[name] = flat.astype(np.int32)
    if _MASK not in names and len(set(lengths.tolist())) > 1:
        names.append(_MASK)
        values[_MASK] = np.ones(int(lengths.sum()), dtype=np.int32)
    return Tokens(tuple(names), values, np.cumsum(lengths), {**dict.fromkeys(names, 0), **fill})
