"""The registry of stages, and the inputs that a stage gets.

A stage is a function `run(inputs, out)` in its own file: it writes its results into the directory `out` and returns the
hash of what later stages depend on. Its file is imported when it runs; until then, its facts are read from its source.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.core.registry import REGISTRIES, STAGES, Definition, is_reference
from expunge.core.registry.custom_code import naming
from expunge.core.show import repr_fields

if TYPE_CHECKING:
    from expunge.training.progress import Progress


@dataclasses.dataclass(frozen=True)
class StageInputs:
    """The inputs of a stage.

    Attributes:
        config: the part of the configuration that the stage's key covers.
        directories: directories of earlier stages, by input name (`data`, `trained`, `outcome`, `reference`, ...).
        output_hashes: output hashes of those stages, by input name.
        data_dir: directory of the data source's files, or None.
        work_dir: a directory for checkpoints; it is kept after an interruption and removed after success.
        progress: callback for progress, or None.
    """

    config: Mapping[str, Any]
    directories: Mapping[str, Path]
    output_hashes: Mapping[str, str]
    data_dir: str | None
    work_dir: Path
    progress: Progress | None = None

    __repr__ = repr_fields


Run: TypeAlias = "Callable[[StageInputs, Path], str]"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: its place in the graph of a plan; also the directory of its entries in the store.
        version: raised when results change although the source code does not.
        module: the module that defines it.
        reads_data: whether it reads the data source; the source's fingerprint and code are then part of the key.
        uses: kinds of registered code (`scores`, `criteria`, ...) that it uses whatever its configuration names; the
            code of all built-in entries of these kinds is part of the key.
        function: the name of the function in `module`.
        registered: the name, or `package.module:function`, that it is registered by; empty: `name`.
    """

    name: str
    version: int
    module: str
    reads_data: bool = False
    uses: tuple[str, ...] = ()
    function: str = "run"
    registered: str = ""

    __repr__ = repr_fields

    def run(self, inputs: StageInputs, out: Path) -> str:
        """Import and run the stage; returns its output hash."""
        STAGES.get(self.registered or self.name)  # imports the module, if the owner agreed to it
        function: Run = getattr(importlib.import_module(self.module), self.function)
        with naming("stage", self.registered or self.name, function):
            return function(inputs, out)


def register_stage(
    name: str, *, version: int, reads_data: bool = False, uses: Sequence[str] = ()
) -> Callable[[Run], Run]:
    """Register `run(inputs, out) -> output hash` as a stage. Write the arguments as literals.

    Args:
        name: name of the stage; a plan runs a stage of this name, or one that `run_plan(stages=...)` names instead.
        version: see `Stage`; also the next two.
        reads_data: whether it reads the data source.
        uses: kinds of registered code that it uses whatever its configuration names.

    Raises:
        ConfigError: the name is registered already, or a kind does not exist.

    Example:
        >>> from expunge.core.registry import STAGES
        >>> with STAGES.temporary():  # only for this example
        ...     @register_stage("count", version=2)
        ...     def run(inputs, out):
        ...         return "0"
        ...     STAGES.get("Count").version
        2
    """
    for kind in uses:
        if kind not in REGISTRIES:
            raise ConfigError(f"there is no kind {kind!r}", where=name, hint=f"the kinds are {', '.join(REGISTRIES)}")

    def decorate(function: Run) -> Run:
        module, attribute = function.__module__, function.__qualname__
        STAGES.add(name, Stage(name, version, module, reads_data, tuple(uses), attribute, name), function)
        return function

    return decorate


def get_stage(registered: str, name: str | None = None) -> Stage:
    """Look up a stage; the file of a built-in stage or a plug-in is read, not imported.

    Args:
        registered: a registered name, or `package.module:function`.
        name: the place in the graph that it takes; default: that of its own name.

    Raises:
        ConfigError: there is no such stage.
        TrustError: the owner did not agree to the code of a reference.
    """
    if is_reference(registered):
        found: Stage = STAGES.get(registered)
    else:
        known = STAGES.describe(registered)
        facts = known.facts
        if "version" in facts:
            reads_data, uses = bool(facts.get("reads_data", False)), tuple(facts.get("uses", ()))
            found = Stage(known.name, facts["version"], known.module, reads_data, uses, known.qualname)
        else:  # not a literal
            found = STAGES.get(registered)
    return dataclasses.replace(found, name=name or found.name, registered=registered)


def load_stage_table(stages: Mapping[str, str] | None = None) -> dict[str, Stage]:
    """Make the table of stages: place in the graph to stage.

    Args:
        stages: stages that take the place of built-in ones: place to registered name or `package.module:function`.

    Raises:
        ConfigError: there is no such place or stage.
        TrustError: the owner did not agree to the code of a reference.

    Example:
        >>> load_stage_table()["data"].reads_data, load_stage_table({"score": "data"})["score"].module
        (True, 'expunge.experiments.stages.data')
    """
    table = {definition.name: get_stage(definition.name) for definition in STAGES.definitions() if _is_own(definition)}
    for name, registered in (stages or {}).items():
        if name not in table:
            raise ConfigError(f"a plan has no stage {name!r}", where="stages", hint=unknown_name_hint(name, table))
        table[name] = get_stage(registered, name)
    return table


def _is_own(definition: Definition) -> bool:
    return definition.module.startswith("expunge.")
