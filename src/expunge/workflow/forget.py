"""One run from its configuration: the original model, the unlearned one, its scores beside Retrain, the report.

Every stage goes through the same store as a plan's: nothing is computed twice, an interrupted run goes on where it
stopped, and `forget` after `train` finds the trained model there. All that the configuration names is read and checked
before anything is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ConfigError
from expunge.core.files import PathLike, read_json, write_json
from expunge.core.hashing import hash_json
from expunge.experiments.config.plan import Cell, Plan, portable
from expunge.experiments.config.run_config import MethodConfig, RunConfig

from .inputs import check_inputs
from .output import RunPaths, check_output, export, input_files
from .run_stages import entry_of, is_finished, open_state, run_stages

if TYPE_CHECKING:
    from expunge.experiments.scheduler.progress import Reporter
    from expunge.experiments.scheduler.status import PlanState

DEFAULT_STORE = ".expunge"
REFERENCE = "Retrain"


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

    @property
    def still_remembers(self) -> tuple[str, ...]:
        """The state that still depends on the forgotten records."""
        return tuple(self.outcome["state"]["still_remembers"])

    def text(self) -> str:
        """The scores, what still remembers, and where the files are."""
        from expunge.core.outcome import GUARANTEES
        from expunge.evaluation import Scores

        remembers = ", ".join(self.still_remembers) or "no state was left as it was"
        guarantee = self.outcome["method"]["guarantee"]
        return (
            f"{Scores.from_json(self.scores).text()}\n\nstill remembers: {remembers}\n"
            f"guarantee: {guarantee} ({GUARANTEES[guarantee]})\n"
            f"unlearned model: {self.paths.directory}\nreport: {self.paths.directory / 'report.html'}"
        )

    def to_json(self) -> dict[str, Any]:
        return {**self.paths.to_json(), "scores": self.scores, "reference": self.reference, "outcome": self.outcome}


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
        ExpungeError: whatever stood in the way; see `running.run_stages`.
        Interrupted: Ctrl-C; the same call goes on from there.
    """
    if pruned and config.sparsity is None:
        raise ConfigError("there is no section `sparsity`", hint="for example sparsity.sparsity=0.95")
    config = config.model_copy(update={"forget": None, "method": None, **({} if pruned else {"sparsity": None})})
    state = _prepared(config, output, store, originals=False)
    run_stages(state, reporter)
    chain = state.graph.cells[0]
    return export([entry_of(state, chain["prune" if pruned else "train"]).path], output)


def plan_of(config: RunConfig) -> Plan:
    """The plan of one run: its method, and Retrain as the reference.

    Raises:
        ConfigError: a method without a forget set.
    """
    cells = [Cell({"method": "original"}, config, 0)]
    if config.method is not None:
        if config.forget is None:
            raise ConfigError("there is no section `forget`", hint="for example forget.by=ids forget.file=ids.txt")
        # The seeds of a model from elsewhere are not known: its reference is a retrained model with seeds of its own.
        options = {} if config.model.weights is None else {"seeds": "new"}
        reference = config.model_copy(update={"method": MethodConfig(name=REFERENCE, options=options)})
        if config.method.name.casefold() == REFERENCE.casefold():
            reference = config.model_copy(
                update={"method": MethodConfig(name=REFERENCE, options={**options, **config.method.options})}
            )
        cells = [Cell({"method": REFERENCE}, reference, 0)]
        if config.method.name.casefold() != REFERENCE.casefold():
            cells.append(Cell({"method": config.method.name}, config, 0))
    digest = hash_json([portable(cell.config) for cell in cells])
    return Plan("run", "", Path("run.yaml"), (), (), tuple(cells), REFERENCE, None, (), 1.0, (), digest, config.trust)


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
            raise ConfigError(
                f"there is no section `{name}`", hint="docs/formats/config.md shows a whole configuration"
            )
    assert config.method is not None
    method, whole = config.method.name, config.model_dump(mode="json")
    state = _prepared(config, output, store, originals=True)
    run_stages(state, reporter)
    chain, reference = state.graph.cells[-1], state.graph.cells[0]

    def finish(at: Path) -> None:
        from expunge.report import write_report

        from .report import report_of

        _complete_outcome(at / "outcome.json", whole, state)
        page = report_of(state, title=f"Forgetting with {method}", provenance={"configuration": whole})
        write_report(at / "report.html", page)

    paths = export([entry_of(state, chain[stage]).path for stage in ("forget", "score")], output, finish)
    return ForgetResult(
        paths,
        read_json(paths.directory / "outcome.json", "expunge.outcome", 2),
        read_json(paths.directory / "scores.json", "expunge.scores", 2),
        read_json(entry_of(state, reference["score"]).path / "scores.json", "expunge.scores", 2),
    )


def _prepared(config: RunConfig, output: PathLike, store: PathLike, *, originals: bool) -> PlanState:
    """The stages of a run, after every check that can be made before the first of them runs."""
    check_output(output, input_files(config))
    state = open_state(plan_of(config), store, originals=originals)
    if not is_finished(state):
        check_inputs(config)
    return state


def _complete_outcome(path: Path, configuration: Mapping[str, Any], state: PlanState) -> None:
    """Add to outcome.json what no single stage knows: the run's configuration, and hashes of the files it names."""
    body = read_json(path, "expunge.outcome", 2)
    files = {}
    for stage in ("train", "forget"):
        node = state.graph.nodes[state.graph.cells[-1][stage]]
        files.update({f"{stage}.{name}": digest for name, digest in node.config["files"].items()})
    body = {key: value for key, value in body.items() if key not in ("kind", "schema_version")}
    write_json(path, "expunge.outcome", 2, {**body, "configuration": configuration, "files": files})
