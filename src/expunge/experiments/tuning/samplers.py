"""What draws the options of the trials: a seeded random search, or Optuna (the extra `tune`)."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.core.seeds import derive
from expunge.methods.space import Choice, Domain, draw_options

#: The values of `--sampler`.
SAMPLERS = ("random", "optuna:tpe", "optuna:random")


class Sampler(abc.ABC):
    """Draws the options of the trials of one search, in order; the first trial always has the defaults.

    Attributes:
        adapts: whether a draw depends on the results before it, so that trials run one after the other.
    """

    adapts: ClassVar[bool] = False

    @abc.abstractmethod
    def ask(self, index: int) -> dict[str, Any]:
        """The options of the trial with this number; number 0 stands for the defaults."""

    def tell(self, index: int, objective: float | None) -> None:  # noqa: B027
        """The result of a trial; None: it failed."""


class RandomSampler(Sampler):
    """Independent draws. They depend on seed, method, option and number of the trial, and on nothing else."""

    def __init__(self, method: str, space: Mapping[str, Domain], seed: int) -> None:
        self._method, self._space, self._seed = method, space, seed

    def ask(self, index: int) -> dict[str, Any]:
        """See `Sampler.ask`."""
        return draw_options(self._space, self._seed, self._method, index)


class OptunaSampler(Sampler):
    """A sampler of Optuna. Its first trial is the defaults; every failure is reported to it as a failed trial.

    Raises:
        ConfigError: Optuna is not installed.
    """

    adapts: ClassVar[bool] = True

    def __init__(
        self, kind: str, method: str, space: Mapping[str, Domain], seed: int, defaults: Mapping[str, Any]
    ) -> None:
        try:
            self._optuna = importlib.import_module("optuna")
        except ImportError as error:
            raise ConfigError("Optuna is not installed", where="sampler", hint="pip install expunge[tune]") from error
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._space, self._asked = space, dict[int, Any]()
        number = derive(seed, "tune", "optuna", method) % 2**32
        samplers = {"tpe": self._optuna.samplers.TPESampler, "random": self._optuna.samplers.RandomSampler}
        self._study = self._optuna.create_study(direction="minimize", sampler=samplers[kind](seed=number))
        self._study.enqueue_trial({option: _place(domain, defaults[option]) for option, domain in space.items()})

    def ask(self, index: int) -> dict[str, Any]:
        """See `Sampler.ask`."""
        trial = self._study.ask()
        self._asked[index] = trial
        return {option: _suggest(trial, option, domain) for option, domain in self._space.items()}

    def tell(self, index: int, objective: float | None) -> None:
        """See `Sampler.tell`."""
        failed = self._optuna.trial.TrialState.FAIL
        self._study.tell(self._asked.pop(index), objective, state=failed if objective is None else None)


def _place(domain: Domain, value: Any) -> Any:
    """What Optuna calls a value: the index of a choice, or the number itself."""
    return next(i for i, known in enumerate(domain.values) if known == value) if isinstance(domain, Choice) else value


def _suggest(trial: Any, option: str, domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return domain.values[trial.suggest_categorical(option, list(range(len(domain.values))))]
    if domain.integer:
        return int(trial.suggest_int(option, int(domain.low), int(domain.high), log=domain.log))
    return domain.round(trial.suggest_float(option, domain.low, domain.high, log=domain.log))


def make_sampler(
    name: str, method: str, space: Mapping[str, Domain], seed: int, defaults: Mapping[str, Any]
) -> Sampler:
    """Make the sampler of one search.

    Args:
        name: one of `SAMPLERS`.
        method: registered name of the method.
        space: what is drawn.
        seed: of the search.
        defaults: of the method's options.

    Raises:
        ConfigError: the name is unknown, or Optuna is not installed.

    >>> from expunge.methods.space import read_space
    >>> make_sampler("random", "GA", read_space("GA"), 0, {}).ask(1)
    {'epochs': 3, 'learning_rate': 0.00462}
    """
    if name not in SAMPLERS:
        raise ConfigError(f"unknown sampler {name!r}", where="sampler", hint=unknown_name_hint(name, SAMPLERS))
    family, _, kind = name.partition(":")
    if family == "optuna":
        return OptunaSampler(kind, method, space, seed, defaults)
    return RandomSampler(method, space, seed)
