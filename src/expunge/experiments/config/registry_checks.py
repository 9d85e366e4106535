"""Check names and options that only the registries know, before anything is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ExpungeError
from expunge.core.trust import trusting

if TYPE_CHECKING:
    from expunge.sparsity import Pruning

    from .plan import Plan
    from .run_config import RunConfig


def check_names(config: RunConfig) -> None:
    """Check data source, model, recipe, sparsity, forget set, method and runtime against their registries.

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
        _check_names(config)


def _check_names(config: RunConfig) -> None:
    from expunge.data import check_selection
    from expunge.methods import get_method
    from expunge.sparsity import PrunedBy
    from expunge.training.recipes import get_recipe
    from expunge.training.runtime import Runtime

    with _section("data"):
        _check_source(config.data.source, config.data.options)
    with _section("model"):
        _check_model(config.model.name, config.model.options)
        if config.model.pruned is not None:
            PrunedBy(**config.model.pruned.model_dump()).validate()
    with _section("training"):
        get_recipe(config.training.recipe, **config.training.extra_keys)
    if config.sparsity is not None:
        with _section("sparsity"):
            check_sparsity(config)
    if config.forget is not None:
        with _section("forget"):
            check_selection(config.forget.model_dump())
        if config.forget.by == "memorised":
            _check_ensemble(config)
    if config.method is not None:
        with _section("method"):
            get_method(config.method.name, **config.method.options)
            check_pruning(config)
    if config.leakage is not None:
        _check_ensemble(config)
    with _section("runtime"):
        Runtime(**config.runtime.model_dump())


def check_pruning(config: RunConfig) -> None:
    """Check that a model pruned as configured in `sparsity` has the state that the method needs.

    Raises:
        MethodError: un-pruning by influence after a schedule that it does not support, or without the dense weights of
            pruning time (`sparsity.keep_weights`).
    """
    from expunge.methods import get_method

    if config.method is None or config.sparsity is None:
        return
    check = getattr(get_method(config.method.name, **config.method.options), "check_pruning", None)
    if check is not None:
        check(config.sparsity.schedule, config.sparsity.keep_weights)


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


def _check_ensemble(config: RunConfig) -> None:
    from expunge.core.errors import ConfigError
    from expunge.training.recipes import get_recipe

    if get_recipe(config.training.recipe, **config.training.extra_keys).select != "last":
        raise ConfigError(
            "an ensemble uses the last epoch of every model", where="training.select", hint="select: last"
        )


def _check_source(name: str, options: Mapping[str, Any]) -> None:
    from expunge.data.registry import get_source

    get_source(name).check_options(options)


def _check_model(name: str, options: Mapping[str, Any]) -> None:
    from expunge.core.errors import ConfigError, unknown_name_hint
    from expunge.models import model_options
    from expunge.models.factory import check_custom_options, is_custom

    if is_custom(name):
        check_custom_options(name, options)
        return
    known = model_options(name)
    for option in options:
        if option not in known:
            raise ConfigError(f"the model {name} has no option {option!r}", hint=unknown_name_hint(option, known))


def check_sparsity(config: RunConfig) -> Pruning:
    """Check the section `sparsity`, and that it fits the recipe and what is measured; return it as an object.

    Raises:
        ConfigError, MaskError: see `expunge.sparsity.Pruning`.
    """
    from expunge.core.errors import ConfigError
    from expunge.sparsity import Pruning, get_schedule
    from expunge.training.recipes import get_recipe

    assert config.sparsity is not None
    epochs = None
    pruning = Pruning(**config.sparsity.model_dump())
    with contextlib.suppress(ExpungeError):  # a wrong recipe is an error of its own section
        epochs = get_recipe(config.training.recipe, **config.training.extra_keys).epochs
    pruning.check_recipe(epochs)
    if config.leakage is not None and not get_schedule(pruning.schedule).ranks_trained_weights:
        raise ConfigError(
            f"topology leakage needs masks of trained dense weights, which {pruning.schedule} does not rank",
            where="schedule",
            hint="use omp or one-shot",
        )
    return pruning
