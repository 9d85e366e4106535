"""One run from its configuration: the original model, the unlearned one, its scores beside Retrain, the report.

Every stage goes through the same store as a plan's: nothing is computed twice, an interrupted run goes on where it
stopped, and `forget` after `train` finds the trained model there.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.core.errors import ConfigError, ExpungeError, FileError, Interrupted
from expunge.core.files import PathLike, read_json, staged_directory
from expunge.core.hashing import hash_json
from expunge.experiments.cache import Entry, Store
from expunge.experiments.config import MethodConfig, RunConfig
from expunge.experiments.graph import graph_of
from expunge.experiments.plan import Cell, Plan, portable
from expunge.experiments.progress import Reporter, Silent
from expunge.experiments.runner import DEFAULT_STAGES
from expunge.experiments.stages import stage_table
from expunge.experiments.state import PlanState
from expunge.experiments.work import work
from expunge.report.html import write_report

from .reporting import report_of

DEFAULT_STORE = ".expunge"
REFERENCE = "Retrain"
_AGAIN = "what was finished is kept; the same command goes on from there"


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """Where the results of a command lie.

    Attributes:
        directory: the directory.
        files: names of the files in it, sorted.
    """

    directory: Path
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"directory": str(self.directory), "files": list(self.files)}


@dataclasses.dataclass(frozen=True)
class ForgetResult:
    """What `forget` came to.

    Attributes:
        paths: model.safetensors, mask.safetensors (sparse models), split.json, trained.json, outcome.json, scores.json,
            details.json and report.html.
        outcome: the body of outcome.json.
        scores: the body of scores.json.
        reference: the scores of the retrained model.
    """

    paths: RunPaths
    outcome: Mapping[str, Any]
    scores: Mapping[str, Any]
    reference: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {**self.paths.to_json(), "scores": self.scores, "outcome": self.outcome}


def original_model(
    config: RunConfig,
    output: PathLike,
    *,
    pruned: bool,
    store: PathLike = DEFAULT_STORE,
    reporter: Reporter | None = None,
) -> RunPaths:
    """Train (or adopt) the original model, prune it if asked, and put it into `output`.

    Args:
        config: what to train; its sections `forget` and `method` are not read.
        output: a directory; see docs/formats/trained.md for its files.
        pruned: whether to prune as the section `sparsity` says.
        store: directory of finished stages.
        reporter: told of progress.

    Raises:
        ConfigError: `pruned` without a section `sparsity`.
        ExpungeError: whatever stood in the way.
        Interrupted: Ctrl-C; the same call goes on from there.
    """
    if pruned and config.sparsity is None:
        raise ConfigError("there is no section `sparsity`", hint="for example sparsity.sparsity=0.95")
    config = config.model_copy(update={"forget": None, "method": None, **({} if pruned else {"sparsity": None})})
    state = _run(plan_of(config), store, reporter)
    chain = state.graph.cells[0]
    return _export([_entry(state, chain["prune" if pruned else "train"])], Path(output))


def plan_of(config: RunConfig) -> Plan:
    """The plan of one run: its method, and Retrain as the reference.

    Raises:
        ConfigError: a method without a forget set.
    """
    cells = [Cell({"method": "original"}, config, 0)]
    if config.method is not None:
        if config.forget is None:
            raise ConfigError("there is no section `forget`", hint="for example forget.kind=ids forget.file=ids.txt")
        # The seeds of a model from elsewhere are not known: its reference is a retrained model with seeds of its own.
        options = {} if config.model.weights is None else {"same_seed": False}
        reference = config.model_copy(update={"method": MethodConfig(name=REFERENCE, options=options)})
        cells = [Cell({"method": REFERENCE}, reference, 0)]
        if config.method.name.casefold() != REFERENCE.casefold():
            cells.append(Cell({"method": config.method.name}, config, 0))
    digest = hash_json([portable(cell.config) for cell in cells])
    return Plan("run", "", Path("run.yaml"), (), (), tuple(cells), REFERENCE, 1.0, (), digest)


def forget(
    config: RunConfig,
    output: PathLike,
    *,
    store: PathLike = DEFAULT_STORE,
    reporter: Reporter | None = None,
) -> ForgetResult:
    """From a configuration to an unlearned model, its scores beside a retrained reference, and a report.

    The original model is trained (and pruned), or adopted where `model.weights` names a file; stages that the store
    already has are not run again.

    Args:
        config: a whole configuration, with sections `forget` and `method`.
        output: a directory; it appears whole, or stays as it was.
        store: directory of finished stages.
        reporter: told of progress.

    Raises:
        ConfigError, RequestError and other ExpungeErrors: whatever stood in the way.
        Interrupted: Ctrl-C; the same call goes on from there.
    """
    for name in ("forget", "method"):
        if getattr(config, name) is None:
            raise ConfigError(f"there is no section `{name}`", hint="docs/tutorial.md shows a whole configuration")
    state = _run(plan_of(config), store, reporter, originals=True)
    chain, reference = state.graph.cells[-1], state.graph.cells[0]
    page = report_of(state, title=f"Forgetting with {config.method.name}")  # type: ignore[union-attr]
    entries = [_entry(state, chain["forget"]), _entry(state, chain["score"])]
    paths = _export(entries, Path(output), report=lambda at: write_report(at / "report.html", page))
    return ForgetResult(
        paths,
        read_json(paths.directory / "outcome.json", "expunge.outcome", 1),
        read_json(paths.directory / "scores.json", "expunge.scores", 1),
        read_json(_entry(state, reference["score"]).path / "scores.json", "expunge.scores", 1),
    )


def rescore(
    directory: PathLike,
    config: RunConfig,
    *,
    reference: PathLike | None = None,
) -> Any:
    """Score an unlearned model that lies in a directory again, against its own request.

    Args:
        directory: what `forget` wrote (or a trained model with an outcome.json beside it).
        config: data, evaluation and runtime are read from it.
        reference: directory of the retrained model, or a scores.json of it; None: no gaps.

    Returns:
        `expunge.evaluation.Scores`.
    """
    from expunge.core.outcome import Cost
    from expunge.core.request import ForgetRequest
    from expunge.core.split import as_ids
    from expunge.data import load_records
    from expunge.evaluation import Scores, evaluate
    from expunge.models import load_trained
    from expunge.training import Runtime

    records = load_records(config.data.source, data_dir=config.data.dir, **config.data.options)
    outcome = read_json(Path(directory) / "outcome.json", "expunge.outcome", 1)
    asked, cost = outcome["request"], outcome["cost"]
    request = ForgetRequest(
        as_ids(asked["record_ids"]), selection=asked["selection"], forgotten_class=asked["forgotten_class"]
    )
    beside = None
    if reference is not None:
        at = Path(reference)
        beside = load_trained(at) if (at / "trained.json").exists() else Scores.load(at)
    return evaluate(
        load_trained(directory),
        request,
        records,
        reference=beside,
        cost=Cost(cost["trained_records"], cost["forward_records"], cost["retain_records"], cost["seconds"]),
        runtime=Runtime(**config.runtime.model_dump()),
        seed=config.seed,
        **config.evaluation.model_dump(),
    )


def _run(plan: Plan, store: PathLike, reporter: Reporter | None, *, originals: bool = False) -> PlanState:
    state = PlanState(plan, Store(store), stage_table(DEFAULT_STAGES), graph=graph_of(plan.cells, originals=originals))
    try:
        failures = work(state, reporter or Silent(), since=time.time())
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted("stopped", hint=_AGAIN) from error
    for message in failures.values():
        raise ExpungeError(message)
    return state


def _entry(state: PlanState, node_id: str) -> Entry:
    entry = state.entry(state.graph.nodes[node_id])
    assert entry is not None
    return entry


def _export(entries: list[Entry], output: Path, report: Any = None) -> RunPaths:
    """Copy finished stages into one directory, which appears whole."""
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not (output / "trained.json").exists())):
        raise FileError(
            "is there already, and is not the result of an earlier run",
            where=output,
            hint="choose another output directory, or empty this one",
        )
    with staged_directory(output) as at:
        for entry in entries:
            shutil.copytree(entry.path, at, dirs_exist_ok=True, ignore=shutil.ignore_patterns("entry.json"))
        if report is not None:
            report(at)
    return RunPaths(output, tuple(sorted(str(p.relative_to(output)) for p in output.rglob("*") if p.is_file())))
