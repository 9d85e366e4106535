"""From a plan's cells to the stages that they share, in the order in which they can run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.errors import ConfigError
from expunge.core.files import read_bytes
from expunge.core.hashing import hash_bytes, hash_json
from expunge.core.reading.limits import BYTES
from expunge.experiments.config.plan import Cell, Plan
from expunge.experiments.config.run_config import RunConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One stage with its configuration, shared by all cells that need it.

    Attributes:
        id: hash of stage, configuration and inputs; the same for equal work.
        stage: name of the stage.
        config: what its key covers.
        inputs: input name to node id.
        reach: registered names whose files the stage runs: `("methods", "FT")`.
        data_dir: where the source's files lie; not part of the key.
        label: for people.
    """

    id: str
    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    reach: tuple[tuple[str, str], ...]
    data_dir: str | None
    label: str


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """All stages of a plan, inputs before what needs them.

    Attributes:
        nodes: by id.
        cells: for every cell of the plan, the node id of each of its stages.
    """

    nodes: Mapping[str, Node]
    cells: tuple[Mapping[str, str], ...]

    def above(self, node_id: str) -> list[str]:
        """Ids of everything that a node needs, inputs first, itself last."""
        seen: dict[str, None] = {}

        def visit(at: str) -> None:
            for below in self.nodes[at].inputs.values():
                if below not in seen:
                    visit(below)
            seen[at] = None

        visit(node_id)
        return list(seen)


def build_graph(plan: Plan) -> Graph:
    """The stages of a plan; see `graph_of`."""
    return graph_of(plan.cells)


def graph_of(plan_cells: Sequence[Cell], *, originals: bool = False) -> Graph:
    """The stages of cells: data, train (or adopt), prune (for sparse cells), forget, score; or data, sides, leakage.

    Where records are chosen by `memorised`, the stage `memorise` ranks the records first.

    A cell without a method ends with its original model. With `originals` the original model of every other cell is
    scored for the cell's request too (stage `before`).
    """
    nodes: dict[str, Node] = {}
    cells: dict[int, dict[str, str]] = {}
    references = {cell.reference for cell in plan_cells}
    for index in sorted(range(len(plan_cells)), key=lambda i: (plan_cells[i].reference, i not in references, i)):
        cell = plan_cells[index]
        if cell.config.leakage is not None:
            cells[index] = _leakage(nodes, cell.config)
            continue
        if cell.config.method is None:
            cells[index] = _original(nodes, cell.config)
            continue
        config, chain = cell.config, _chain(nodes, cell.config)
        inputs = {"data": chain["data"], "outcome": chain["forget"]}
        if cell.reference != index:
            inputs["reference"] = cells[cell.reference]["score"]
        if config.sparsity is not None or config.evaluation.bound:
            inputs["original"] = chain.get("prune", chain["train"])
            inputs["reference_outcome"] = (
                cells[cell.reference]["forget"] if cell.reference != index else chain["forget"]
            )
        body = {"evaluation": config.evaluation.model_dump(mode="json"), **_common(config)}
        reach = (("models", config.model.name),)
        score = _add(nodes, "score", body, inputs, reach, config, nodes[chain["forget"]].label)
        cells[index] = {**chain, "score": score}
        if originals:
            assert config.forget is not None
            original = chain.get("prune", chain["train"])
            inputs = {"data": chain["data"], "trained": original, "reference": cells[cell.reference]["score"]}
            inputs |= _ranking(chain)
            forget = config.forget.model_dump(mode="json")
            body = {"forget": forget, "files": _contents(forget), **body}
            label = nodes[original].label
            cells[index]["before"] = _add(nodes, "before", body, inputs, reach, config, label)
    return Graph(nodes, tuple(cells[index] for index in range(len(plan_cells))))


def _common(config: RunConfig) -> dict[str, Any]:
    return {"data": _data(config), "runtime": config.runtime.model_dump(mode="json"), "seed": config.seed}


def _data(config: RunConfig) -> dict[str, Any]:
    return {"source": config.data.source, "options": config.data.options}


def _contents(
    section: Mapping[str, Any], name: str = "forget", keys: Sequence[str] = ("file", "hold")
) -> dict[str, str]:
    """Hash of the contents of the files that a section names: what is in them counts, not what they are called."""
    found = {}
    for key in keys:
        path = section.get(key)
        if isinstance(path, str) and not (key == "mask" and path == "zeros"):
            try:
                found[key] = hash_bytes(read_bytes(path, BYTES, error=ConfigError))
            except ConfigError as error:
                what = "cannot be read (No such file or directory)" if error.what == "no such file" else error.what
                raise ConfigError(what, where=f"{name}.{key}: {path}", hint=error.hint) from error
    return found


def _original(nodes: dict[str, Node], config: RunConfig) -> dict[str, str]:
    """The stages up to the original model: data, train or adopt, prune."""
    own = [("models", config.model.name)]
    source = config.data.source
    chain = {}
    reach = [("data", source)]
    chain["data"] = _add(nodes, "data", {"data": _data(config)}, {}, reach, config, source)
    label = f"{source} {config.model.name} seed {config.seed}"
    body = {name: getattr(config, name).model_dump(mode="json") for name in ("split", "model", "training")}
    stage = "train" if config.model.weights is None else "adopt"
    body["files"] = {
        **_contents(body["split"], "split", ("file",)),
        **_contents(body["model"], "model", ("weights", "mask")),
    }
    chain["train"] = _add(nodes, stage, {**body, **_common(config)}, {"data": chain["data"]}, own, config, label)
    trained = chain["train"]
    if config.sparsity is not None:
        label += f" {100 * config.sparsity.sparsity:g} % sparse"
        body = {"sparsity": config.sparsity.model_dump(mode="json"), **_common(config)}
        inputs = {"data": chain["data"], "trained": trained}
        chain["prune"] = _add(nodes, "prune", body, inputs, own, config, label)
    return chain


def _ranking(chain: Mapping[str, str]) -> dict[str, str]:
    """The input of stages that choose D_f, where it is chosen by a ranking."""
    return {"memorised": chain["memorise"]} if "memorise" in chain else {}


def _memorise(nodes: dict[str, Node], config: RunConfig, data: str) -> dict[str, str]:
    """The stage that ranks records by memorisation, where the forget set needs it; the same for all seeds of a run."""
    assert config.forget is not None
    if config.forget.by != "memorised":
        return {}
    wanted = config.forget.further
    body = {name: getattr(config, name).model_dump(mode="json") for name in ("split", "model", "training")}
    body["files"] = _contents(body["split"], "split", ("file",))
    body["memorised"] = {key: wanted[key] for key in ("models", "seed") if key in wanted}
    body |= {"data": _data(config), "runtime": config.runtime.model_dump(mode="json")}
    reach = [("models", config.model.name)]
    label = f"{config.data.source} {config.model.name}"
    return {"memorise": _add(nodes, "memorise", body, {"data": data}, reach, config, label)}


def _leakage(nodes: dict[str, Node], config: RunConfig) -> dict[str, str]:
    """The stages of topology leakage: data, sides, leakage (as the cell's `score`)."""
    assert config.forget is not None
    assert config.leakage is not None
    assert config.sparsity is not None
    source, settings = config.data.source, config.leakage.model_dump(mode="json")
    chain = {"data": _add(nodes, "data", {"data": _data(config)}, {}, [("data", source)], config, source)}
    chain |= _memorise(nodes, config, chain["data"])
    forget = config.forget.model_dump(mode="json")
    body = {name: getattr(config, name).model_dump(mode="json") for name in ("split", "model", "training")}
    body["files"] = {**_contents(body["split"], "split", ("file",)), **_contents(forget)}
    body |= {"sides": {key: settings[key] for key in ("models", "initial")}, **_common(config)}
    reach = [("models", config.model.name)]
    label = f"{source} {config.model.name} ({', '.join(f'{k} {v}' for k, v in forget.items())}) {settings['initial']}"
    inputs = {"data": chain["data"], **_ranking(chain)}
    chain["sides"] = _add(nodes, "sides", {**body, "forget": forget}, inputs, reach, config, label)
    body |= {"leakage": settings, "sparsity": config.sparsity.model_dump(mode="json")}
    inputs = {"data": chain["data"], "sides": chain["sides"]}
    chain["score"] = _add(nodes, "leakage", body, inputs, reach, config, label)
    return chain


def _chain(nodes: dict[str, Node], config: RunConfig) -> dict[str, str]:
    assert config.forget is not None
    assert config.method is not None
    chain = _original(nodes, config)
    chain |= _memorise(nodes, config, chain["data"])
    own = [("models", config.model.name)]
    trained = chain.get("prune", chain["train"])
    label = nodes[trained].label
    forget = config.forget.model_dump(mode="json")
    body = {
        "forget": forget,
        "files": _contents(forget),
        "method": config.method.model_dump(mode="json"),
        **_common(config),
    }
    reach = [*own, ("methods", config.method.name)]
    label += f" {config.method.name} ({', '.join(f'{k} {v}' for k, v in forget.items())})"
    inputs = {"data": chain["data"], "trained": trained, **_ranking(chain)}
    chain["forget"] = _add(nodes, "forget", body, inputs, reach, config, label)
    return chain


def _add(
    nodes: dict[str, Node],
    stage: str,
    body: Mapping[str, Any],
    inputs: Mapping[str, str],
    reach: Any,
    config: RunConfig,
    label: str,
) -> str:
    node_id = hash_json({"stage": stage, "config": body, "inputs": inputs, "dir": config.data.dir})
    if node_id not in nodes:
        nodes[node_id] = Node(node_id, stage, body, dict(inputs), tuple(reach), config.data.dir, label)
    return node_id
