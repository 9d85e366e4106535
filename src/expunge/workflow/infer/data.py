"""The section `data`, from a file or a folder: which source reads it, and with which options."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expunge.core.errors import ConfigError, DataError, ExpungeError
from expunge.core.show import repr_fields
from expunge.data.reading.readers import read_npz
from expunge.data.sources.folder import check_class_folders
from expunge.data.sources.table import check_row

from .roles import IDS, LABELS, PARTITIONS, SUBJECTS, infer_roles

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
#: Modes of images without colour.
_GREY = {"1", "L", "LA", "La"}
#: Rows of a table that are looked at.
_ROWS = 2_000
_TABLES = {".csv": "table", ".tsv": "table", ".parquet": "parquet", ".arrow": "parquet", ".feather": "parquet"}


@dataclasses.dataclass(frozen=True)
class FoundData:
    """What was inferred of the data.

    Attributes:
        source: name of the source.
        options: its options.
        form: `image`, `table` or `text`: which kind of network reads it.
        missing: what the user has to fill in: key to an example line.
        doubts: what the user should look at.
    """

    source: str
    options: Mapping[str, Any]
    form: str
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    __repr__ = repr_fields


def looks_like_data(path: Path) -> bool:
    """Whether a file or folder is one that a source reads."""
    if path.is_file():
        return path.suffix in (".npz", *_TABLES)
    return _is_saved_dataset(path) or bool(list(path.glob("*.parquet"))) or bool(_class_folders(path))


def infer_data(path: Path, *, tokenizer: Path | None = None, channels: int | None = None) -> FoundData:
    """Infer the source of a file or folder, and its options.

    Args:
        path: the file or folder.
        tokenizer: a folder with a tokenizer, which makes columns of text features.
        channels: of the images that the weights read; None: not known.

    Raises:
        ConfigError: no source reads it.
        DataError: it cannot be read.
    """
    if path.is_file() and path.suffix == ".npz":
        return _infer_arrays(path)
    if path.is_file() and path.suffix in _TABLES:
        source = _TABLES[path.suffix]
        columns, more = _read_csv(path) if source == "table" else (_read_arrow(path), {})
        return _infer_table(source, path, columns, more, tokenizer)
    if path.is_dir() and _is_saved_dataset(path):
        return _infer_saved_dataset(path, tokenizer)
    if path.is_dir() and list(path.glob("*.parquet")):
        return _infer_table("parquet", path, _read_arrow(path), {}, tokenizer)
    if path.is_dir() and _class_folders(path):
        return _infer_folder(path, channels)
    raise ConfigError(
        "no source reads this",
        where=path,
        hint="csv, npz, Parquet or Arrow files, a folder with one folder of images a class, or a saved HF dataset; for "
        "others, write a source: docs/data.md",
    )


def _class_folders(path: Path) -> list[Path]:
    """The folders in a folder that have images, in them or one level deeper."""
    found = [at for at in sorted(path.iterdir()) if at.is_dir() and not at.name.startswith(".")]
    return [
        at for at in found if _has_images(at) or any(_has_images(below) for below in at.iterdir() if below.is_dir())
    ]


def _has_images(path: Path) -> bool:
    return any(file.suffix.lower() in IMAGES for file in path.iterdir())


def _infer_folder(path: Path, channels: int | None) -> FoundData:
    folders = _class_folders(path)
    options: dict[str, Any] = {"path": str(path)}
    doubts = []
    parts = {at.name.casefold(): at.name for at in folders}
    test = next((parts[name] for name in ("test", "val", "valid", "validation") if name in parts), None)
    if "train" in parts and test is not None and not any(_has_images(at) for at in folders):
        options["partition"] = {"train": parts["train"], "test": test}
        unused = sorted(set(parts.values()) - {parts["train"], test})
        if unused:
            doubts.append(f"the folders {', '.join(unused)} are not used")
    sizes, modes = _sample_images(path)
    transform: dict[str, Any] = {"channels": channels or (1 if modes and modes <= _GREY else 3)}
    if len(sizes) > 1 or not sizes:
        transform |= {"resize": 224, "crop": [224, 224]}
        doubts.append(
            "the images have several sizes: they are resized to 224 x 224; set `transform` to that of training"
        )
    check_class_folders(path, options.get("partition"))
    options["transform"] = transform
    doubts.append("`transform` must be that of the training: size, channels, and mean and std if it had them")
    return FoundData("folder", options, "image", doubts=tuple(doubts))


def _sample_images(path: Path, most: int = 50) -> tuple[set[tuple[int, int]], set[str]]:
    """Sizes and modes of the first images; only their headers are read."""
    from PIL import Image

    found: set[tuple[int, int]] = set()
    modes: set[str] = set()
    files = (file for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGES)
    for _, file in zip(range(most), files, strict=False):
        try:
            with Image.open(file) as image:
                found.add(image.size)
                modes.add(image.mode)
        except (OSError, ValueError):  # `check` names it
            continue
    return found, modes


def _infer_arrays(path: Path) -> FoundData:
    arrays = read_npz(path)
    options: dict[str, Any] = {"path": str(path)}
    numbers = [name for name, array in arrays.items() if array.ndim >= 2 and array.dtype.kind in "biuf"]
    if not numbers:
        raise DataError("no array has features: N x ...", where=path, hint=f"it has {', '.join(arrays) or 'none'}")
    features = max(numbers, key=lambda name: arrays[name].size)
    count, shape = len(arrays[features]), arrays[features].shape
    options["features"] = features
    vectors = {name: array for name, array in arrays.items() if array.ndim == 1}
    rows = {name: array for name, array in vectors.items() if len(array) == count}
    label = _choose(rows, LABELS) or next((name for name, array in rows.items() if array.dtype.kind in "iu"), None)
    missing = {} if label else {"data.options.labels": "labels: NAME   # an array of N class indices"}
    roles = {
        "labels": label,
        "ids": _choose(rows, IDS),
        "subjects": _choose(rows, SUBJECTS),
        "partition": _choose(rows, PARTITIONS),
        "class_names": _choose(vectors, ("classnames", "classes", "names")),
    }
    options |= {role: chosen for role, chosen in roles.items() if chosen is not None}
    array = arrays[features]
    if array.ndim == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3):
        options["layout"] = "nhwc"
    elif array.ndim == 3 and array.dtype == np.uint8:
        options["layout"] = "nhw"
    form = "image" if array.ndim == 4 or "layout" in options else "table"
    return FoundData("npz", options, form, missing)


def _choose(names: Mapping[str, Any], wanted: Sequence[str]) -> str | None:
    normal = {"".join(letter for letter in name.casefold() if letter.isalnum()): name for name in names}
    return next((normal[name] for name in wanted if name in normal), None)


def _read_csv(path: Path) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """The first values of the columns, and the delimiter if it is not a comma; all rows are counted.

    Raises:
        DataError: it is no CSV file, or a row has not as many fields as the header.
    """
    rows: list[list[str]] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = max((",", ";", "\t", "|"), key=header.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            for row in filter(None, reader):
                if len(rows) <= _ROWS:
                    rows.append(row)
                check_row(row, rows[0], path, reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read as CSV ({error})", where=path) from error
    if len(rows) < 2 or len(rows[0]) < 2:
        raise DataError("has no table: a header with at least two columns, and rows", where=path)
    columns = {name: [_as_value(row[at]) for row in rows[1:]] for at, name in enumerate(rows[0])}
    return columns, {} if delimiter == "," else {"delimiter": delimiter}


def _as_value(text: str) -> Any:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.casefold(), text)


def _read_arrow(path: Path) -> dict[str, list[Any]]:
    from expunge.data.tables.reader import open_table

    reader = open_table(path)
    return _read_columns(reader)


def _read_columns(reader: Any) -> dict[str, list[Any]]:
    batch: dict[str, Any] = next(iter(reader.batches(reader.names)), {})
    return {name: batch[name].slice(0, _ROWS).to_pylist() for name in batch}


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _infer_saved_dataset(path: Path, tokenizer: Path | None) -> FoundData:
    from expunge.data.tables.hf import load_saved, open_dataset

    more: dict[str, Any] = {}
    loaded = load_saved(path)
    if (path / "dataset_dict.json").is_file():
        names = list(loaded)
        test = next((name for name in ("test", "validation", "valid") if name in names), None)
        if "train" in names and test is not None:
            more["partition"] = {"train": "train", "test": test}
        else:
            more["part"] = names[0]
        loaded = loaded["train" if "train" in names else names[0]]
    images = [name for name, feature in loaded.features.items() if type(feature).__name__ == "Image"]
    if images:
        raise ConfigError(
            f"the column {images[0]!r} has images, which no source reads from a saved dataset",
            where=path,
            hint="write them as files, one folder a class, for the source folder; or read the dataset in Python: "
            "expunge.Records.from_dataset(datasets.load_from_disk(folder))",
        )
    return _infer_table("hf-dataset", path, _read_columns(open_dataset(loaded, path)), more, tokenizer)


def _infer_table(
    source: str, path: Path, columns: Mapping[str, Sequence[Any]], more: Mapping[str, Any], tokenizer: Path | None
) -> FoundData:
    roles = infer_roles(columns, reads_text=tokenizer is not None)
    options: dict[str, Any] = {"path": str(path), **more}
    missing = {}
    if roles.label is None:
        missing["data.options.label"] = f"label: NAME   # one of {', '.join(columns)}"
    else:
        options["label"] = roles.label
    options |= {key: value for key, value in roles.options.items() if key not in more}
    if roles.options.get("text"):
        options["tokenizer"] = str(tokenizer)
    elif roles.unread_text is not None:
        options["ignore"] = [name for name in options["ignore"] if name != roles.unread_text]
        options["text"] = [roles.unread_text]
        if not options["ignore"]:
            del options["ignore"]
        missing["data.options.tokenizer"] = "tokenizer: FOLDER   # tokenizer.json, or a folder of save_pretrained"
    elif not any(roles.options.get(role) for role in ("numeric", "categorical")):
        left = ", ".join(name for name in columns if name != roles.label)
        missing["data.options.numeric"] = f"numeric: [NAME]   # or categorical; some of {left}"
    form = "text" if options.get("text") else "table"
    return FoundData(source, options, form, missing, roles.doubts)


def read_json_file(path: Path) -> Any:
    """The value of a JSON file; None if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, ExpungeError):
        return None
