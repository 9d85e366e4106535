"""The image files of a folder: which are used, which are skipped, and which are refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from expunge.core.errors import DataError
from expunge.core.reading.limits import ID_LENGTH
from expunge.core.show import repr_fields

#: Extensions of the files that are read as images, in any case.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")
_SYSTEM = ("__MACOSX",)


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """The files of an image folder.

    Attributes:
        root: the folder.
        paths: relative paths of the images, with `/`, sorted.
        folders: relative paths of all folders that are not hidden, sorted.
        skipped: relative paths of files that are no images by their extension, sorted. Hidden files are not listed.
    """

    root: Path
    paths: tuple[str, ...]
    folders: tuple[str, ...]
    skipped: tuple[str, ...]

    __repr__ = repr_fields


def list_images(root: Path) -> ImageFiles:
    """List the images of a folder and of the folders in it; hidden files and folders (`.name`) are skipped.

    Raises:
        DataError: a symbolic link leads out of the folder or to a folder, or a path is not valid Unicode or too long.
    """
    paths: list[str] = []
    folders: list[str] = []
    skipped: list[str] = []
    inside = os.path.realpath(root)
    for path, is_folder in _walk(str(root), "", inside):
        if is_folder:
            folders.append(path)
        elif path.lower().endswith(EXTENSIONS):
            paths.append(path)
        else:
            skipped.append(path)
    for path in (*paths, *folders):
        if not path.isprintable() and any("\ud800" <= c <= "\udfff" for c in path):
            raise DataError(f"the path {path!r} is not valid Unicode", where=root, hint="rename the file")
        if len(path) > ID_LENGTH:
            raise DataError(f"a path has {len(path):,} characters; at most {ID_LENGTH:,} are read", where=root)
    return ImageFiles(root, tuple(sorted(paths)), tuple(sorted(folders)), tuple(sorted(skipped)))


def _walk(folder: str, prefix: str, inside: str) -> Iterator[tuple[str, bool]]:
    """Yield the relative path of each file and folder, and whether it is a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{prefix}{entry.name}"
            if entry.name.startswith(".") or entry.name in _SYSTEM:
                continue
            if entry.is_symlink():
                _check_link(entry.path, inside)
            if entry.is_dir():
                yield path, True
                yield from _walk(entry.path, f"{path}/", inside)
            elif entry.is_file():
                yield path, False
            else:
                raise DataError("is not a regular file", where=entry.path)


def _check_link(path: str, inside: str) -> None:
    target = os.path.realpath(path)
    if os.path.commonpath([target, inside]) != inside:
        raise DataError(
            "is a symbolic link out of the folder",
            where=path,
            hint="copy the files into the folder: links out of it could read any file",
        )
    if os.path.isdir(target):
        raise DataError("is a symbolic link to a folder", where=path, hint="its images would be read twice: remove it")
    if not os.path.exists(target):
        raise DataError("is a symbolic link to a file that does not exist", where=path)
