"""Estimates for stages that have not run, from those that have (docs/plans.md, "Forecast")."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from expunge.core.show import plural, repr_fields

from .features import Features

#: Assumed relative standard deviation of the duration of one stage; it counts as one observation.
PRIOR = 0.25
#: Relative standard error that is added, once for all stages of one basis: it does not shrink with more stages.
SCALED, OTHER_MACHINE, GUESS, PROBE, FIRST = 0.3, 0.4, 1.0, 0.5, 1.0


@dataclasses.dataclass(frozen=True)
class Sample:
    """A finished stage.

    Attributes:
        features: see `describe_cost`.
        seconds: its duration.
        memory: peak resident bytes of its process; None: not known.
        machine: the processor.
        threads: of the process; None: not known.
        first: it was the first of its name in its process: its seconds include what the process loaded.
    """

    features: Features
    seconds: float
    memory: int | None = None
    machine: str = ""
    threads: int | None = None
    first: bool = False

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a stage is expected to take.

    Attributes:
        seconds: mean; None: nothing is known.
        spread: relative standard deviation of one stage around the mean.
        error: relative standard error of the mean, which all stages with the same `basis` and `group` share.
        memory: peak resident bytes of its process, or None.
        basis: what the numbers rest on, in words.
        group: names the stages that share an error.
    """

    seconds: float | None
    spread: float = 0.0
    error: float = 0.0
    memory: int | None = None
    basis: str = "unknown"
    group: str = ""

    __repr__ = repr_fields

    @property
    def range(self) -> tuple[float, float] | None:
        """About 95 % of such stages take so many seconds, if the durations are log-normal."""
        return None if self.seconds is None else find_range(self.seconds, math.hypot(self.spread, self.error))


def find_range(mean: float, relative: float) -> tuple[float, float]:
    """The central 95 % of a log-normal distribution.

    Args:
        mean: of the distribution.
        relative: its standard deviation divided by its mean.

    Example:
        >>> find_range(100.0, 0.0), [round(limit) for limit in find_range(100.0, 0.25)]
        ((100.0, 100.0), [60, 157])
    """
    variance = math.log1p(relative**2)
    middle, factor = mean * math.exp(-variance / 2), math.exp(1.96 * math.sqrt(variance))
    return middle / factor, middle * factor


class History:
    """Finished stages, to estimate others from.

    The estimate is the mean over the first of these groups that is not empty; of each, those of this machine with this
    number of threads, if there are any:

    1. stages alike: they differ in seeds and files only;
    2. similar stages (one data source, model, recipe, pruning schedule and method), scaled by records times epochs;
    3. a probe, if there is one;
    4. all stages of this name: a guess.

    The first stage of its name in a process also loads libraries, so it counts only where no other stage has finished.

    Example:
        >>> from expunge.experiments.forecast.features import describe_cost
        >>> train = describe_cost("train", {"model": {"name": "mlp"}})
        >>> history = History()
        >>> for seconds in (9.0, 11.0):
        ...     history.add(Sample(train, seconds))
        >>> found = history.estimate(train)
        >>> found.seconds, found.basis
        (10.0, 'from 2 finished stages like it')
        >>> history.estimate(describe_cost("score", {})).basis
        'unknown'
    """

    def __init__(
        self, machine: str = "", threads: int | None = None, probes: Mapping[str, Estimate] | None = None
    ) -> None:
        """Begin without any stage.

        Args:
            machine: the processor that the stages will run on.
            threads: of each process; None: any number.
            probes: estimates from a probe, by `Features.alike`.
        """
        self.machine, self.threads = machine, threads
        self.probes = dict(probes or {})
        self.size = 0
        self._groups: dict[tuple[str, str, bool], _Group] = {}

    def add(self, sample: Sample) -> None:
        """Add a finished stage; those that took no time at all are left out."""
        self.size += 1
        matches = sample.machine == self.machine and (
            self.threads is None or sample.threads is None or sample.threads == self.threads
        )
        found = sample.features
        for level, name in (("alike", found.alike), ("similar", found.similar), ("stage", found.stage)):
            self._groups.setdefault((level, name, sample.first), _Group()).add(sample, matches)

    def knows(self, features: Features) -> bool:
        """Whether a stage alike has finished on this machine, and was not the first of its process."""
        group = self._groups.get(("alike", features.alike, False))
        return group is not None and group.here.count > 0

    def estimate(self, features: Features) -> Estimate:
        """Estimate a stage that has not finished."""
        levels = (
            (("alike", features.alike), 0.0, "from {} like it"),
            (("similar", features.similar), SCALED, f"scaled from {{}}: {features.what}"),
            (("stage", features.stage), GUESS, f"a guess, from {{}} of other kinds: {features.stage}"),
        )
        for first in (False, True):
            for name, error, basis in levels:
                if name[0] == "stage" and not first and features.alike in self.probes:
                    return self.probes[features.alike]
                group = self._groups.get((*name, first))
                if group is not None:
                    work = features.work if name[0] == "similar" else None
                    return group.estimate(work, error, basis, name[1], first)
        return Estimate(None)


class _Sums:
    """Count, sum and sum of squares, of seconds and of seconds per unit of work."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0
        self.worked, self.rate, self.rate_squares = 0, 0.0, 0.0

    def add(self, seconds: float, work: float | None) -> None:
        self.count += 1
        self.total += seconds
        self.squares += seconds**2
        if work:
            self.worked += 1
            self.rate += seconds / work
            self.rate_squares += (seconds / work) ** 2

    def mean(self, work: float | None) -> tuple[int, float, float]:
        """Count, mean and relative standard deviation; with `work`, of seconds per unit of work times `work`."""
        by_work = bool(work) and self.worked == self.count
        total, squares = (self.rate, self.rate_squares) if by_work else (self.total, self.squares)
        mean = total / self.count
        residuals = max(0.0, squares / mean**2 - self.count) if mean > 0 else 0.0
        return self.count, mean * (work or 1.0 if by_work else 1.0), math.sqrt((PRIOR**2 + residuals) / self.count)


class _Group:
    """Finished stages of one kind: those of this machine, and all of them."""

    def __init__(self) -> None:
        self.here, self.all = _Sums(), _Sums()
        self.memory: int | None = None

    def add(self, sample: Sample, matches: bool) -> None:
        for sums in (self.all, self.here) if matches else (self.all,):
            sums.add(sample.seconds, sample.features.work)
        if sample.memory is not None:
            self.memory = max(self.memory or 0, sample.memory)

    def estimate(self, work: float | None, error: float, basis: str, name: str, first: bool) -> Estimate:
        """The mean of those of this machine, or else of all.

        Args:
            work: of the stage, to scale them by; None: they are not scaled.
            error: relative standard error to add.
            basis: the words, with a place for the number of stages.
            name: of the group.
            first: they include what their processes loaded.
        """
        sums = self.here if self.here.count else self.all
        count, mean, spread = sums.mean(work)
        other = 0.0 if self.here.count else OTHER_MACHINE
        error = math.hypot(error, spread / math.sqrt(count), other, FIRST if first else 0.0)
        basis = basis.format(plural(count, "finished stage"))
        basis += ", on another machine or with other threads" if other else ""
        basis += ", with what its process loaded" if first else ""
        return Estimate(mean, spread, error, self.memory, basis, name)
