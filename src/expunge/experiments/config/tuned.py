"""Tuned options: the file that `expunge bench tune` writes (docs/formats/tuned.md), and its options in plans.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.core.errors import ConfigError, ExpungeError
from expunge.core.files import PathLike, read_json
from expunge.core.hashing import hash_json
from expunge.core.reading.shape import (
    anything,
    check_shape,
    fail,
    integer,
    mapping,
    maybe,
    number,
    record,
    sequence,
    text,
)
from expunge.core.registry import METHODS

from .run_config import RunConfig, canonical_config

SCHEMA, SCHEMA_VERSION = "expunge.tuned", 1
#: How a trial ended; a `refused` one was not run, because the method does not take these options together.
STATUSES = ("finished", "failed", "refused")
_NAME, _LINE = text(500), text(20_000)
_TRIAL = record(
    {
        "options": mapping(anything, longest=1_000),
        "status": text(known=STATUSES),
        "objective": maybe(number()),
        "passes": maybe(number(low=0)),
    },
    {"message": _LINE, "scores": mapping(number(), longest=1_000)},
)
_SEARCH = record(
    {
        "key": text(pattern="[0-9a-f]{64}"),
        "method": _NAME,
        "labels": mapping(_NAME, longest=1_000, keys=500),
        "options": mapping(anything, longest=1_000),
        "space": mapping(anything, longest=1_000),
        "trials": sequence(_TRIAL, shortest=1, longest=100_000),
        "best": maybe(integer(0)),
    },
    {"seed": integer()},
)
_TUNED = record(
    {
        "plan": _NAME,
        "sampler": _NAME,
        "trials": integer(1),
        "seed": integer(),
        "objective": _NAME,
        "searches": sequence(_SEARCH, longest=10_000),
    }
)


def search_key(config: RunConfig) -> str:
    """Hash of what a search is for: the configuration of a cell without seed, evaluation and runtime.

    The seeds of one setting share a search. A changed recipe, forget set or option of the cell is another search.
    """
    body = canonical_config(config)
    for name in ("seed", "evaluation", "runtime"):
        body.pop(name, None)
    assert config.method is not None
    body["method"] = {"name": METHODS.canonical(config.method.name), "options": dict(config.method.options)}
    return hash_json(body)


def read_tuned(path: PathLike) -> dict[str, Any]:
    """Read the file of a search (docs/formats/tuned.md).

    Raises:
        FileError: the file is missing or damaged, or a value has another type or size.
    """
    found = read_json(path, SCHEMA, SCHEMA_VERSION)
    check_shape(found, _TUNED, where=path, hint="see docs/formats/tuned.md")
    for index, search in enumerate(found["searches"]):
        if search["best"] is not None and search["best"] >= len(search["trials"]):
            fail(search["best"], f"searches.{index}.best", "the index of a trial")
    return found


class TunedOptions:
    """The tuned options of a plan's cells; every file is read once.

    Args:
        plan: the file of the plan; names of files are relative to its directory.
    """

    def __init__(self, plan: Path) -> None:
        self._plan = plan
        self._files: dict[str, Mapping[str, Mapping[str, Any]]] = {}

    def fill(self, config: RunConfig) -> RunConfig:
        """Add the tuned options to a cell with `method.tuned`; other cells are returned as they are.

        Where no trial of the search finished, the cell keeps the options that the plan sets.

        Raises:
            ConfigError: the file cannot be read, or has no search for this cell.
        """
        method = config.method
        if method is None or method.tuned is None:
            return config
        found = self._read(method.tuned).get(search_key(config))
        if found is None:
            raise ConfigError(
                f"{method.tuned} has no search for {method.name} in this setting",
                where=str(self._plan),
                hint=f"it was tuned for another setting: run expunge bench tune {self._plan}",
            )
        if found["best"] is None:
            return config
        options = {**method.options, **found["trials"][found["best"]]["options"]}
        return config.model_copy(update={"method": method.model_copy(update={"options": options})})

    def _read(self, name: str) -> Mapping[str, Mapping[str, Any]]:
        if name not in self._files:
            path = self._plan.parent / name
            try:
                searches = read_tuned(path)["searches"]
            except ExpungeError as error:
                hint = f"expunge bench tune {self._plan} writes it"
                raise ConfigError(f"the tuned options cannot be read ({error.what})", where=path, hint=hint) from error
            self._files[name] = {search["key"]: search for search in searches}
        return self._files[name]
