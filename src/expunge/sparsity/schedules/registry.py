"""Schedules: when a mask is made, and what is trained before and after. How they are registered and found.

The built-in schedules are in `after_training` and `from_initialisation`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from expunge.core.errors import ConfigError
from expunge.core.mask import Mask
from expunge.core.registry import SCHEDULES, is_reference
from expunge.core.show import repr_fields
from expunge.sparsity.masks.recorded import permit_name

#: `run -> pruned`, where run is a `PruningRun` and pruned is a `Pruned` (`expunge.sparsity.schedules.run`).
Run = Callable[[Any], Any]
#: `(options, epochs)`: checks the complete options; `epochs` is the length of the recipe, None if it is not known yet.
CheckOptions = Callable[[Mapping[str, Any], int | None], None]
#: `(sparsity, options)`: the sparsity of every round.
RoundSparsities = Callable[[float, Mapping[str, Any]], Sequence[float]]
#: What a schedule can start from.
STARTS = ("trained", "initial")
#: What a schedule can compute its final scores from.
SCORED = ("dense", "initial", "sparse")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A registered schedule.

    Attributes:
        name: the option value, which masks record.
        run: the function `run -> pruned`.
        starts_from: `trained`: the weights of the dense model. `initial`: its initial weights, built again from their
            seed, so that the dense model need not be trained.
        scores: the weights that the final scores are computed from. `dense`: weights at the end of training without
            a mask. `initial`: the initial weights, so that the mask holds from the first step of training on. `sparse`:
            weights that are sparse already, because the schedule prunes step by step.
        rewinds: whether it trains from the rewind checkpoint, so that the option `epochs` has an effect.
        trains: whether it trains, which needs the recipe of the dense model.
        options: its own options with their defaults.
        check: checks the complete options; see `CheckOptions`.
        round_sparsities: of a schedule that ranks the trained weights, rewinds, trains with the mask, and repeats: the
            sparsity of every round; see `RoundSparsities`.
    """

    name: str
    run: Run
    starts_from: str
    scores: str
    rewinds: bool = False
    trains: bool = True
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    check: CheckOptions | None = None
    round_sparsities: RoundSparsities | None = None

    __repr__ = repr_fields

    @property
    def starts_from_initial_weights(self) -> bool:
        """Whether it starts from the initial weights, not from those of the trained dense model."""
        return self.starts_from == STARTS[1]

    @property
    def keeps_scored_weights(self) -> bool:
        """Whether it can store the weights that it scored last (`keep_weights`): they are dense, and nowhere else."""
        return self.scores == SCORED[0]

    @property
    def can_keep_weights(self) -> bool:
        """Whether `keep_weights` has an effect: for dense weights that it scored last, or those of every round."""
        return self.keeps_scored_weights or self.round_sparsities is not None

    @property
    def scores_initial_weights(self) -> bool:
        """Whether the mask follows from the initial weights, and holds from the first step of training on."""
        return self.scores == SCORED[1]

    @property
    def stepwise(self) -> bool:
        """Whether it prunes step by step, which needs several sparsities and scores weights that are sparse already."""
        return self.scores == SCORED[2]

    @property
    def ranks_trained_weights(self) -> bool:
        """Whether its mask is that of the rule for the trained dense weights, whatever is trained afterwards."""
        return self.keeps_scored_weights and not self.starts_from_initial_weights


def register_schedule(
    name: str,
    *,
    starts_from: str,
    scores: str,
    rewinds: bool = False,
    trains: bool = True,
    options: Mapping[str, Any] | None = None,
    check: CheckOptions | None = None,
    round_sparsities: RoundSparsities | None = None,
) -> Callable[[Run], Run]:
    """Register a function `PruningRun -> Pruned` as a schedule; see `Schedule` for the arguments.

    Raises:
        ConfigError: the name is registered by other code already, or a fact has a value that it cannot have.

    Example:
        >>> import expunge
        >>> from expunge.sparsity import Pruned, PruningRun
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = expunge.architecture("mlp", records, split, widths=(16,))
        >>> recipe = expunge.get_recipe("one-cycle", epochs=1, batch_size=256)
        >>> dense = expunge.train(records, split, network, recipe=recipe)
        >>> with SCHEDULES.temporary():  # only for this example
        ...     @register_schedule("initial-mask", starts_from="initial", scores="initial", trains=False)
        ...     def prune_initial_weights(run: PruningRun) -> Pruned:
        ...         model = run.build_initial_model()
        ...         mask, scores = run.make_mask(model, batch_statistics=True)
        ...         mask.apply_(model)
        ...         return run.finish(model, mask, scores, " before any training")
        ...     pruning = expunge.Pruning(sparsity=0.9, layers=("linear",), schedule="initial-mask")
        ...     sparse = expunge.prune(dense, pruning, expunge.Context(records))
        >>> sparse.provenance.history[-1]
        'pruned (initial-mask) to 90.03 % sparsity before any training'
    """
    if starts_from not in STARTS or scores not in SCORED:
        raise ConfigError(
            f"starts_from = {starts_from!r}, scores = {scores!r}: a schedule starts from {' or '.join(STARTS)} weights "
            f"and scores {', '.join(SCORED)} weights",
            where=f"schedule {name}",
        )

    def register(function: Run) -> Run:
        schedule = Schedule(
            name, function, starts_from, scores, rewinds, trains, options or {}, check, round_sparsities
        )
        SCHEDULES.add(name, schedule, function)
        return function

    return register


def schedule_names(*, scores: str | None = None, rewinds: bool | None = None) -> list[str]:
    """Return the names of the known schedules; nothing is imported.

    Args:
        scores: only those that score these weights; see `Schedule`.
        rewinds: only those that rewind, or only those that do not.

    Example:
        >>> from expunge.sparsity import schedule_names
        >>> {"imp", "omp", "one-shot"} <= set(schedule_names())
        True
        >>> {"imp", "omp"} <= set(schedule_names(rewinds=True)), "one-shot" in schedule_names(rewinds=True)
        (True, False)
    """
    return [
        found.name
        for found in SCHEDULES.definitions()
        if scores in (None, found.facts.get("scores")) and rewinds in (None, found.facts.get("rewinds", False))
    ]


def get_schedule(name: str) -> Schedule:
    """Return a schedule: a registered name, in upper or lower case, or `package.module:function` of a registered one.

    Raises:
        ConfigError: unknown schedule, or a plug-in cannot be imported.
        TrustError: the owner did not agree to the code of a reference.

    Example:
        >>> get_schedule("OMP").name, get_schedule("omp").scores, get_schedule("imp").options
        ('omp', 'dense', {'rate': 0.2})
    """
    schedule: Schedule = SCHEDULES.get(name)
    return schedule


def recorded_schedule(mask: Mask) -> Schedule | None:
    """The schedule that a mask records; None if nothing of that name is defined (an imported mask, for example).

    Raises:
        TrustError: the mask names code that the owner did not agree to run.
        MaskError: there is no such module.

    Example:
        >>> from expunge.core.mask import MaskProvenance
        >>> recorded_schedule(Mask({}, MaskProvenance("magnitude", schedule="omp"))).rewinds
        True
        >>> recorded_schedule(Mask({}, MaskProvenance("magnitude", schedule="baked-zeros"))) is None
        True
    """
    name = mask.provenance.schedule
    permit_name(name)
    return get_schedule(name) if is_reference(name) or name in SCHEDULES else None
