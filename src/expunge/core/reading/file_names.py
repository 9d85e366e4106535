"""Names of files that expunge writes: a file has a name, is no directory, and does not end like another format."""

from __future__ import annotations

import os
from pathlib import Path

from expunge.core.errors import FileError

#: The endings of each format that is written to a path that a user gives; the first is recommended.
FORMATS: dict[str, tuple[str, ...]] = {
    "HTML": (".html", ".htm"),
    "SVG": (".svg",),
    "JSON": (".json",),
    "safetensors": (".safetensors",),
}
#: Further endings that name a format, which expunge does not write. Any other ending, or none, is allowed.
_OTHERS = {
    *(".pdf", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".eps", ".ps", ".md", ".tex", ".doc", ".docx", ".odt"),
    *(".csv", ".tsv", ".xls", ".xlsx", ".parquet", ".yaml", ".yml", ".toml", ".zip", ".gz", ".tar"),
    *(".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".onnx", ".npz", ".npy", ".h5", ".hdf5", ".pb", ".tflite"),
}


def check_file_name(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file to write, unless it is a directory or has no name.

    Raises:
        FileError: it is a directory, or ends with `.`, `..` or a root.

    >>> from expunge.core.reading.file_names import check_file_name
    >>> check_file_name("report.html").name
    'report.html'
    >>> check_file_name(".")
    Traceback (most recent call last):
        ...
    expunge.core.errors.FileError: .: is a directory, not a file
      hint: add the name of the file
    """
    found = Path(path)
    if found.name in ("", "..") or os.path.isdir(found):  # not Path.is_dir, which raises for a name that is too long
        raise FileError("is a directory, not a file", where=found, hint="add the name of the file")
    return found


def check_directory_name(path: str | os.PathLike[str]) -> Path:
    """Return the path of a directory that is replaced as a whole, unless it has no name by which to replace it.

    Raises:
        FileError: it ends with `.`, `..` or a root.

    >>> from expunge.core.reading.file_names import check_directory_name
    >>> check_directory_name("results").name
    'results'
    """
    found = Path(path)
    if found.name in ("", ".."):
        raise FileError("cannot be replaced as a whole", where=found, hint="name a new directory in it, or another one")
    return found


def check_format(path: str | os.PathLike[str], format: str) -> Path:
    """Return the path of a file to write in a format, unless its name says that it has another one.

    Args:
        path: of the file.
        format: a key of `FORMATS`.

    Raises:
        FileError: see `check_file_name`; or the name ends like that of another format.

    >>> from expunge.core.reading.file_names import check_format
    >>> check_format("report.html", "HTML").name, check_format("report.of.today", "HTML").name
    ('report.html', 'report.of.today')
    >>> check_format("report.pdf", "HTML")
    Traceback (most recent call last):
        ...
    expunge.core.errors.FileError: report.pdf: the file is written as HTML, not as .pdf
      hint: name it report.html
    """
    found, right = check_file_name(path), FORMATS[format]
    ending = found.suffix.lower()
    known = _OTHERS.union(*FORMATS.values()) - set(right)
    if ending in known:
        better = found.with_suffix(right[0]).name
        raise FileError(f"the file is written as {format}, not as {ending}", where=found, hint=f"name it {better}")
    return found


def add_to_name(path: str | os.PathLike[str], text: str) -> Path:
    """Return the path of a file beside another, whose name has an addition at its end.

    Raises:
        FileError: see `check_file_name`.

    >>> from expunge.core.reading.file_names import add_to_name
    >>> add_to_name("retrain.ckpt", ".dense").name
    'retrain.ckpt.dense'
    """
    found = check_file_name(path)
    return found.with_name(f"{found.name}{text}")
