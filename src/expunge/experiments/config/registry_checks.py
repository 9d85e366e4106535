"""Check names and options that only the registries know, before anything is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from expunge.core.errors import ExpungeError
from expunge.core.trust import trusting
from expunge.experiments.objects.imported import check_declaration
from expunge.experiments.objects.method import make_method
from expunge.experiments.objects.model import check_model
from expunge.experiments.objects.pruning import make_pruning
from expunge.experiments.objects.records import check_source
from expunge.experiments.objects.request import check_selection
from expunge.experiments.objects.training import check_ensemble, make_recipe, make_runtime

if TYPE_CHECKING:
    from expunge.methods import Method
    from expunge.sparsity import Pruning
    from expunge.training import Recipe

    from .plan import Plan
    from .run_config import RunConfig


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


def check_sections(config: RunConfig) -> Recipe:
    """Check every section as `check_names` does, with the trust that is active; returns the recipe."""
    from expunge.evaluation.registry.measure import find_scores

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
        if config.forget.by == "memorised":
            check_ensemble(values["training"])
    if config.method is not None:
        with _section("method"):
            make_checked_method(config)
    if config.leakage is not None:
        check_ensemble(values["training"])
    with _section("evaluation"):
        find_scores(config.evaluation.scores)
    with _section("runtime"):
        make_runtime(values["runtime"])
    return recipe


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


def make_checked_method(config: RunConfig) -> Method:
    """The object of the section `method`, after checking that a model pruned as in `sparsity` has the state it needs.

    Raises:
        MethodError: un-pruning by influence after a schedule that it does not support, or without the dense weights of
            pruning time (`sparsity.keep_weights`).
    """
    assert config.method is not None
    method = make_method(config.method.model_dump(mode="json"))
    if config.sparsity is not None:
        method.check_pruning(config.sparsity.schedule, config.sparsity.keep_weights)
    return method


def check_plan(plan: Plan) -> None:
    """Run `check_names` on every cell of a plan.

    Args:
        plan: see `load_plan`.

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
    >>> check_plan(load_plan("plan.yaml", ["model.options.width=8"]))
    Traceback (most recent call last):
        ...
    expunge.core.errors.ConfigError: plan.yaml (method Retrain): model: ...
    """
    seen = set()
    for cell in plan.cells:
        text = repr({**cell.config.model_dump(), "seed": None})
        if text not in seen:
            seen.add(text)
            try:
                with trusting(plan.trust):
                    check_names(cell.config)
            except ExpungeError as error:
                place = f"{plan.path} ({cell.name}): {error.where}"
                raise type(error)(error.what, where=place, hint=error.hint) from error


@contextlib.contextmanager
def _section(name: str) -> Iterator[None]:
    """Add the name of a section of the configuration to errors that are raised inside the block."""
    try:
        yield
    except ExpungeError as error:
        where = name if error.where in (None, name) else f"{name}: {error.where}"
        raise type(error)(error.what, where=where, hint=error.hint) from error
