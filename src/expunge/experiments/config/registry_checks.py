"""Check names and options that only the registries know, before anything is trained."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ConfigError, ExpungeError
from expunge.core.registry.custom_code import find_custom_code
from expunge.core.show import repr_fields
from expunge.core.trust import trusting
from expunge.experiments.objects.evaluation import check_scores
from expunge.experiments.objects.imported import check_declaration
from expunge.experiments.objects.method import make_method, split_options
from expunge.experiments.objects.model import check_model
from expunge.experiments.objects.pruning import make_pruning
from expunge.experiments.objects.records import check_source
from expunge.experiments.objects.request import check_selection
from expunge.experiments.objects.training import check_ensemble, make_recipe, make_runtime

if TYPE_CHECKING:
    from expunge.methods import Method
    from expunge.sparsity import Pruning
    from expunge.training import Recipe

    from .plan import Cell, Plan
    from .run_config import RunConfig
    from .sections.forget import LeakageConfig


def check_names(config: RunConfig) -> None:
    """Check data source, model, recipe, sparsity, forget set, method, scores and runtime against their registries.

    Reads no data and builds no model. Imports torch, and the module of a custom model if `config.trust` allows it.

    Args:
        config: see `load_config`.

    Raises:
        TrustError: the model is custom code that the user has not agreed to run; it was not imported.
        ExpungeError: the first unknown name or option, with the nearest known one; `where` names the section.

    >>> from pathlib import Path
    >>> from expunge.experiments import check_names, load_config
    >>> text = "{data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, method: {name: FT}}"
    >>> _ = Path("run.yaml").write_text(text)
    >>> check_names(load_config("run.yaml"))
    >>> check_names(load_config("run.yaml", ["method.options.epoch=3"]))
    Traceback (most recent call last):
        ...
    expunge.core.errors.MethodError: method: method FT has no option 'epoch'
      hint: did you mean 'epochs'? ...
    """
    with trusting(config.trust):
        check_sections(config)


def check_sections(config: RunConfig, *, drop_unused: bool = False) -> Recipe:
    """Check every section as `check_names` does, with the trust that is active; returns the recipe.

    Args:
        config: the configuration.
        drop_unused: see `make_method`: for cells of a plan.
    """
    values = config.model_dump(mode="json")
    with _section("data"):
        check_source(values["data"])
    with _section("model"):
        check_model(values["model"])
        check_declaration(values["model"])
    with _section("training"):
        recipe = make_recipe(values["training"])
    if config.sparsity is not None:
        with _section("sparsity"):
            make_checked_pruning(config, recipe)
    if config.forget is not None:
        with _section("forget"):
            check_selection(values["forget"])
        if config.forget.ranked is not None:
            check_ensemble(values["training"])
    method = None
    if config.method is not None:
        with _section("method"):
            method = make_checked_method(config, drop_unused=drop_unused)
    if config.leakage is not None:
        check_ensemble(values["training"])
        with _section("leakage"):
            _check_leakage(config.leakage, recipe)
    with _section("evaluation"):
        check_scores(values["evaluation"])
    with _section("runtime"):
        runtime = make_runtime(values["runtime"])
    if runtime.devices > 1:
        from torch import nn

        from expunge.training.processes.team import check_split

        check_split(nn.Identity(), (1,), find_smallest_batch(recipe, method), runtime)  # a network that can be split
    return recipe


def find_smallest_batch(recipe: Recipe, method: Method | None) -> int:
    """Records in the smallest batch that several processes would share: of the training, and of the method."""
    sizes = [recipe.batch_size]
    if method is not None and not method.one_process and hasattr(method, "batch_size"):
        sizes.append(method.batch_size)
    return min(sizes)


def _check_leakage(section: LeakageConfig, recipe: Recipe) -> None:
    """Check the other set and the number of replayed epochs of topology leakage."""
    if section.other is not None:
        check_selection(section.other.model_dump(mode="json"))
    if section.prefix_epochs is not None and section.prefix_epochs > recipe.epochs:
        raise ConfigError(
            f"replay of {section.prefix_epochs} epochs of a recipe of {recipe.epochs}", where="prefix_epochs"
        )


def make_checked_pruning(config: RunConfig, recipe: Recipe | None) -> Pruning:
    """The object of the section `sparsity`, after checking that it fits the recipe and what is measured.

    Args:
        config: its section `sparsity` is set.
        recipe: that of the section `training`; None: that section is wrong.

    Raises:
        ConfigError, MaskError: see `make_pruning`.
    """
    assert config.sparsity is not None
    epochs = None if recipe is None else recipe.epochs
    section = config.sparsity.model_dump(mode="json")
    return make_pruning(section, epochs=epochs, ranks_trained_weights=config.leakage is not None)


def make_checked_method(config: RunConfig, *, drop_unused: bool = False) -> Method:
    """The object of the section `method`, after checking that a model pruned as in `sparsity` has the state it needs.

    Args:
        config: its section `method` is set.
        drop_unused: see `make_method`.

    Raises:
        MethodError: un-pruning by influence after a schedule that it does not support, or without the dense weights of
            pruning time (`sparsity.keep_weights`).
        RequestError: the request is a correction, which the method does not support.
    """
    assert config.method is not None
    method = make_method(config.method.model_dump(mode="json"), drop_unused=drop_unused)
    if config.forget is not None and config.forget.by == "correct":
        method.check_corrects()
    if config.sparsity is not None:
        method.check_pruning(config.sparsity.schedule, config.sparsity.keep_weights)
    return method


@dataclasses.dataclass(frozen=True, eq=False)
class CellGroup:
    """The cells of a plan that differ only in their seeds, and what a check of them found.

    Attributes:
        labels: the labels that they share.
        cells: how many they are.
        method: name and guarantee of the method; empty for leakage, or if there is an error.
        dropped: options of the method that its other options leave without effect; they are not used.
        error: what is wrong with them, or None.
    """

    labels: Mapping[str, str]
    cells: int
    method: str
    dropped: Mapping[str, Any]
    error: ExpungeError | None

    __repr__ = repr_fields

    @property
    def name(self) -> str:
        """The shared labels as text."""
        return ", ".join(f"{axis} {label}" for axis, label in self.labels.items())

    @property
    def note(self) -> str:
        """The dropped options in words; empty if there are none."""
        options = ", ".join(f"{key}={value}" for key, value in self.dropped.items())
        return f"the method does not use {options}: dropped" if options else ""


def check_cells(plan: Plan) -> list[CellGroup]:
    """Check the cells of a plan as `check_names` does; nothing is run, and errors are part of the result.

    Options of a method that its other options leave without effect are dropped: cells share options.

    >>> from pathlib import Path
    >>> from expunge.experiments import check_cells, load_plan
    >>> _ = Path("plan.yaml").write_text('''
    ... name: small
    ... base:
    ...   {data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, forget: {by: class, index: 3}}
    ... grid: {method: [{name: Retrain}, {name: FT}], seed: [0, 1]}
    ... ''')
    >>> [(group.name, group.cells, group.method) for group in check_cells(load_plan("plan.yaml"))]
    [('method Retrain', 2, 'Retrain, guarantee exact'), ('method FT', 2, 'FT, guarantee empirical')]
    """
    cells: dict[str, list[Cell]] = {}
    for cell in plan.cells:
        cells.setdefault(repr({**cell.config.model_dump(), "seed": None}), []).append(cell)
    with trusting(plan.trust):
        return [_check_group(group) for group in cells.values()]


def _check_group(cells: Sequence[Cell]) -> CellGroup:
    first = cells[0]
    labels = {axis: label for axis, label in first.labels.items() if all(c.labels[axis] == label for c in cells)}
    method, dropped = "", {}
    error: ExpungeError | None = None
    try:
        check_sections(first.config, drop_unused=True)
        if first.config.method is not None:
            made = make_checked_method(first.config, drop_unused=True)
            method = f"{made.name}, guarantee {_announce_guarantee(first.config, made)}"
            dropped = split_options(first.config.method.model_dump(mode="json"))[1]
    except ExpungeError as found:
        error = found
    except Exception as found:
        place = find_custom_code(found)
        if place is None:
            raise
        error = ConfigError(f"custom code raised {type(found).__name__}: {found}", where=place)
    return CellGroup(labels, len(cells), method, dropped, error)


def _announce_guarantee(config: RunConfig, method: Method) -> str:
    """The guarantee of the outcomes of a cell, as far as it is known before data and weights are read."""
    from torch import nn

    from expunge.core.mask import Mask, MaskProvenance
    from expunge.core.split import Split, as_ids
    from expunge.core.trained import Provenance, Trained
    from expunge.methods.stand_in import lower_guarantee

    def find(pruned: bool) -> str:
        nobody = as_ids(())
        split = Split(nobody, nobody, nobody, nobody, nobody)
        mask = Mask({}, MaskProvenance("")) if pruned else None
        guarantee = method.find_guarantee(Trained(nn.Identity(), mask, split, Provenance({})))
        return lower_guarantee(guarantee) if config.forget is not None and config.forget.stand_in else guarantee

    if config.sparsity is not None or config.model.mask is not None or config.model.weights is None:
        return find(config.sparsity is not None or config.model.mask is not None)
    dense, sparse = find(False), find(True)
    return dense if dense == sparse else f"{dense}, or {sparse} if the model is pruned"


def check_plan(plan: Plan) -> list[str]:
    """Check the cells of a plan, and raise the first error.

    Args:
        plan: see `load_plan`.

    Returns:
        A line for each group of cells of which options are dropped, because the other options leave them without
        effect.

    Raises:
        ExpungeError: as `check_names`; `where` names the plan and the cell.

    >>> from pathlib import Path
    >>> from expunge.experiments import check_plan, load_plan
    >>> _ = Path("plan.yaml").write_text('''
    ... name: small
    ... base:
    ...   {data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, forget: {by: class, index: 3}}
    ... grid: {method: [{name: Retrain}, {name: FT}]}
    ... ''')
    >>> check_plan(load_plan("plan.yaml"))
    []
    >>> check_plan(load_plan("plan.yaml", ["model.options.width=8"]))
    Traceback (most recent call last):
        ...
    expunge.core.errors.ConfigError: plan.yaml (method Retrain): model: ...
    """
    groups = check_cells(plan)
    for group in groups:
        if group.error is not None:
            error = group.error
            place = f"{plan.path} ({group.name}): {error.where}"
            raise type(error)(error.what, where=place, hint=error.hint) from error
    return [f"{group.name}: {group.note}" for group in groups if group.note]


@contextlib.contextmanager
def _section(name: str) -> Iterator[None]:
    """Add the name of a section of the configuration to errors that are raised inside the block."""
    try:
        yield
    except ExpungeError as error:
        where = name if error.where in (None, name) else f"{name}: {error.where}"
        raise type(error)(error.what, where=where, hint=error.hint) from error
