"""Folders of images, one folder a class."""

from __future__ import annotations

import bisect
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError, join_names
from expunge.data.data_dir import DataDir
from expunge.data.images.files import EXTENSIONS, ImageFiles, list_images
from expunge.data.images.index import index_images
from expunge.data.images.stream import ImageStream
from expunge.data.images.transform import ImageTransform
from expunge.data.reading.readers import OFFICIAL_PARTS
from expunge.data.records import Caution, Records
from expunge.data.registry import register_source

_SHOWN = 3


def _files(directory: DataDir, path: str | os.PathLike[str], **options: Any) -> list[Path]:
    found = list_images(directory.find_directory(path))
    return [found.root / name for name in found.paths]


@register_source("folder", files=_files, reads="PNG, JPEG and WebP files, in one folder a class")
def folder(
    directory: DataDir,
    path: str | os.PathLike[str],
    transform: Mapping[str, Any] | None = None,
    classes: Sequence[object] | None = None,
    partition: Mapping[str, str] | None = None,
    subject: str | None = None,
) -> Records:
    """Custom images in one folder a class, streamed; size and channels as declared, partition and subjects too.

    Args:
        directory: the data directory.
        path: the folder, relative to the current directory or to the data directory. An id is the path of a file in it.
        transform: `resize`, `crop`, `channels`, `interpolation`, `mean`, `std` (`ImageTransform`).
        classes: the class folders, in the order of the labels; the default is all of them, sorted as strings.
        partition: the official parts `train` and `test`, and the folder in `path` that has the class folders of each.
        subject: a regular expression with one group, which is searched in the id of a record and gives its subject.

    The column `folder` has the folder of each image.
    """
    chosen = ImageTransform.from_options(transform)
    found = list_images(directory.find_directory(path))
    cautions = _describe_skipped(found)
    found, more, (names, labels, part_of) = _find_classes(found, partition, classes)
    cautions += more
    subjects = None if subject is None else _find_subjects(found, subject)
    index = index_images(found.root, found.paths)
    folders = np.asarray([name.rpartition("/")[0] for name in found.paths], dtype=np.str_)
    return Records(
        name=found.root.resolve().name or "folder",
        record_ids=index.paths,
        labels=labels,
        class_names=names,
        stream=ImageStream(index, labels, chosen),
        subject_ids=subjects,
        partition=None if partition is None else np.asarray(part_of, dtype=np.str_),
        columns={"folder": folders},
        cautions=cautions,
    )


def check_class_folders(root: Path, partition: Mapping[str, str] | None) -> None:
    """Raise the error with which the source refuses the folders: an image outside of them, or one without images.

    Args:
        root: the folder.
        partition: see `folder`.
    """
    _find_classes(list_images(root), partition, None)


def _find_classes(
    found: ImageFiles, partition: Mapping[str, str] | None, classes: Sequence[object] | None
) -> tuple[ImageFiles, tuple[Caution, ...], tuple[tuple[str, ...], NDArray[np.int64], list[str]]]:
    """The images of the parts, a caution if there are others, and what `_find_labels` finds."""
    parts, cautions = {"": ""} if partition is None else _read_parts(partition), tuple[Caution, ...]()
    if partition is not None:
        found, cautions = _keep_parts(found, list(parts))
    return found, cautions, _find_labels(found, parts, classes)


def _read_parts(partition: Mapping[str, str]) -> dict[str, str]:
    """The parts by the folder that has them."""
    if set(partition) != set(OFFICIAL_PARTS) or len(set(partition.values())) != len(partition):
        raise ConfigError(
            "partition names a folder for train and one for test", where="partition", hint="{train: train, test: val}"
        )
    return {str(name).strip("/"): part for part, name in partition.items()}


def _keep_parts(found: ImageFiles, parts: Sequence[str]) -> tuple[ImageFiles, tuple[Caution, ...]]:
    """The images in the folders of the parts, and a caution if there are others."""
    kept = tuple(path for path in found.paths if path.startswith(tuple(f"{name}/" for name in parts)))
    rest = len(found.paths) - len(kept)
    text = (
        f"{rest:,} images of {found.root.name} are in none of the folders {join_names(list(parts))}, and are not used"
    )
    return dataclasses.replace(found, paths=kept), (Caution(text, "`partition` names the folders"),) if rest else ()


def _find_labels(
    found: ImageFiles, parts: Mapping[str, str], classes: Sequence[object] | None
) -> tuple[tuple[str, ...], NDArray[np.int64], list[str]]:
    """The names of the classes, the label of each image, and its part."""
    kinds: list[str] = []
    part_of: list[str] = []
    for path in found.paths:
        place = next(name for name in parts if not name or path.startswith(f"{name}/"))
        inner = path.removeprefix(f"{place}/") if place else path
        kind, slash, _ = inner.partition("/")
        if not slash:
            raise DataError("is in no class folder", where=found.root / path, hint="its folder is its class")
        kinds.append(kind)
        part_of.append(parts[place])
    if not kinds:
        raise DataError(f"has no image ({', '.join(EXTENSIONS)})", where=found.root, hint="it needs one folder a class")
    present = set(kinds)
    for path in found.folders:
        above = next((name for name in parts if not name or path.startswith(f"{name}/")), None)
        inner = path if not above else path.removeprefix(f"{above}/")
        if above is not None and "/" not in inner and not _has_images(found, path):
            raise DataError(
                "the class folder has no image",
                where=found.root / path,
                hint="fill or remove it: a class needs records",
            )
    if classes is None:
        names = sorted(present)
    else:
        names = [str(name) for name in classes]
        wrong = sorted(present - set(names)) + sorted(set(names) - present)
        if wrong or len(set(names)) != len(names):
            raise ConfigError(
                f"the classes are not the class folders of {found.root}",
                where="classes",
                hint=f"differing: {join_names(wrong[:_SHOWN])}" if wrong else "list each folder once",
            )
    index_of = {name: index for index, name in enumerate(names)}
    return tuple(names), np.asarray([index_of[kind] for kind in kinds], dtype=np.int64), part_of


def _has_images(found: ImageFiles, folder: str) -> bool:
    position = bisect.bisect_left(found.paths, f"{folder}/")
    return position < len(found.paths) and found.paths[position].startswith(f"{folder}/")


def _find_subjects(found: ImageFiles, pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"is not a regular expression ({error})", where="subject") from error
    if compiled.groups != 1:
        raise ConfigError(
            f"has {compiled.groups} groups; one group is the subject", where="subject", hint="'/([^/_]+)_'"
        )
    subjects = []
    for path in found.paths:
        match = compiled.search(path)
        if match is None or not match[1]:
            raise DataError(f"the pattern of the subject {pattern!r} finds nothing", where=found.root / path)
        subjects.append(match[1])
    return subjects


def _describe_skipped(found: ImageFiles) -> tuple[Caution, ...]:
    if not found.skipped:
        return ()
    shown = ", ".join(found.skipped[:_SHOWN]) + (", ..." if len(found.skipped) > _SHOWN else "")
    text = f"{len(found.skipped):,} files of {found.root.name} are not used, since they are no images: {shown}"
    return (Caution(text, f"images are files named {', '.join(EXTENSIONS)}"),)
