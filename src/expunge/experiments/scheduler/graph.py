"""The graph of stages of a plan: cells share equal stages; inputs come before the stages that need them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.errors import ConfigError
from expunge.core.files import read_bytes
from expunge.core.hashing import hash_bytes, hash_json
from expunge.core.reading.limits import BYTES
from expunge.core.registry import METHODS, MODELS, SOURCES
from expunge.core.show import repr_fields
from expunge.core.split import PLANTINGS
from expunge.experiments.config.plan import Cell
from expunge.experiments.config.run_config import DataConfig, RunConfig
from expunge.experiments.config.sections.forget import StandInConfig
from expunge.experiments.objects.records import add_planting

#: Kinds of registered code that repeating the pruning of a mask may run.
PRUNING = ("criteria", "granularities", "schedules", "scopes")


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One stage with its configuration, shared by all cells that need it.

    Attributes:
        id: hash of stage, configuration and inputs.
        stage: name of the stage.
        config: the part of the configuration that its key covers.
        inputs: input name to node id.
        named: sections of earlier stages that name code which this stage runs as well, such as the model, or how it was
            pruned, which Retrain repeats.
        kinds: kinds of registered code of which any entry may be run: an imported mask may record any criterion.
        data_dir: directory of the data source's files; not part of the key.
        label: describes the node in messages.
        workers: processes that read streamed records; not part of the key.
    """

    id: str
    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    named: Mapping[str, Any]
    kinds: tuple[str, ...]
    data_dir: str | None
    label: str
    workers: int = 0

    __repr__ = repr_fields

    @property
    def settings(self) -> Mapping[str, Any]:
        """The configuration of the stage, with what its key does not cover."""
        if "runtime" not in self.config:
            return self.config
        return {**self.config, "runtime": {**self.config["runtime"], "workers": self.workers}}

    @property
    def title(self) -> str:
        """Stage and label, for messages."""
        return f"{self.stage} {self.label}"


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """All stages of a plan.

    Attributes:
        nodes: node id to node; inputs come before the nodes that need them.
        cells: for every cell of the plan, stage name to node id.
    """

    nodes: Mapping[str, Node]
    cells: tuple[Mapping[str, str], ...]

    __repr__ = repr_fields


def build_graph(plan_cells: Sequence[Cell], *, originals: bool = False) -> Graph:
    """Build the graph of stages for cells.

    The stages of a cell are `data`, `train` (or `adopt`), `prune` (sparse cells), `forget` and `score`; those of a
    leakage cell are `data`, `shadow_models`, `shadow_replay` (if the models forget by replay) and `leakage`. If the
    forget set is the most memorised records, the stage `memorise` ranks the records first, and `confidences` if it is a
    stratum. A cell without a method ends
    with its original model.

    Args:
        plan_cells: of a plan.
        originals: also score the original model of every cell for the cell's request (stage `score_original`).
    """
    nodes: dict[str, Node] = {}
    cells: dict[int, dict[str, str]] = {}
    references = {cell.reference for cell in plan_cells}
    for index in sorted(range(len(plan_cells)), key=lambda i: (plan_cells[i].reference, i not in references, i)):
        cell = plan_cells[index]
        if cell.config.leakage is not None:
            cells[index] = _add_leakage(nodes, cell.config)
            continue
        if cell.config.method is None or cell.config.forget is None:
            cells[index] = _add_original(nodes, cell.config)
            continue
        config, chain = cell.config, _add_method(nodes, cell.config)
        inputs = {"data": chain["data"], "outcome": chain["forget"]}
        absent = config.split.retain is not None
        if absent and len(plan_cells) > 1:
            raise ConfigError(
                "the records of D_r are absent, so there is no reference to compare with: a plan needs them",
                where="split.retain",
                hint="use `expunge forget`",
            )
        if absent:  # no reference can be retrained
            pass
        elif cell.reference != index:
            inputs["reference"] = cells[cell.reference]["score"]
        else:  # the reference is compared with the original: a collapsed one makes every gap meaningless
            inputs["trained"] = chain.get("prune", chain["train"])
        compared = config.sparsity is not None or config.evaluation.bound or bool(config.evaluation.scores)
        if compared and not absent:
            inputs["original"] = chain.get("prune", chain["train"])
            inputs["reference_outcome"] = (
                cells[cell.reference]["forget"] if cell.reference != index else chain["forget"]
            )
        body = {"evaluation": config.evaluation.model_dump(mode="json"), **_common_keys(config)}
        label = nodes[chain["forget"]].label
        score = _add_node(
            nodes, "score", body, inputs, config, label, named=("model", "sparsity"), kinds=_kinds(config)
        )
        cells[index] = {**chain, "score": score}
        if originals:
            assert config.forget is not None
            original = chain.get("prune", chain["train"])
            inputs = {"data": chain["data"], "trained": original, **_ranking(chain)}
            if not absent:
                inputs["reference"] = cells[cell.reference]["score"]
            if config.evaluation.scores and not absent:
                inputs["reference_outcome"] = cells[cell.reference]["forget"]
            forget = config.forget.model_dump(mode="json", exclude={"stand_in"})
            body = {"forget": forget, "files": _hash_files(forget), **body}
            label = nodes[original].label
            node_id = _add_node(
                nodes, "score_original", body, inputs, config, label, named=("model", "sparsity"), kinds=_kinds(config)
            )
            cells[index]["score_original"] = node_id
    return Graph(nodes, tuple(cells[index] for index in range(len(plan_cells))))


def _kinds(config: RunConfig) -> tuple[str, ...]:
    """Kinds of code that an imported mask may name."""
    return () if config.model.weights is None else PRUNING


def _common_keys(config: RunConfig) -> dict[str, Any]:
    return {"data": _data_keys(config), "runtime": config.runtime.keys, "seed": config.seed}


def _data_keys(config: RunConfig) -> dict[str, Any]:
    section = {"source": SOURCES.canonical(config.data.source), "options": config.data.options}
    forget = None if config.forget is None else config.forget.model_dump(mode="json")
    split = config.split.model_dump(mode="json")
    body = add_planting(section, forget, split)
    if "planted" in body:
        assert forget is not None
        body["planted"]["files"] = {**_hash_files(forget), **_hash_files(split, "split", ("file",))}
    return body


def _training_keys(config: RunConfig) -> dict[str, Any]:
    body = {name: getattr(config, name).model_dump(mode="json") for name in ("split", "model", "training")}
    body["model"]["name"] = MODELS.canonical(config.model.name)
    return body


def _method_keys(config: RunConfig) -> dict[str, Any]:
    assert config.method is not None
    body = config.method.model_dump(mode="json", exclude={"tuned"})
    return {**body, "name": METHODS.canonical(config.method.name)}


def acts_during_training(name: str) -> bool:
    """Whether the original model of a method is trained by the method; read from its source.

    The reference and all other methods have the original of `train`, with the same recipe, split and seed.
    """
    found = METHODS.read_definition(name)
    return found is not None and found.facts.get("trains") is True


def _hash_files(
    section: Mapping[str, Any], name: str = "forget", keys: Sequence[str] = ("file", "hold")
) -> dict[str, str]:
    """Hash the contents of the files that a section names, so that stages depend on contents and not on file names."""
    found = {}
    for key in keys:
        path = section.get(key)
        if isinstance(path, str) and not (key == "mask" and path == "zeros"):
            try:
                found[key] = _hash_file(path)
            except ConfigError as error:
                raise ConfigError(error.what, where=f"{name}.{key}: {path}", hint=error.hint) from error
    return found


def _hash_file(path: str) -> str:
    """Hash a file; of a folder of weights, its files."""
    if not os.path.isdir(path):
        return hash_bytes(read_bytes(path, BYTES, error=ConfigError))
    from expunge.models.weights import list_weight_files

    files = list_weight_files(path)
    return hash_json({file.name: hash_bytes(read_bytes(file, BYTES, error=ConfigError)) for file in files})


def _hash_training_files(body: Mapping[str, Any]) -> dict[str, str]:
    """Hash the split file and the file of the declared start."""
    start = body["model"].get("initial") or {}
    found = _hash_files({"initial": start.get("file")}, "model", ("initial",))
    if body["model"]["name"].startswith("hf:"):
        folder = body["model"]["name"].removeprefix("hf:")
        found |= _hash_files({"name": os.path.join(folder, "config.json")}, "model", ("name",))
    return {**_hash_files(body["split"], "split", ("file",)), **found}


def _add_data(nodes: dict[str, Node], config: RunConfig) -> str:
    """Add the stage `data`; returns its node id."""
    source = config.data.source
    return _add_node(nodes, "data", {"data": _data_keys(config)}, {}, config, source)


def _add_stand_in(nodes: dict[str, Node], config: RunConfig, stand_in: StandInConfig) -> str:
    """Add the stage `data` of a stand-in retain set; returns its node id."""
    data = DataConfig(source=stand_in.source, dir=stand_in.dir or config.data.dir, options=stand_in.options)
    return _add_data(nodes, config.model_copy(update={"data": data}))


def _add_original(nodes: dict[str, Node], config: RunConfig) -> dict[str, str]:
    """Add the stages up to the original model: data, train or adopt, prune; returns stage name to node id."""
    chain = {"data": _add_data(nodes, config)}
    planted = "" if config.forget is None or config.forget.by not in PLANTINGS else f" with {config.forget.by}"
    label = f"{config.data.source}{planted} {config.model.name} seed {config.seed}"
    body = _training_keys(config)
    stage = "train" if config.model.weights is None else "adopt"
    body["files"] = {**_hash_training_files(body), **_hash_files(body["model"], "model", ("weights", "mask"))}
    body |= _common_keys(config)
    if stage == "train" and config.method is not None and acts_during_training(config.method.name):
        body["method"] = _method_keys(config)
        label += f" {config.method.name}"
    chain["train"] = _add_node(nodes, stage, body, {"data": chain["data"]}, config, label)
    if config.sparsity is not None:
        label += f" {100 * config.sparsity.sparsity:g} % sparse"
        body = {"sparsity": config.sparsity.model_dump(mode="json"), **_common_keys(config)}
        inputs = {"data": chain["data"], "trained": chain["train"]}
        chain["prune"] = _add_node(nodes, "prune", body, inputs, config, label, named=("model",))
    return chain


#: The stage that ranks the records, by the selection of the forget set that needs it, and its options.
_RANKING_STAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "memorised": ("memorise", ("models", "seed")),
    "memorisation-stratum": ("confidences", ()),
}


def _ranking(chain: Mapping[str, str]) -> dict[str, str]:
    """The input `memorised` of stages that select D_f, if it is selected by a ranking."""
    found = [chain[stage] for stage, _ in _RANKING_STAGES.values() if stage in chain]
    return {"memorised": found[0]} if found else {}


def _add_memorise(nodes: dict[str, Node], config: RunConfig, data: str) -> dict[str, str]:
    """Add the stage that ranks records by memorisation, if the forget set needs it; all seeds of a run share it."""
    assert config.forget is not None
    ranked = config.forget.ranked
    by = config.forget.by if ranked is None else "memorised"  # the proxy of memorised records is ranked as they are
    if by not in _RANKING_STAGES:
        return {}
    stage, options = _RANKING_STAGES[by]
    selection = config.forget.extra_keys if ranked is None else ranked
    body = _training_keys(config)
    body["files"] = _hash_training_files(body)
    if options:
        body["memorised"] = {key: selection[key] for key in options if key in selection}
    body |= {"data": _data_keys(config), "runtime": config.runtime.keys}
    label = f"{config.data.source} {config.model.name}"
    return {stage: _add_node(nodes, stage, body, {"data": data}, config, label)}


def _add_leakage(nodes: dict[str, Node], config: RunConfig) -> dict[str, str]:
    """Add the stages of topology leakage: data, shadow_models, shadow_replay, leakage (under the name `score`)."""
    assert config.forget is not None
    assert config.leakage is not None
    assert config.sparsity is not None
    settings = config.leakage.to_settings()
    chain = {"data": _add_data(nodes, config)}
    chain |= _add_memorise(nodes, config, chain["data"])
    forget = config.forget.model_dump(mode="json")
    body = _training_keys(config)
    body["files"] = {**_hash_training_files(body), **_hash_files(forget)}
    drawn: dict[str, Any] = {key: settings[key] for key in ("models", "initial", "game", "other") if key in settings}
    if "other" in drawn:
        body["files"] |= {f"other {key}": found for key, found in _hash_files(drawn["other"], "leakage.other").items()}
    if config.leakage.processing == "retrained":
        drawn["retrained"] = True
    body |= {"shadow_models": drawn, **_common_keys(config)}
    selection = ", ".join(f"{key} {value}" for key, value in forget.items())
    label = f"{config.data.source} {config.model.name} ({selection}) {settings['initial']}"
    if config.leakage.game != "trained":
        label += f" {config.leakage.game}{' retrained' if 'retrained' in drawn else ''}"
    inputs = {"data": chain["data"], **_ranking(chain)}
    stage = "shadow_models"
    chain[stage] = _add_node(nodes, stage, {**body, "forget": forget}, inputs, config, label)
    inputs = {"data": chain["data"], stage: chain[stage]}
    if config.leakage.processing == "replay":
        replay = {"epochs": config.leakage.prefix_epochs, "scale": config.leakage.scale}
        label += f" replay {config.leakage.prefix_epochs}"
        stage = "shadow_replay"
        chain[stage] = _add_node(nodes, stage, {**body, "replay": replay}, inputs, config, label)
        inputs = {**inputs, stage: chain[stage]}
    body |= {"leakage": settings, "sparsity": config.sparsity.model_dump(mode="json")}
    chain["score"] = _add_node(nodes, "leakage", body, inputs, config, label)
    return chain


def _add_method(nodes: dict[str, Node], config: RunConfig) -> dict[str, str]:
    """Add the stages up to the unlearned model; returns stage name to node id."""
    assert config.forget is not None
    assert config.method is not None
    chain = _add_original(nodes, config)
    chain |= _add_memorise(nodes, config, chain["data"])
    trained = chain.get("prune", chain["train"])
    forget = config.forget.model_dump(mode="json")
    body = {
        "forget": forget,
        "files": _hash_files(forget),
        "method": _method_keys(config),
        **_common_keys(config),
    }
    selection = ", ".join(f"{key} {value}" for key, value in forget.items() if key != "stand_in")
    label = f"{nodes[trained].label} {config.method.name} ({selection})"
    inputs = {"data": chain["data"], "trained": trained, **_ranking(chain)}
    if config.forget.stand_in is not None:
        inputs["stand_in"] = _add_stand_in(nodes, config, config.forget.stand_in)
    chain["forget"] = _add_node(
        nodes, "forget", body, inputs, config, label, named=("model", "sparsity"),
        kinds=_kinds(config),
    )  # fmt: skip
    return chain


def _add_node(
    nodes: dict[str, Node],
    stage: str,
    body: Mapping[str, Any],
    inputs: Mapping[str, str],
    config: RunConfig,
    label: str,
    *,
    named: Sequence[str] = (),
    kinds: tuple[str, ...] = (),
) -> str:
    """Add a node, unless there is an equal one; returns its id."""
    node_id = hash_json({"stage": stage, "config": body, "inputs": inputs, "dir": config.data.dir})
    if node_id not in nodes:
        sections = {name: getattr(config, name) for name in named}
        found = {name: section.model_dump(mode="json") for name, section in sections.items() if section is not None}
        workers = config.runtime.workers
        nodes[node_id] = Node(node_id, stage, body, dict(inputs), found, kinds, config.data.dir, label, workers)
    return node_id
