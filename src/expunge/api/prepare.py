"""The one decision of whether a method can run on a model, and how: `forget`, `check` and `methods` all ask here."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from expunge.core.errors import ConfigError, ExpungeError, MethodError, unknown_name_hint, with_article
from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.show import plural, repr_fields
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.data.retain_set.stand_in import StandIn, join_stand_in
from expunge.experiments.objects.method import make_method
from expunge.methods import Method, check_usable, method_class
from expunge.methods.registry import options_of
from expunge.methods.stand_in import forget_with_stand_in, replace_retained
from expunge.sparsity import Pruning
from expunge.training import Context, get_recipe

from .declared import DEFAULT_RECIPE

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A method that can run, and the model that it runs on.

    Attributes:
        method: with its options.
        trained: the original, with the assumed recipe if the method needs one and none was declared.
        assumed: what was assumed, as a sentence; empty: nothing.
        stand_in: what the method reads in place of a retain set that is gone, or None.
    """

    method: Method
    trained: Trained
    assumed: str = ""
    stand_in: StandIn | None = None

    __repr__ = repr_fields

    def forget(self, request: ForgetRequest, context: Context) -> Outcome:
        """Run the method."""
        if self.stand_in is None:
            return self.method.forget(self.trained, request, context)
        return forget_with_stand_in(self.method, self.trained, request, context, self.stand_in)

    @property
    def cautions(self) -> tuple[str, ...]:
        """What a user should know before it runs: what was assumed, and that the method cannot change the model."""
        return tuple(text for text in (self.assumed, self.idle) if text)

    @property
    def idle(self) -> str:
        """That the method cannot change the model, as a sentence; empty: it may."""
        reason = self.method.find_idle_reason(self.trained)
        return f"{self.method.name} changes nothing: {reason}" if reason else ""


def choose_method(trained: Trained, method: str | Method, options: Mapping[str, Any]) -> Method:
    """Make a method. The seeds of a model that was trained elsewhere are unknown, so a retraining draws new ones.

    Args:
        trained: the original.
        method: a name, or a method with its options.
        options: of a method that is named.

    Raises:
        MethodError: the method or an option is unknown, or there are options beside a method.
    """
    if isinstance(method, Method):
        if options:
            raise MethodError(
                "the method has its options already", where=next(iter(options)), hint="name it: method='FT', epochs=3"
            )
        return method
    if not isinstance(method, str):
        hint = "a name with its options, or expunge.get_method(name, ...)"
        raise MethodError(f"is {with_article(type(method).__name__)}", where="method", hint=hint)
    known = {field.name for field in options_of(method_class(method))}
    if "seeds" in known - set(options) and not {"initial", "order"} <= set(trained.provenance.seeds):
        options = {**options, "seeds": "new"}
    return make_method({"name": method, "options": options})


def refuse_repeated(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a function raise MethodError, with the way out, for an argument by position and as a keyword.

    Python has a bare TypeError there, but the keyword may be an option of a method: `method` of Un-prune. The call has
    one frame more on the stack, which `stacklevel` of warnings has to count.
    """
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: _P.args, **given: _P.kwargs) -> _R:
        for name in names[: len(args)]:
            if name in given:
                hint = f"an option of this name goes into options: options={{{name!r}: {given[name]!r:.60}}}"
                raise MethodError("is given twice, by position and as a keyword", where=name, hint=hint)
        return function(*args, **given)

    return call


def join_options(options: Mapping[str, Any] | None, further: Mapping[str, Any]) -> dict[str, Any]:
    """Join the options of a method that were given as a mapping and as keywords.

    Raises:
        MethodError: an option is given twice, or `options` is no mapping.
    """
    if options is not None and not isinstance(options, Mapping):
        raise MethodError(
            f"is {with_article(type(options).__name__)}", where="options", hint="options={'method': 'GA'}, for example"
        )
    twice = sorted(set(options or {}) & set(further))
    if twice:
        raise MethodError("is given in options and as a keyword", where=twice[0], hint="give it once")
    return {**(options or {}), **further}


def make_pruning(sparsity: float | None, options: Mapping[str, Any]) -> Pruning:
    """Make the pruning of a model that was trained elsewhere: at once, of convolutions and linear layers, by default.

    Raises:
        ConfigError: an option is unknown.
        MaskError: see `Pruning`.
    """
    known = {field.name for field in dataclasses.fields(Pruning)}
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(f"pruning has no option {unknown[0]!r}", hint=unknown_name_hint(unknown[0], known))
    return Pruning(sparsity, **{"schedule": "one-shot", "layers": ("conv", "linear"), **options})


def prepare(
    trained: Trained,
    method: str | Method,
    options: Mapping[str, Any],
    records: Records,
    request: ForgetRequest | None = None,
    stand_in: StandIn | None = None,
) -> Prepared:
    """Prepare a method for a model, or raise the error with which it is refused; nothing is trained.

    A method that trains as the original was trained gets the default recipe if none was declared.

    Args:
        trained: the original.
        method: a name, or a method with its options.
        options: of a method that is named.
        records: the records.
        request: the request; None: what does not depend on it is checked.
        stand_in: for a retain set that is gone; None: there is none.

    Raises:
        ExpungeError: see `choose_method` and `expunge.methods.check_usable`.
    """
    chosen = choose_method(trained, method, options)

    def check(model: Trained) -> None:
        if stand_in is None or request is None:
            check_usable(chosen, model, records, request)
        else:
            check_usable(chosen, replace_retained(model, request, stand_in), stand_in.records, request)

    try:
        check(trained)
        return Prepared(chosen, trained, stand_in=stand_in)
    except ExpungeError:
        if trained.provenance.recipe:
            raise
    assumed, text = assume_recipe(trained)
    check(assumed)
    return Prepared(chosen, assumed, text, stand_in)


def read_stand_in(given: Any, records: Records, request: ForgetRequest, split: Split) -> StandIn | None:
    """The stand-in for a retain set that is gone: records, or a data set that `Records.from_dataset` reads."""
    if given is None:
        return None
    if not isinstance(given, Records):
        given = Records.from_dataset(given, name="stand-in")
    return join_stand_in(records, given, request, split)


def assume_recipe(trained: Trained) -> tuple[Trained, str]:
    """Return the model with the default recipe in place of an unknown one, and what that means, as a sentence."""
    recipe = get_recipe(DEFAULT_RECIPE)
    said = f"{recipe.name}, {plural(recipe.epochs, 'epoch')}, batches of {recipe.batch_size}"
    text = f"recipe assumed: none was declared, so the default one is used ({said}); give that of the original: "
    text += "adopt(recipe=...)"
    provenance = dataclasses.replace(
        trained.provenance.add_history(f"recipe assumed: {recipe.name}"), recipe=recipe.to_json(), assumed=("recipe",)
    )
    return dataclasses.replace(trained, provenance=provenance), text
