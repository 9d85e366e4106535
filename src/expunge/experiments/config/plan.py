"""A plan: a YAML file with a grid of runs and the claims that these runs test, written before anything is run.

docs/plans.md explains plans, docs/formats/plan.md lists the keys. Nothing here imports torch.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.core.files import PathLike
from expunge.core.hashing import canonical_json, hash_json, hash_text_parts
from expunge.core.show import Summary, plural, repr_fields, repr_html, repr_text, shorten_names
from expunge.core.trust import Trust
from expunge.evaluation.facts import check_score_name

from .axis import Axis
from .plan_file import Claim, PlanFile
from .plan_resources import read_resources
from .plan_size import check_copies, check_size
from .run_config import RunConfig, apply_overrides, canonical_config, check_config, set_key
from .selections import make_label, matches, wanted_labels
from .tuned import TunedOptions
from .validation import Origins, known_keys, section_at, validate_values
from .yaml_source import KeyPath, YamlText, read_yaml


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One run of the plan.

    Attributes:
        labels: axis name to label.
        config: the validated configuration; `forget` and `method` are set.
        reference: index of the cell that this one is compared with (its own index for a reference).
    """

    labels: Mapping[str, str]
    config: RunConfig
    reference: int

    __repr__ = repr_fields

    @property
    def name(self) -> str:
        return ", ".join(f"{axis} {label}" for axis, label in self.labels.items())


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A validated plan.

    Attributes:
        path: its file.
        overrides: the overrides it was loaded with.
        rerun: label of the cells that rerun the reference with another order of records, which the normalised overlap
            of masks needs; None: there are none.
        columns: score names of the tables; empty: those of [Jia2023].
        passes_limit: largest fraction of the reference's passes that an approximate method may use.
        curves: name of a line to the selection of cells that are its points, in figures over passes.
        hash: over the cells' configurations, the axes, the limit and the claims (not over data directories).
        trust: the code that the plan may name; no key of a file changes it.
        resources: stage to what it needs of an engine: `gpu`, `cpu`, `memory` in bytes, other names. Not in the hash.
        only: axis to labels, if the plan has only the cells with these labels (`select_cells`).
    """

    name: str
    description: str
    path: Path
    overrides: tuple[str, ...]
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    reference: str
    rerun: str | None
    columns: tuple[str, ...]
    passes_limit: float
    claims: tuple[Claim, ...]
    hash: str
    trust: Trust = dataclasses.field(default_factory=Trust)
    curves: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    resources: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    only: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    @property
    def results_path(self) -> Path:
        """Path of the result file, in the same directory as the plan."""
        return self.path.with_name(f"{self.path.stem}.results.json")

    def _summarise(self) -> Summary:
        facts = {
            "axes": lambda: shorten_names(f"{axis.name} ({len(axis.labels)})" for axis in self.axes),
            "reference": lambda: self.reference,
            "columns": lambda: shorten_names(self.columns) if self.columns else "those of [Jia2023]",
            "claims": lambda: f"{len(self.claims):,}",
            "file": lambda: str(self.path),
            "hash": lambda: f"{self.hash:.12}",
        }
        return Summary(lambda: f"{self.name:.60}, {plural(len(self.cells), 'cell')}", facts, lines=True)

    __repr__ = repr_text
    _repr_html_ = repr_html


def load_plan(
    path: PathLike, overrides: Iterable[str] = (), *, trust: Sequence[str] | Trust = (), fill: bool = True
) -> Plan:
    """Read, expand and validate a plan. Does not import torch.

    Args:
        path: the YAML file (docs/formats/plan.md). Loading it is the agreement to run the modules in its directory that
            its cells name.
        overrides: `dotted.key=value`, set last in every cell (`data.dir=...`, `runtime.device=cuda`).
        trust: top-level packages that the plan may name.
        fill: read the options of cells with `method.tuned` from the files that they name; without, such cells have the
            options that the plan sets, and the files need not exist (`tune_plan`).

    Returns:
        The plan: a cell for every combination of labels, each with the index of its reference cell.

    Raises:
        ConfigError: the plan is not valid; with file, line and key.

    >>> from pathlib import Path
    >>> from expunge.experiments import load_plan
    >>> _ = Path("plan.yaml").write_text('''
    ... name: small
    ... base:
    ...   data: {source: digits}
    ...   model: {name: mlp}
    ...   training: {recipe: one-cycle}
    ...   forget: {by: random, fraction: 0.1}
    ... grid:
    ...   method: [{name: Retrain}, {name: FT}]
    ...   seed: [0, 1]
    ... ''')
    >>> plan = load_plan("plan.yaml", ["runtime.device=cpu"])
    >>> for cell in plan.cells:
    ...     print(f"{cell.name}; reference: {plan.cells[cell.reference].name}")
    method Retrain, seed 0; reference: method Retrain, seed 0
    method Retrain, seed 1; reference: method Retrain, seed 1
    method FT, seed 0; reference: method Retrain, seed 0
    method FT, seed 1; reference: method Retrain, seed 1
    """
    overrides = tuple(overrides)
    text = read_yaml(path)
    if not isinstance(text.value, dict):
        raise ConfigError("a plan is a mapping of keys to values", where=text.name)
    file = validate_values(PlanFile, text.value, Origins((text, ())), what="the plan")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", file.name):
        raise ConfigError("a plan's name consists of letters, digits, '.', '-' and '_'", where=text.where(("name",)))
    axes = (*_grid_axes(file, text), *_variant_axes(file, text))
    duplicates = [name for name, count in Counter(axis.name for axis in axes).items() if count > 1]
    if duplicates:
        raise ConfigError(
            f"the axis {duplicates[0]!r} is both in grid and in variants",
            where=text.where(("variants", duplicates[0])),
        )
    check_size(file, axes, overrides, text)
    _check_selections(file, axes, text)
    expanded = list(_expand_cells(file, axes, overrides, text))
    if fill:
        tuned = TunedOptions(Path(path))
        expanded = [(labels, tuned.fill(config)) for labels, config in expanded]
    cells = _pair_with_references(expanded, file.reference, axes, text)
    file = _check_scores(file, cells, text)
    _check_pairs(file, cells, text)
    if file.rerun is not None and not any(file.rerun in cell.labels.values() for cell in cells):
        known = [label for axis in axes if axis.role == "method" for label in axis.labels]
        hint = unknown_name_hint(file.rerun, known)
        raise ConfigError(f"no method is labelled {file.rerun!r}", where=text.where(("rerun",)), hint=hint)
    body = {
        "reference": file.reference,
        "passes_limit": file.passes_limit,
        "claims": [claim.to_json() for claim in file.claims],
        **({"rerun": file.rerun} if file.rerun else {}),
        **({"columns": file.columns} if file.columns else {}),
    }
    return Plan(
        file.name, file.description.strip(), Path(path), overrides, axes, tuple(cells), file.reference,
        file.rerun, file.columns, file.passes_limit, file.claims, _hash_plan(body, cells),
        Trust.from_value(trust).for_file(path, (cell.config.model_dump() for cell in cells)),
        dict(file.curves), read_resources(file, text),
    )  # fmt: skip


def _hash_plan(body: Mapping[str, Any], cells: Sequence[Cell]) -> str:
    """`hash_json` of `body` with the cells, whose texts are made one at a time."""
    rest = canonical_json(body)
    assert min(body) > "cells"  # canonical JSON sorts keys

    def parts() -> Iterator[str]:
        yield '{"cells":['
        for index, cell in enumerate(cells):
            text = canonical_json({"labels": cell.labels, "config": canonical_config(cell.config)})
            yield f",{text}" if index else text
        yield f"],{rest[1:]}"

    return hash_text_parts(parts)


def _grid_axes(file: PlanFile, text: YamlText) -> Iterator[Axis]:
    for key, values in file.grid.items():
        at: KeyPath = ("grid", key)
        parts = tuple(key.split("."))
        above = section_at(RunConfig, parts[:-1])
        accepts_any_key = above is None or above.model_config.get("extra") == "allow"
        is_known = parts[-1] in known_keys(RunConfig, parts[:-1])
        if not (is_known or (accepts_any_key and parts[0] in RunConfig.model_fields)):
            hint = unknown_name_hint(parts[-1], known_keys(RunConfig, parts[:-1]))
            raise ConfigError(f"unknown key {key!r}", where=text.where(at), hint=hint)
        if isinstance(values, dict):
            found = {str(label): value for label, value in values.items()}
            key_paths: dict[str, KeyPath] = {label: (*at, label) for label in found}
        elif isinstance(values, list):
            found, key_paths = {}, {}
            for index, value in enumerate(values):
                label = make_label(value)
                if label in found:
                    raise ConfigError(f"the value {label} is a duplicate", where=text.where((*at, index)))
                found[label], key_paths[label] = value, (*at, index)
        else:
            raise ConfigError("an axis is a list of values, or a mapping of labels to values", where=text.where(at))
        if not found:
            raise ConfigError(f"the axis {key!r} has no values", where=text.where(at))
        yield Axis(key, {label: {key: value} for label, value in found.items()}, key_paths)


def _variant_axes(file: PlanFile, text: YamlText) -> Iterator[Axis]:
    for name, variants in file.variants.items():
        if not variants:
            raise ConfigError(f"the axis {name!r} has no values", where=text.where(("variants", name)))
        yield Axis(name, variants, {label: ("variants", name, label) for label in variants})


def _check_selections(file: PlanFile, axes: tuple[Axis, ...], text: YamlText) -> None:
    by_name = {axis.name: axis for axis in axes}
    selections: list[tuple[Mapping[str, Any], KeyPath]] = [(e, ("exclude", i)) for i, e in enumerate(file.exclude)]
    selections += [(chosen, ("curves", name)) for name, chosen in file.curves.items()]
    selections += [(adjustment.when, ("adjust", i, "when")) for i, adjustment in enumerate(file.adjust)]
    for i, claim in enumerate(file.claims):
        selections += [(claim.where, ("claims", i, "where"))]
        selections += [(group, ("claims", i, "compare", number)) for number, group in enumerate(claim.compare)]
        selections += [({axis: list(by_name[axis].labels) if axis in by_name else []}, ("claims", i, "each"))
                       for axis in claim.each]  # fmt: skip
        if claim.compare[0] == claim.compare[1]:
            raise ConfigError("the two groups of a claim must differ", where=text.where(("claims", i, "compare")))
        if claim.name in [other.name for other in file.claims[:i]]:
            raise ConfigError(f"two claims are named {claim.name!r}", where=text.where(("claims", i, "name")))
    for selection, at in selections:
        for name, wanted in selection.items():
            if name not in by_name:
                hint = unknown_name_hint(name, by_name)
                raise ConfigError(f"the plan has no axis {name!r}", where=text.where((*at, name)), hint=hint)
            for label in wanted_labels(wanted):
                if label not in by_name[name].settings:
                    hint = unknown_name_hint(label, by_name[name].labels)
                    raise ConfigError(
                        f"the axis {name} has no label {label!r}", where=text.where((*at, name)), hint=hint
                    )


def _check_scores(file: PlanFile, cells: Sequence[Cell], text: YamlText) -> PlanFile:
    """Check the scores of columns and claims; return the plan's keys with their registered spelling."""
    measured = {name for cell in cells for name in cell.config.evaluation.scores}
    columns = tuple(
        check_score_name(column, measured, text.where(("columns", i))) for i, column in enumerate(file.columns)
    )
    claims = []
    for i, claim in enumerate(file.claims):
        gap = "gap:" if claim.score.startswith("gap:") else ""
        name = check_score_name(claim.score.removeprefix("gap:"), measured, text.where(("claims", i, "score")))
        claims.append(claim.model_copy(update={"score": gap + name}))
    return file.model_copy(update={"columns": columns, "claims": tuple(claims)})


def _check_pairs(file: PlanFile, cells: Sequence[Cell], text: YamlText) -> None:
    """Refuse a claim that no results could test: one of its groups has no cell, or none pairs with the other's."""
    for i, claim in enumerate(file.claims):
        compared = {axis for group in claim.compare for axis in group}
        here = [cell.labels for cell in cells if matches(cell.labels, claim.where)]
        groups = []
        for number, group in enumerate(claim.compare):
            members = [labels for labels in here if matches(labels, group)]
            if not members:
                raise ConfigError("the plan has no such cell", where=text.where(("claims", i, "compare", number)))
            groups.append({tuple((k, v) for k, v in labels.items() if k not in compared) for labels in members})
        if not groups[0] & groups[1]:
            raise ConfigError(
                "no cell of one group has a partner in the other",
                where=text.where(("claims", i, "compare")),
                hint="two cells are partners if they agree on every axis that `compare` does not name",
            )


def _expand_cells(
    file: PlanFile, axes: tuple[Axis, ...], overrides: tuple[str, ...], text: YamlText
) -> Iterator[tuple[dict[str, str], RunConfig]]:
    base_path: KeyPath = ()
    if isinstance(file.base, str):
        base_text = read_yaml(Path(text.name).parent / file.base)
        base = base_text.value
        if not isinstance(base, dict):
            raise ConfigError("a configuration is a mapping of keys to values", where=base_text.name)
        cells = math.prod(len(axis.labels) for axis in axes)
        check_copies(cells, base_text, base_text.name)
    else:
        base_text, base, base_path = text, file.base, ("base",)
    count = 0
    for choice in itertools.product(*(axis.labels for axis in axes)):
        labels = {axis.name: label for axis, label in zip(axes, choice, strict=True)}
        if any(matches(labels, rule) for rule in file.exclude):
            continue
        values = copy.deepcopy(base)
        origins = Origins((base_text, base_path))
        for axis in axes:
            at = axis.key_paths[labels[axis.name]]
            is_variant = at[0] == "variants"
            for key, value in axis.settings[labels[axis.name]].items():
                set_key(values, key, value, origins, (text, (*at, key) if is_variant else at))
        for i, adjustment in enumerate(file.adjust):
            if matches(labels, adjustment.when):
                for key, value in adjustment.set.items():
                    set_key(values, key, value, origins, (text, ("adjust", i, "set", key)))
        apply_overrides(values, overrides, origins)
        config = check_config(values, origins)
        for section in ("forget", "method"):
            if getattr(config, section) is None and config.leakage is None:
                raise ConfigError(f"a cell of the plan has no {section}: {labels}", where=text.where(("grid",)))
        count += 1
        yield labels, config
    if not count:
        raise ConfigError("every cell of the grid is excluded", where=text.where(("exclude",)))


def _pair_with_references(
    expanded: list[tuple[dict[str, str], RunConfig]], reference: str, axes: tuple[Axis, ...], text: YamlText
) -> list[Cell]:
    """Pair every cell with the reference of the same run: by the label on a method axis, or else by the method's name.

    Two cells belong to the same run if their configurations agree in everything but the method.
    """
    labelled = [axis.name for axis in axes if axis.role == "method" and reference in axis.labels]
    references: dict[str, int] = {}
    runs = []
    for index, (labels, config) in enumerate(expanded):
        body = canonical_config(config)
        method = body.pop("method", {"name": ""})
        runs.append(hash_json(body))
        if config.leakage is not None:
            continue
        if (
            reference in [labels[a] for a in labelled]
            if labelled
            else method["name"].casefold() == reference.casefold()
        ):
            if runs[-1] in references:
                other = expanded[references[runs[-1]]][0]
                raise ConfigError(
                    f"two cells are the reference of the same runs: {other} and {labels}",
                    where=text.where(("grid",)),
                    hint=f"exclude one of them; set the options of another method together with its name, "
                    f"so that {reference} is not repeated",
                )
            references[runs[-1]] = index
    cells = []
    for index, ((labels, config), run) in enumerate(zip(expanded, runs, strict=True)):
        if config.leakage is not None:
            cells.append(Cell(labels, config, index))
            continue
        if run not in references:
            raise ConfigError(
                f"no cell runs {reference} as the reference of {labels}",
                where=text.where(("grid",)),
                hint=f"add {reference} to the methods, or name another reference",
            )
        cells.append(Cell(labels, config, references[run]))
    return cells
