"""One run from its configuration: original model, unlearned model, scores next to Retrain, report.

The stages use the same store as those of plans: completed stages are cached, interrupted runs resume, and `forget`
after `train` does not train again. Everything that the configuration names is read and checked before any training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ConfigError
from expunge.core.files import PathLike, read_run_file, write_json
from expunge.core.hashing import hash_json
from expunge.core.outcome import FROM_FORGET, Cost, Extent, describe_guarantee, describe_stand_in, list_changed
from expunge.core.show import Summary, plural, repr_html, repr_text, shorten_names
from expunge.core.split import PLANTINGS
from expunge.core.trust import trusting
from expunge.data.reading.index_cache import use_index_directory
from expunge.experiments.config.plan import Cell, Plan
from expunge.experiments.config.run_config import MethodConfig, RunConfig, canonical_config
from expunge.experiments.scheduler.graph import acts_during_training

from .inputs import check_inputs
from .output import (
    RunPaths,
    check_earlier,
    check_output,
    check_replaced,
    find_earlier,
    list_input_files,
    write_results_directory,
)
from .run_stages import get_entry, is_finished, open_state, run_stages

if TYPE_CHECKING:
    from expunge.experiments.scheduler.progress import Reporter
    from expunge.experiments.scheduler.status import PlanState

DEFAULT_STORE = ".expunge"
REFERENCE = "Retrain"


@dataclasses.dataclass(frozen=True)
class ForgetResult:
    """The result of `forget`.

    Attributes:
        paths: model.safetensors, mask.safetensors (sparse models), split.json, trained.json, outcome.json, scores.json,
            details.json and report.html.
        outcome: the body of outcome.json.
        scores: the body of scores.json.
        reference: the scores of the retrained model; empty if the records of D_r are absent.
        replaced: method, request and date of an earlier result that was replaced; empty: there was none, or the same.
    """

    paths: RunPaths
    outcome: Mapping[str, Any]
    scores: Mapping[str, Any]
    reference: Mapping[str, Any]
    replaced: str = ""

    @property
    def carried(self) -> tuple[str, ...]:
        """The state that is, as a whole, unchanged since training on the forgotten records."""
        return tuple(self.outcome["state"]["carried"])

    @property
    def extents(self) -> dict[str, Extent]:
        """How much of the state of the model changed, by kind (`Outcome.extents`)."""
        return {name: Extent.from_json(body) for name, body in self.outcome["state"].get("extent", {}).items()}

    def _summarise(self) -> Summary:
        facts = {
            "guarantee": lambda: str(self.outcome["method"]["guarantee"]),
            "cost": lambda: Cost.from_json(self.outcome["cost"]).describe(),
            "carried": lambda: "; ".join([shorten_names(self.carried), *self._describe_partly()]),
            "scores": lambda: f"{len(self.scores['scores']):,}: see text()",
            "directory": lambda: str(self.paths.directory),
        }
        return Summary(self._describe, facts, lines=True, table=self._rows)

    def _describe_partly(self) -> list[str]:
        return [f"{k}: {e.describe()}" for k, e in self.extents.items() if e.status == "partly rewritten"]

    def _describe(self) -> str:
        verb = "corrected" if self.outcome["request"].get("correction") else "forgotten"
        return f"{self.outcome['method']['name']}, {plural(self.outcome['request']['records'], 'record')} {verb}"

    def _rows(self) -> list[dict[str, str]]:
        from expunge.evaluation import Scores

        return Scores.from_json(self.scores).table()

    __repr__ = repr_text
    _repr_html_ = repr_html

    def text(self) -> str:
        """Scores, cost, the state that is unchanged or partly unchanged since training on D_f, and the paths."""
        from expunge.data.requests import describe_outside, describe_skipped
        from expunge.evaluation import Scores

        selection = self.outcome["request"]["selection"]
        lines = [*describe_skipped(selection), *describe_outside(selection)]
        skipped = "".join(f"\nnote: {line}" for line in lines)
        extents, partly = self.extents, self._describe_partly()
        unchanged = ", ".join(
            f"{name} ({shorten_names(extents[name].names)})" if name in extents and extents[name].names else name
            for name in self.carried
        )
        state = self.outcome["state"]
        names = [name for name, extent in extents.items() if extent.status == "partly rewritten"]
        changed = list_changed(state["rewrote"], state.get("recomputed", ()), names)
        if not unchanged:
            unchanged = "no kind as a whole" if partly or changed else "nothing (all state was made without D_f)"
        if partly:
            unchanged += f"\npartly unchanged since training on D_f: {'; '.join(partly)}"
        if changed:
            unchanged += f"\n{FROM_FORGET}: {', '.join(changed)}"
        for name, extent in extents.items():
            if extent.follows_forget:
                unchanged += f"\n{name} {extent.describe_source()}"
        method = self.outcome["method"]
        guarantee = describe_guarantee(method["guarantee"], method.get("relative_to"), method.get("bound"))
        if stand_in := (self.outcome.get("retain") or {}).get("stand_in"):
            guarantee += f"\nD_r is absent; the method read a stand-in: {describe_stand_in(stand_in)}"
        cost = Cost.from_json(self.outcome["cost"]).describe()
        return (
            f"{Scores.from_json(self.scores).text()}{skipped}\n\ncost: {cost}\n"
            f"unchanged since training on D_f: {unchanged}\n"
            f"guarantee: {guarantee}\n"
            f"{f'an earlier result was replaced: {self.replaced}{chr(10)}' if self.replaced else ''}"
            f"unlearned model: {self.paths.directory}\nreport: {self.paths.directory / 'report.html'}"
        )

    def to_json(self) -> dict[str, Any]:
        body = {**self.paths.to_json(), "scores": self.scores, "reference": self.reference, "outcome": self.outcome}
        return {**body, "replaced": self.replaced}


def make_original_model(
    config: RunConfig,
    output: PathLike,
    *,
    pruned: bool,
    store: PathLike = DEFAULT_STORE,
    reporter: Reporter | None = None,
) -> RunPaths:
    """Train (or import) the original model, optionally prune it, and save it.

    Args:
        config: its section `forget` is used only if it plants records in the training data, and its section `method`
            only if the method acts during training.
        output: the directory for the model; docs/formats/trained.md describes its files.
        pruned: whether to prune the model as configured in the section `sparsity`.
        store: directory of finished stages.
        reporter: receives the progress.

    Raises:
        ConfigError: `pruned` without a section `sparsity`.
        ExpungeError: the configuration is wrong or a stage failed; see `run_stages`.
        Interrupted: Ctrl-C; completed stages are cached.

    >>> from pathlib import Path
    >>> import expunge
    >>> from expunge.workflow import make_original_model
    >>> _ = Path("run.yaml").write_text('''
    ... data: {source: digits}
    ... split: {limit: 100}
    ... model: {name: mlp, options: {widths: [4]}}
    ... training: {recipe: one-cycle, epochs: 2}
    ... sparsity: {sparsity: 0.75, layers: [linear]}
    ... runtime: {device: cpu}
    ... ''')
    >>> config = expunge.load_config("run.yaml")
    >>> paths = make_original_model(config, "pruned", pruned=True, store="cache")
    >>> round(expunge.load_trained(paths.directory).mask.sparsity, 2)
    0.75
    """
    if pruned and config.sparsity is None:
        raise ConfigError("there is no section `sparsity`", hint="for example sparsity.sparsity=0.95")
    with trusting(config.trust):
        method = config.method if config.method and acts_during_training(config.method.name) else None
    planted = config.forget if config.forget is not None and config.forget.by in PLANTINGS else None
    config = config.model_copy(update={"forget": planted, "method": method, **({} if pruned else {"sparsity": None})})
    plan = _make_plan_of([Cell({"method": "original"}, config, 0)], config)
    state = _open_checked_state(plan, config, output, store, originals=False)
    run_stages(state, reporter)
    chain = state.graph.cells[0]
    return write_results_directory([get_entry(state, chain["prune" if pruned else "train"]).path], output)


def make_plan(config: RunConfig) -> Plan:
    """Make the plan of one run: its method, and Retrain as the reference.

    Raises:
        ConfigError: a method without a forget set.
    """
    cells = [Cell({"method": "original"}, config, 0)]
    if config.method is not None and config.forget is not None and config.split.retain is not None:
        cells = [Cell({"method": config.method.name}, config, 0)]  # without D_r there is no reference
    elif config.method is not None:
        if config.forget is None:
            raise ConfigError("there is no section `forget`", hint="for example forget.by=ids forget.file=ids.txt")
        # The seeds of an imported model are unknown: its reference is retrained with new seeds.
        options = {} if config.model.weights is None else {"seeds": "new"}
        reference = config.model_copy(update={"method": MethodConfig(name=REFERENCE, options=options)})
        if config.method.name.casefold() == REFERENCE.casefold():
            reference = config.model_copy(
                update={"method": MethodConfig(name=REFERENCE, options={**options, **config.method.options})}
            )
        cells = [Cell({"method": REFERENCE}, reference, 0)]
        if config.method.name.casefold() != REFERENCE.casefold():
            cells.append(Cell({"method": config.method.name}, config, 0))
    return _make_plan_of(cells, config)


def _make_plan_of(cells: Sequence[Cell], config: RunConfig) -> Plan:
    digest = hash_json([canonical_config(cell.config) for cell in cells])
    return Plan("run", "", Path("run.yaml"), (), (), tuple(cells), REFERENCE, None, (), 1.0, (), digest, config.trust)


def forget(
    config: RunConfig,
    output: PathLike,
    *,
    store: PathLike = DEFAULT_STORE,
    reporter: Reporter | None = None,
    overwrite: bool = False,
) -> ForgetResult:
    """Run a configuration: make an unlearned model, score it next to a retrained reference, and write a report.

    The original model is trained (and pruned), or imported if `model.weights` names a file. Stages that are in the
    store are not run again.

    Args:
        config: a configuration with the sections `forget` and `method`.
        output: the directory for the results; an earlier result of the same method and request is replaced as a whole.
        store: directory of finished stages.
        reporter: receives the progress.
        overwrite: also replace the result of another method or request.

    Raises:
        FileError: the directory has the result of another method or request, or files that expunge did not write.
        ConfigError, RequestError, other ExpungeErrors: the configuration is wrong or a stage failed.
        Interrupted: Ctrl-C; completed stages are cached.

    >>> from pathlib import Path
    >>> import expunge
    >>> from expunge.workflow import forget
    >>> _ = Path("run.yaml").write_text('''
    ... data: {source: digits}
    ... split: {limit: 100}
    ... model: {name: mlp, options: {widths: [4]}}
    ... training: {recipe: one-cycle, epochs: 1}
    ... forget: {by: random, count: 5}
    ... method: {name: FT, options: {epochs: 1}}
    ... runtime: {device: cpu}
    ... ''')
    >>> result = forget(expunge.load_config("run.yaml"), "unlearned", store="cache")
    >>> result.outcome["request"]["records"], len(result.outcome["request"]["record_ids"])
    (5, 5)
    >>> sorted(result.paths.files)[:4]
    ['details.json', 'model.safetensors', 'outcome.json', 'report.html']
    """
    for name in ("forget", "method"):
        if getattr(config, name) is None:
            raise ConfigError(
                f"there is no section `{name}`", hint="docs/formats/config.md shows all keys of a configuration"
            )
    assert config.method is not None
    configuration = config.model_dump(mode="json")
    earlier = find_earlier(output)
    if earlier is not None and not overwrite:
        check_earlier(earlier, config)
    state = _open_checked_state(make_plan(config), config, output, store, originals=True)
    run_stages(state, reporter)
    chain, reference = state.graph.cells[-1], state.graph.cells[0]

    def add_report(directory: Path) -> None:
        from expunge.report import write_report

        from .report import MODEL_FILE, make_report_content

        _add_configuration(directory / "outcome.json", configuration, state)
        provenance = {"configuration": configuration}
        content = make_report_content(
            state, title=config.report.title or "", provenance=provenance,
            ids=config.report.ids, model_file=MODEL_FILE, limits=_list_absence_limits(directory),
        )  # fmt: skip
        write_report(directory / "report.html", content)

    stages = [get_entry(state, chain[stage]).path for stage in ("forget", "score")]
    outcome = read_run_file(stages[0] / "outcome.json", "expunge.outcome", 2)
    replaced = "" if earlier is None else check_replaced(earlier, outcome, overwrite=overwrite)
    paths = write_results_directory(stages, output, add_report)
    return ForgetResult(
        paths,
        read_run_file(paths.directory / "outcome.json", "expunge.outcome", 2),
        read_run_file(paths.directory / "scores.json", "expunge.scores", 2),
        {}
        if config.split.retain is not None
        else read_run_file(get_entry(state, reference["score"]).path / "scores.json", "expunge.scores", 2),
        replaced,
    )


def _list_absence_limits(directory: Path) -> list[str]:
    """What the page does not show if the records of D_r are absent."""
    retain = read_run_file(directory / "outcome.json", "expunge.outcome", 2).get("retain")
    if not retain:
        return []
    found = [
        "The records of D_r are absent: nothing here says how well the model still predicts them, and no retrained "
        "model shows what forgetting should look like."
    ]
    if retain.get("stand_in"):
        found.append(
            f"The method read a stand-in instead of D_r: {describe_stand_in(retain['stand_in'])}. Nothing is promised "
            "of how it compares with D_r."
        )
    return found


def _open_checked_state(
    plan: Plan, config: RunConfig, output: PathLike, store: PathLike, *, originals: bool
) -> PlanState:
    """Open the stages of a run, after all checks that are possible before the first stage runs."""
    check_output(output, list_input_files(config))
    state = open_state(plan, store, originals=originals)
    if not is_finished(state):
        with use_index_directory(state.store.index_path):  # the stages use the records that are read here
            check_inputs(config)
    return state


def _add_configuration(path: Path, configuration: Mapping[str, Any], state: PlanState) -> None:
    """Add the configuration of the run, and the hashes of the files it names, to outcome.json."""
    body = read_run_file(path, "expunge.outcome", 2)
    files = {}
    for stage in ("train", "forget"):
        node = state.graph.nodes[state.graph.cells[-1][stage]]
        files.update({f"{stage}.{name}": digest for name, digest in node.config["files"].items()})
    body = {key: value for key, value in body.items() if key not in ("kind", "schema_version")}
    write_json(path, "expunge.outcome", 2, {**body, "configuration": configuration, "files": files})
