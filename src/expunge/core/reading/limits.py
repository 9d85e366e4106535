"""Limits for reading files: how much memory and time one file may take, and how to raise the limit.

An imported file can declare more than it contains (an npz header of 4 TB), or expand to more than its size (a zip bomb,
a YAML alias bomb). So readers count first and compare the count with a limit of this module. An environment variable
raises a limit; its value is an integer, optionally with K, M, G or T (powers of 1024). The constants are far above
what real files need. docs/data.md lists both.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path

from expunge.core.errors import ConfigError, ExpungeError, FileError

_MI = 2**20
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

#: Levels of nested lists and mappings in YAML and in JSON.
YAML_DEPTH, JSON_DEPTH = 40, 100
#: Digits of an integer in JSON.
JSON_DIGITS = 40
#: Axes of a plan, and keys that one label of an axis or one adjustment sets.
PLAN_AXES, PLAN_SETTINGS = 64, 1_000
#: Characters of a label on an axis of a plan.
LABEL_LENGTH = 500
#: Layers of a reference architecture, and the largest size of one.
LAYERS, LAYER_SIZE = 2_000, 2**31 - 1
#: Characters of a record id, and classes of a data set.
ID_LENGTH, CLASSES = 1_000, 100_000
#: Models of one ensemble (all are in memory), permutations of the leakage measurement, and their product.
MODELS, PERMUTATIONS, LEAKAGE_LABELS = 4_096, 100_000, 10_000_000
#: Rounds of a method, clusters of representatives, and refinements of bounds (each twice as long as the one before).
ROUNDS, CLUSTERS, EFFORT = 10_000, 100_000, 24
#: Near copies of one record that are planted.
LOOK_ALIKES = 1_000
#: Processes that read the records of a stream.
WORKERS = 256
#: Columns of a CSV file, dimensions of an array, bytes of the directory of an npz file.
COLUMNS, DIMENSIONS, ZIP_DIRECTORY = 100_000, 16, 16 * _MI
#: Without EXPUNGE_MAX_BYTES, compressed contents may be this many bytes, or this many times their file.
EXPANSION_FREE, EXPANSION_RATIO = 256 * _MI, 100
#: Bytes that a record takes in addition to its values (id, index); for counting.
RECORD_COST = 200


def _half_of_memory() -> int:
    """Half of the memory available to this process: of the machine, or of its control group."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        total = 8 * 2**30
    try:
        group = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        total = min(total, int(group))
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        pass
    return total // 2


@dataclasses.dataclass(frozen=True)
class ReadLimit:
    """One limit.

    Attributes:
        variable: the environment variable that sets it.
        default: the limit if the variable is not set, or a function that returns it.
        unit: what is counted.
    """

    variable: str
    default: int | Callable[[], int]
    unit: str

    @property
    def is_set(self) -> bool:
        """Whether the environment variable is set."""
        return bool(os.environ.get(self.variable))

    def value(self) -> int:
        """The limit in effect.

        Raises:
            ConfigError: the environment variable is not a positive integer.
        """
        text = os.environ.get(self.variable)
        if not text:
            return self.default if isinstance(self.default, int) else self.default()
        found = re.fullmatch(r"([0-9]{1,18}) ?([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
        if found is None or int(found[1]) < 1:
            raise ConfigError(
                f"is {text[:40]!r}, not a positive integer", where=self.variable, hint="such as 500000 or 4G"
            )
        return int(found[1]) * _UNITS[found[2].upper()]

    def check(
        self, found: int, what: str, *, where: object, error: type[ExpungeError] = FileError, least: int | None = None
    ) -> None:
        """Raise `error` if `found` is above the limit.

        Args:
            found: the count.
            what: the beginning of the message, before the count: "is", "has arrays of", "has".
            where: the file, or the location in it.
            error: class of the error.
            least: a smaller limit that applies in this case.
        """
        limit = self.value() if least is None else min(least, self.value())
        if found > limit:
            raise error(
                f"{what} {_format_count(found)} {self.unit}; the limit is {limit:,}",
                where=where,
                hint=f"where you trust the file and have the memory, set the environment variable {self.variable}",
            )

    def check_expanded(self, found: int, stored: int, *, where: object, error: type[ExpungeError] = FileError) -> None:
        """Raise `error` if compressed contents of `found` bytes are too large for a file of `stored` bytes.

        If the environment variable is set, only its limit applies.
        """
        ratio = None if self.is_set else max(EXPANSION_FREE, EXPANSION_RATIO * stored)
        self.check(found, f"takes {stored:,} bytes on disk and expands to", where=where, error=error, least=ratio)

    def max_expanded(self, stored: int) -> int:
        """The largest size, in bytes, to which a compressed file of `stored` bytes may expand."""
        return self.value() if self.is_set else min(self.value(), max(EXPANSION_FREE, EXPANSION_RATIO * stored))


def _format_count(number: int) -> str:
    return f"{number:,}" if abs(number) < 10**30 else "more than 10^30"


#: One data file: its size, its expanded size, and the size of the arrays made from it.
BYTES = ReadLimit("EXPUNGE_MAX_BYTES", _half_of_memory, "bytes")
#: A JSON file, a list of record ids or of class names.
TEXT_BYTES = ReadLimit("EXPUNGE_MAX_TEXT_BYTES", 64 * _MI, "bytes")
#: Values, keys and brackets of a JSON text, counted by its commas and opening brackets.
JSON_VALUES = ReadLimit("EXPUNGE_MAX_JSON_VALUES", 5_000_000, "values")
#: The header of a safetensors file: its size, and the tensors in it.
HEADER_BYTES = ReadLimit("EXPUNGE_MAX_HEADER_BYTES", 16 * _MI, "bytes")
TENSORS = ReadLimit("EXPUNGE_MAX_TENSORS", 100_000, "tensors")
YAML_BYTES = ReadLimit("EXPUNGE_MAX_YAML_BYTES", _MI, "bytes")
#: Keys, items and values of a YAML file; every alias counts as what it refers to.
YAML_NODES = ReadLimit("EXPUNGE_MAX_YAML_NODES", 50_000, "nodes")
#: Cells of a plan, before `exclude`; and cells times nodes of its YAML.
PLAN_CELLS = ReadLimit("EXPUNGE_MAX_PLAN_CELLS", 10_000, "cells")
PLAN_NODES = ReadLimit("EXPUNGE_MAX_PLAN_NODES", 10_000_000, "nodes in all cells")
#: Cells times the characters of the YAML; cells times the keys that labels, adjustments and overrides set.
PLAN_TEXT = ReadLimit("EXPUNGE_MAX_PLAN_TEXT", 512 * _MI, "characters in all cells")
PLAN_KEYS = ReadLimit("EXPUNGE_MAX_PLAN_KEYS", 1_000_000, "keys set in all cells")
#: Numbers in a network (parameters and buffers), and in the largest activation of one record.
PARAMETERS = ReadLimit("EXPUNGE_MAX_PARAMETERS", 250_000_000, "parameters")
ACTIVATIONS = ReadLimit("EXPUNGE_MAX_ACTIVATIONS", 2**26, "numbers")
#: Multiply-adds of a reference network for one record (VGG-16 takes 15 G for an image of 224 x 224).
WORK = ReadLimit("EXPUNGE_MAX_WORK", 2**35, "multiply-adds")

#: The limits that environment variables can raise.
LIMITS = (
    BYTES, TEXT_BYTES, JSON_VALUES, HEADER_BYTES, TENSORS, YAML_BYTES, YAML_NODES, PLAN_CELLS, PLAN_NODES, PLAN_TEXT,
    PLAN_KEYS, PARAMETERS, ACTIVATIONS, WORK,
)  # fmt: skip
