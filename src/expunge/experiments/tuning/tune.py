"""Tune the options of a plan's methods: as many trials for each method, on a proxy of every request.

A trial is a cell of a plan: its stages are in the store, so a search can be interrupted and resumed, and repeated
trials cost nothing. The objective is the disparity average to a model that was retrained without the proxy's records.
Neither the retrained reference of the real request nor any score of its records is computed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.errors import ConfigError, ExpungeError
from expunge.core.files import PathLike, write_json, write_text
from expunge.core.hashing import hash_json
from expunge.core.reading.file_names import check_format
from expunge.core.registry import METHODS
from expunge.core.show import Summary, plural, repr_fields, repr_text
from expunge.core.trust import Trust, trusting
from expunge.experiments.config.plan import Cell, Plan, load_plan
from expunge.experiments.config.registry_checks import make_checked_method
from expunge.experiments.config.run_config import RunConfig, canonical_config
from expunge.experiments.config.tuned import SCHEMA, SCHEMA_VERSION, search_key
from expunge.experiments.scheduler.progress import Reporter
from expunge.experiments.scheduler.run import run_plan
from expunge.experiments.store.shared import open_store
from expunge.methods.registry import read_options
from expunge.methods.space import Domain, read_space

from .samplers import Sampler, make_sampler

OBJECTIVE = "Disparity average"
#: Scores of a trial that the file of the search has.
SHOWN = ("UA", "MIA-Efficacy", "RA", "TA")
#: Cells of one plan of trials: its file must not pass the limits of plan files.
_MOST_CELLS = 400


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """The search for one method in one setting.

    Attributes:
        cell: the cell of the plan that it is for, with the first of its seeds.
        labels: its labels, without those of the seeds.
        reference: the configuration of its reference.
        space: what is drawn: the method's search space without the options that the plan sets.
        sampler: what draws.
    """

    cell: Cell
    labels: Mapping[str, str]
    reference: RunConfig
    space: Mapping[str, Domain]
    sampler: Sampler

    __repr__ = repr_fields

    @property
    def method(self) -> str:
        """The registered name of the method."""
        assert self.cell.config.method is not None
        return METHODS.canonical(self.cell.config.method.name)


@dataclasses.dataclass(frozen=True)
class TuneRun:
    """The result of a search.

    Attributes:
        path: the file that was written.
        body: its content (docs/formats/tuned.md).
        computed: number of stages that were computed; the others were in the store.
    """

    path: Path
    body: Mapping[str, Any]
    computed: int

    def _summarise(self) -> Summary:
        facts = {"file": lambda: str(self.path), "sampler": lambda: str(self.body["sampler"])}
        searches, trials = len(self.body["searches"]), self.body["trials"]
        return Summary(lambda: f"{searches} searches of {plural(trials, 'trial')}", facts, lines=True)

    __repr__ = repr_text

    def text(self) -> str:
        """One line for each search: the objective of the defaults and of the best trial, with its options."""
        lines = [f"{self.body['objective']}, defaults -> best of {self.body['trials']} trials, on the proxy request"]
        for search in self.body["searches"]:
            trials, best = search["trials"], search["best"]
            name = ", ".join(search["labels"].values())
            failed = sum(trial["status"] != "finished" for trial in trials)
            note = f" ({failed} of {len(trials)} trials failed)" if failed else ""
            if best is None:
                lines.append(f"{name}: no trial finished{note}: {trials[0].get('message', '')}")
                continue
            start = trials[0]["objective"]
            chosen = ", ".join(f"{key}={value}" for key, value in trials[best]["options"].items()) or "the defaults"
            shown = "-" if start is None else f"{start:.2f}"
            lines.append(f"{name}: {shown} -> {trials[best]['objective']:.2f}: {chosen}{note}")
        return "\n".join(lines)


def tune_plan(
    path: PathLike,
    overrides: Iterable[str] = (),
    *,
    store: PathLike,
    trials: int = 10,
    seed: int = 0,
    sampler: str = "random",
    output: PathLike | None = None,
    workers: int = 1,
    scheduler: str = "processes",
    reporter: Reporter | None = None,
    trust: Sequence[str] | Trust = (),
) -> TuneRun:
    """Search for options of the methods of a plan, with the same number of trials for each.

    Searched are the cells with `method.tuned`, or, if there are none, all cells whose method has a search space. Cells
    that differ only in their seeds share a search, on the first seed. Its first trial has the defaults; the options
    that the plan sets are not searched.

    Args:
        path: the plan.
        overrides: see `load_plan`.
        store: directory of finished stages, or a URL; that of the plan's runs, so that originals are shared.
        trials: number of trials of each search, the defaults among them.
        seed: of the draws and of the proxy requests.
        sampler: `random`, `optuna:tpe` or `optuna:random`.
        output: the file to write; default: the one that `method.tuned` names, or `NAME.tuned.json` beside the plan.
        workers: number of processes; with an Optuna sampler, trials of one search run one after the other.
        scheduler: see `run_plan`.
        reporter: receives the progress.
        trust: see `load_plan`.

    Raises:
        ConfigError: the plan is not valid or has nothing to tune; a request has no proxy; the sampler is unknown.
        Interrupted: completed trials are in the store; the same call resumes.

    >>> from pathlib import Path
    >>> from expunge.experiments import tune_plan
    >>> _ = Path("plan.yaml").write_text('''
    ... name: small
    ... base:
    ...   data: {source: digits}
    ...   split: {limit: 100}
    ...   model: {name: mlp, options: {widths: [4]}}
    ...   training: {recipe: one-cycle, epochs: 1}
    ...   forget: {by: random, count: 5}
    ...   runtime: {device: cpu}
    ... grid: {method: [{name: Retrain}, {name: GA}]}
    ... ''')
    >>> run = tune_plan("plan.yaml", store="cache", trials=2)
    >>> [trial["status"] for trial in run.body["searches"][0]["trials"]], run.path.name
    (['finished', 'finished'], 'plan.tuned.json')
    """
    if trials < 1:
        raise ConfigError(f"{trials} trials: at least one is needed", where="trials")
    plan = load_plan(path, overrides, trust=trust, fill=False)
    with trusting(plan.trust):
        searches = find_searches(plan, sampler, seed)
    target = check_format(output, "JSON") if output is not None else _find_output(plan, searches)
    found: dict[int, list[dict[str, Any]]] = {place: [] for place in range(len(searches))}
    computed = 0
    rounds = [[i] for i in range(trials)] if searches[0].sampler.adapts else [list(range(trials))]
    for numbers in rounds:
        asked = [(place, i, s.sampler.ask(i)) for place, s in enumerate(searches) for i in numbers]
        asked = [(place, i, options if i else {}) for place, i, options in asked]
        for start in range(0, len(asked), _MOST_CELLS):
            part = asked[start : start + _MOST_CELLS]
            results, count = _run_trials(plan, searches, part, seed, store, workers, scheduler, reporter)
            computed += count
            for (place, i, _), trial in zip(part, results, strict=True):
                found[place].append(trial)
                searches[place].sampler.tell(i, trial["objective"])
    body = {
        "plan": plan.name,
        "sampler": sampler,
        "trials": trials,
        "seed": seed,
        "objective": OBJECTIVE,
        "searches": [_describe_search(search, found[place]) for place, search in enumerate(searches)],
    }
    write_json(target, SCHEMA, SCHEMA_VERSION, body, lines=("searches",))
    return TuneRun(target, body, computed)


def find_searches(plan: Plan, sampler: str, seed: int) -> list[Search]:
    """The searches of a plan; see `tune_plan`. The plan was loaded without tuned options.

    Raises:
        ConfigError: nothing is to be tuned; a method has no search space, or a request no proxy.
    """
    axes = {axis.name for axis in plan.axes if axis.role == "replicate"}
    cells = [cell for cell in plan.cells if cell.config.method is not None and plan.cells[cell.reference] is not cell]
    named = [cell for cell in cells if cell.config.method is not None and cell.config.method.tuned is not None]
    found: dict[str, Search] = {}
    for cell in named or cells:
        config = cell.config
        assert config.method is not None
        assert config.forget is not None
        declared = read_space(config.method.name)
        if not declared:
            if named:
                raise ConfigError(
                    f"{config.method.name} declares no search space, so it cannot be tuned", where=cell.name,
                    hint="exclude the cell",
                )  # fmt: skip
            continue
        key = search_key(config)
        if key in found:
            continue
        if config.forget.by == "correct":
            raise ConfigError("a correction has no proxy request, so nothing can be tuned on it", where=cell.name)
        space = {option: domain for option, domain in declared.items() if option not in config.method.options}
        name = METHODS.canonical(config.method.name)
        defaults = {field.name: field.default for field in read_options(name).fields}
        labels = {axis: label for axis, label in cell.labels.items() if axis not in axes}
        reference = plan.cells[cell.reference].config
        found[key] = Search(cell, labels, reference, space, make_sampler(sampler, name, space, seed, defaults))
    if not found:
        raise ConfigError("the plan has no method with a search space", where=plan.path)
    return list(found.values())


def _find_output(plan: Plan, searches: Sequence[Search]) -> Path:
    methods = [search.cell.config.method for search in searches]
    names = {method.tuned for method in methods if method is not None and method.tuned is not None}
    if len(names) > 1:
        raise ConfigError(
            f"the cells name several files of tuned options: {', '.join(sorted(names))}", where=plan.path,
            hint="name one file",
        )  # fmt: skip
    return plan.path.parent / names.pop() if names else plan.path.with_name(f"{plan.path.stem}.tuned.json")


def make_trial(config: RunConfig, options: Mapping[str, Any], seed: int) -> RunConfig:
    """The configuration of a trial: the cell's, for the proxy of its request, with further options.

    Args:
        config: of a cell, or of its reference.
        options: drawn ones.
        seed: of the proxy request.
    """
    assert config.forget is not None
    assert config.method is not None
    proxy = {"by": "proxy", "of": config.forget.model_dump(mode="json", exclude_none=True), "seed": seed}
    method = {"name": config.method.name, "options": {**config.method.options, **options}}
    evaluation = {"svc_records": config.evaluation.svc_records}
    body = config.model_dump(mode="json", exclude_defaults=True, exclude={"report", "output"})
    return RunConfig.model_validate({**body, "forget": proxy, "method": method, "evaluation": evaluation})


def _run_trials(
    plan: Plan,
    searches: Sequence[Search],
    asked: Sequence[tuple[int, int, Mapping[str, Any]]],
    seed: int,
    store: PathLike,
    workers: int,
    scheduler: str,
    reporter: Reporter | None,
) -> tuple[list[dict[str, Any]], int]:
    """Run trials as a plan; returns their results in order, and the number of stages that were computed."""
    refused: dict[int, str] = {}
    configs: dict[str, RunConfig] = {}
    labels: list[str] = []
    for place, (index, number, options) in enumerate(asked):
        search = searches[index]
        reference = make_trial(search.reference, {}, seed)
        configs.setdefault(f"reference {hash_json(canonical_config(reference))[:16]}", reference)
        config = make_trial(search.cell.config, options, seed)
        labels.append(f"{index} {search.method} {number}")
        try:
            with trusting(plan.trust):
                make_checked_method(config, drop_unused=True)
        except ExpungeError as error:
            refused[place] = str(error)
            continue
        configs[labels[-1]] = config
    if len(refused) == len(asked):
        return [_describe_trial(options, None, refused[place]) for place, (_, _, options) in enumerate(asked)], 0
    path = _write_trials(plan, configs, searches[0].reference, store)
    try:
        loaded = load_plan(path, trust=plan.trust)
        results = _in_store(store, path, ".json")
        run = run_plan(loaded, store=store, workers=workers, scheduler=scheduler, reporter=reporter, results=results)
    finally:
        path.unlink(missing_ok=True)
    cells = {cell["labels"]["trial"]: cell for cell in run.results["cells"]}
    trials = [
        _describe_trial(options, cells.get(labels[place]), refused.get(place))
        for place, (_, _, options) in enumerate(asked)
    ]
    return trials, run.computed


def _in_store(store: PathLike, path: Path, suffix: str) -> Path:
    folder = open_store(store).root / "tuning"  # of a store at a URL, in its working copy
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{path.stem}{suffix}"


def _write_trials(plan: Plan, configs: Mapping[str, RunConfig], reference: RunConfig, store: PathLike) -> Path:
    """Write trials as a plan file: in the directory of the plan if that names modules beside it, else in the store."""
    assert reference.method is not None
    bodies = {label: config.model_dump(mode="json", exclude_defaults=True) for label, config in configs.items()}
    first = next(iter(bodies.values()))
    variants = {}
    for label, body in bodies.items():
        keys = {key for key in {*first, *body} if first.get(key) != body.get(key)} | {"forget", "method"}
        variants[label] = {key: body.get(key) for key in sorted(keys)}
        if "seed" in keys:
            variants[label]["seed"] = body.get("seed", 0)
    document = {
        "name": f"{plan.name}-trials",
        "base": first,
        "variants": {"trial": variants},
        "reference": reference.method.name,
    }
    name = f"{plan.path.stem}-trials-{hash_json(document)[:12]}.yaml"
    path = plan.path.with_name(f".{name}") if plan.trust.names else _in_store(store, Path(name), ".yaml")
    write_text(path, json.dumps(document, separators=(", ", ": ")))
    return path


def _describe_trial(options: Mapping[str, Any], cell: Mapping[str, Any] | None, refused: str | None) -> dict[str, Any]:
    """A trial as JSON values."""
    body: dict[str, Any] = {"options": dict(options), "status": "failed", "objective": None, "passes": None}
    if refused is not None or cell is None:
        return {**body, "status": "refused", "message": refused or "it was not run"}
    value = cell["scores"].get(OBJECTIVE)
    if cell["state"] != "finished" or value is None or not math.isfinite(value):
        return {**body, "message": str(cell.get("message", "the objective is not a number"))}
    scores = {name: cell["scores"][name] for name in SHOWN if name in cell["scores"]}
    return {**body, "status": "finished", "objective": value, "passes": cell["cost"]["passes"], "scores": scores}


def _describe_search(search: Search, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A search as JSON values; of equal trials the first is the best."""
    finished = [(trial["objective"], place) for place, trial in enumerate(trials) if trial["objective"] is not None]
    assert search.cell.config.method is not None
    return {
        "key": search_key(search.cell.config),
        "labels": dict(search.labels),
        "method": search.method,
        "seed": search.cell.config.seed,
        "options": dict(search.cell.config.method.options),
        "space": {option: domain.to_json() for option, domain in search.space.items()},
        "best": min(finished)[1] if finished else None,
        "trials": list(trials),
    }
