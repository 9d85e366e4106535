"""Schedules: when scores are taken, and what is trained afterwards."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import ConfigError, MaskError, unknown_name_hint
from expunge.core.hashing import plain_name
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.seeds import derive, epoch_order
from expunge.core.trained import Trained, clone_model
from expunge.data.batches import Batches, keys_of
from expunge.data.records import Records
from expunge.models import Architecture
from expunge.training import checkpoint as checkpoints
from expunge.training.loop import BeforeEpoch, Fit, fit
from expunge.training.predict import validator
from expunge.training.progress import Progress
from expunge.training.recipes import recipe as as_recipe
from expunge.training.runtime import Runtime
from expunge.training.train import prune_seed

from .criteria import Batch, Scores
from .make import Rule, make_mask

EPOCHS = ("remaining", "full")


@dataclasses.dataclass(frozen=True)
class Pruning:
    """What every schedule is told. The fields are those of `prune`."""

    records: Records
    rule: Rule
    epochs: str
    score_records: int
    options: Mapping[str, Any]
    runtime: Runtime
    seed: int
    checkpoint: Path | None
    progress: Progress | None

    @property
    def sparsity(self) -> float:
        """The sparsity to reach."""
        assert self.rule.sparsity is not None
        return self.rule.sparsity

    def train_rows(self, trained: Trained) -> NDArray[np.int64]:
        """Rows of the training records."""
        return self.records.rows(trained.split.train)

    def batches_to_score(self, trained: Trained) -> Callable[[], Iterable[Batch]] | None:
        """The records a data-driven criterion reads: chosen by hash, so that others' removal does not change them."""
        if self.score_records == 0:
            return None
        rows = self.train_rows(trained)
        chosen = rows[epoch_order(keys_of(self.records)[rows], derive(self.seed, "score"), 0)[: self.score_records]]
        size = as_recipe(trained.provenance.recipe).batch_size
        return Batches(self.records, chosen, batch_size=size).in_order

    def mask(
        self,
        model: nn.Module,
        trained: Trained,
        *,
        sparsity: float | None = None,
        within: Mask | None = None,
        batch_statistics: bool = False,
    ) -> tuple[Mask, Scores]:
        """One mask of the rule, with the provenance of this run."""
        recipe = as_recipe(trained.provenance.recipe)
        mask, scores = make_mask(
            model,
            self.rule,
            input_shape=self.records.input_shape,
            batches=self.batches_to_score(trained),
            batch_statistics=batch_statistics,
            seed=self.seed,
            within=within,
            sparsity=sparsity,
        )
        details = {
            **mask.provenance.details,
            "sparsity": self.sparsity,
            "rewind_epoch": recipe.rewind_epoch,
            "epochs": self.epochs,
            "options": dict(self.options),
            "score_records": self.score_records,
            "records": trained.split.base_hash,
        }
        return Mask(mask.alive, dataclasses.replace(mask.provenance, details=details)), scores


Run = Callable[[Trained, Pruning], Trained]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A registered schedule: its name, its options with defaults, and the function that runs it."""

    name: str
    run: Run
    options: Mapping[str, Any]


_SCHEDULES: dict[str, Schedule] = {}


def register_schedule(name: str, **options: Any) -> Callable[[Run], Run]:
    """Register a function `(trained, pruning) -> pruned` under a name, with its options and their defaults."""

    def keep(function: Run) -> Run:
        _SCHEDULES[name] = Schedule(name, function, options)
        return function

    return keep


def schedule_names() -> list[str]:
    """The registered schedules."""
    return sorted(_SCHEDULES)


def get_schedule(name: str) -> Schedule:
    """A registered schedule.

    Raises:
        ConfigError: unknown schedule.
    """
    if name not in _SCHEDULES:
        raise ConfigError(f"unknown schedule {name!r}", hint=unknown_name_hint(name, _SCHEDULES))
    return _SCHEDULES[name]


def train_masked(
    model: nn.Module,
    trained: Trained,
    pruning: Pruning,
    *,
    mask: Mask | None,
    start: int,
    stop: int,
    order: int,
    label: str,
    before_epoch: BeforeEpoch | None = None,
    snapshots: tuple[int, ...] = (),
) -> Fit:
    """Train a model that expunge owns, in place, with the original's recipe on the records of its split."""
    recipe, runtime, records = as_recipe(trained.provenance.recipe), pruning.runtime, pruning.records
    runtime.place(model)
    batches = Batches(
        records,
        pruning.train_rows(trained),
        batch_size=recipe.batch_size,
        device=runtime.torch_device,
        augment=recipe.augment,
        channels_last=runtime.channels_last,
    )
    return fit(
        model,
        batches,
        recipe,
        runtime=runtime,
        seed=order,
        mask=mask,
        start=start,
        stop=stop,
        before_epoch=before_epoch,
        snapshots=snapshots,
        validate=validator(records, records.rows(trained.split.validation), runtime),
        checkpoint_path=pruning.checkpoint,
        progress=pruning.progress,
        label=label,
    )


def _finished(
    trained: Trained,
    pruning: Pruning,
    model: nn.Module,
    mask: Mask,
    scores: Scores | None,
    line: str,
    *,
    schedule: str,
    scored: Mapping[str, torch.Tensor] | None = None,
    seeds: Mapping[str, int] | None = None,
) -> Trained:
    state = dict(trained.state)
    if scores is not None:
        state["pruning_scores"] = scores
    if scored is not None:
        state["pruning_weights"] = dict(scored)
    provenance = dataclasses.replace(
        trained.provenance.then(f"pruned ({schedule}) to {100 * mask.sparsity:.2f} % sparsity{line}"),
        seeds={**trained.provenance.seeds, "pruning": pruning.seed, **(seeds or {})},
    )
    mask = Mask(mask.alive, dataclasses.replace(mask.provenance, schedule=schedule))
    return Trained(pruning.runtime.release(model), mask, trained.split, provenance, state)


def _rewind_state(trained: Trained) -> Mapping[str, torch.Tensor]:
    rewind = trained.state.get("rewind_checkpoint")
    if rewind is None:
        raise MaskError(
            "the trained model has no rewind checkpoint",
            hint="train it with expunge, which keeps one (recipe field `rewind`)",
        )
    return rewind


def initial_model(trained: Trained) -> nn.Module:
    """The network with the initial weights that training started from, regenerated from their seed.

    Raises:
        MaskError: the seed is not recorded.
    """
    seeds = trained.provenance.seeds
    if "initial" not in seeds:
        raise MaskError(
            "the seed of the initial weights is not recorded, so they cannot be made again",
            where="provenance.seeds.initial",
            hint="train the model with expunge, or store its initial weights",
        )
    return Architecture.from_json(trained.provenance.architecture).build(seeds["initial"])


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers on the CPU."""
    return checkpoints.copied_state(model)


def _stop(trained: Trained, pruning: Pruning) -> tuple[int, int]:
    recipe = as_recipe(trained.provenance.recipe)
    start = recipe.rewind_epoch
    return start, recipe.epochs + (start if pruning.epochs == "full" else 0)


@register_schedule("omp")
def one_shot_with_rewinding(trained: Trained, pruning: Pruning) -> Trained:
    """OMP, paper A: rank the final weights, rewind every tensor, train on with the mask.

    Every tensor goes back to the rewind checkpoint, BatchNorm buffers and classifier included; the optimiser starts
    anew and the learning-rate schedule stands where it stood at the checkpoint.
    """
    rewind = _rewind_state(trained)
    mask, scores = pruning.mask(trained.model, trained)
    model = clone_model(trained.model)
    checkpoints.load_state(model, rewind)
    start, stop = _stop(trained, pruning)
    order = prune_seed(pruning.seed)
    label = f"prune to {100 * pruning.sparsity:g} %"
    result = train_masked(model, trained, pruning, mask=mask, start=start, stop=stop, order=order, label=label)
    line = f", rewound to epoch {start}, trained for {len(result.history)} epochs in {result.seconds:.1f} s"
    scored = weights_of(trained.model)
    seeds = {"pruning_order": order}
    return _finished(trained, pruning, model, mask, scores, line, schedule="omp", scored=scored, seeds=seeds)


@register_schedule("one-shot")
def one_shot(trained: Trained, pruning: Pruning) -> Trained:
    """Rank the final weights and set the lowest to zero; nothing is trained."""
    mask, scores = pruning.mask(trained.model, trained)
    model = clone_model(trained.model)
    mask.apply_(model)
    scored = weights_of(trained.model)
    return _finished(trained, pruning, model, mask, scores, "", schedule="one-shot", scored=scored)


@register_schedule("imp", rate=0.2)
def iterative(trained: Trained, pruning: Pruning) -> Trained:
    """IMP: prune `rate` of what is left, rewind, train, and again, until the sparsity is reached exactly."""
    rewind = _rewind_state(trained)
    rate = float(pruning.options["rate"])
    if not 0 < rate < 1:
        raise ConfigError(f"rate = {rate} is not in (0, 1)", where="schedule imp")
    _refuse_patterns(pruning, "imp")
    rounds = max(1, math.ceil(math.log(1 - pruning.sparsity) / math.log(1 - rate) - 1e-9)) if pruning.sparsity else 1
    start, stop = _stop(trained, pruning)
    order = prune_seed(pruning.seed)
    model, mask, scores = clone_model(trained.model), None, None
    for number in range(1, rounds + 1):
        sparsity = pruning.sparsity if number == rounds else 1 - (1 - rate) ** number
        mask, scores = pruning.mask(model, trained, sparsity=sparsity, within=mask)
        model = clone_model(trained.model)
        checkpoints.load_state(model, rewind)
        once = pruning.checkpoint
        step = dataclasses.replace(pruning, checkpoint=once and once.with_name(f"{once.name}.{number}"))
        label = f"imp round {number} of {rounds}"
        train_masked(model, trained, step, mask=mask, start=start, stop=stop, order=order, label=label)
        model = pruning.runtime.release(model)
    assert mask is not None
    line = f" in {rounds} rounds, rewound to epoch {start} each time"
    seeds = {"pruning_order": order}
    return _finished(trained, pruning, model, mask, scores, line, schedule="imp", seeds=seeds)


@register_schedule("at-init", rounds=0)
def at_initialisation(trained: Trained, pruning: Pruning) -> Trained:
    """Rank the initial weights and train from them with the mask: SynFlow, SNIP, GraSP, random.

    The density falls exponentially over `rounds`, (1 - s)^(k / rounds) after round k, scores being taken anew on what
    is left; 0 stands for 100 rounds with SynFlow (its paper, and paper A) and 1 otherwise.
    """
    rounds = int(pruning.options["rounds"]) or (100 if pruning.rule.criterion == "SynFlow" else 1)
    if rounds < 1:
        raise ConfigError(f"rounds = {rounds} is too small", where="schedule at-init")
    if ":" in pruning.rule.granularity:
        rounds = 1
    model = initial_model(trained)
    mask, scores = None, None
    for number in range(1, rounds + 1):
        sparsity = pruning.sparsity if number == rounds else 1 - (1 - pruning.sparsity) ** (number / rounds)
        mask, scores = pruning.mask(model, trained, sparsity=sparsity, within=mask, batch_statistics=True)
        mask.apply_(model)
    assert mask is not None
    recipe, order = as_recipe(trained.provenance.recipe), trained.provenance.seeds["order"]
    label = f"train at {100 * mask.sparsity:g} % sparsity"
    train_masked(model, trained, pruning, mask=mask, start=0, stop=recipe.epochs, order=order, label=label)
    line = f" at initialisation in {rounds} rounds, trained for {recipe.epochs} epochs"
    return _finished(trained, pruning, model, mask, scores, line, schedule="at-init")


def alive_by_zeros(model: nn.Module, names: Iterable[str], provenance: MaskProvenance) -> Mask:
    """The mask of weights that are not exactly 0."""
    parameters = {plain_name(name): p for name, p in model.named_parameters()}
    return Mask({name: (parameters[name].detach() != 0).cpu() for name in names}, provenance)


@register_schedule("gradual", begin=0.2, end=0.7)
def gradually(trained: Trained, pruning: Pruning) -> Trained:
    """Gradual pruning during one training from the initial weights [Zhu2018]_.

    Before each epoch from share `begin` to share `end` of the recipe, s_t = s (1 - (1 - t)^3) with t from 0 to 1; what
    is dead stays dead.

    .. [Zhu2018] Zhu, Gupta: To prune, or not to prune, ICLR workshop 2018.
    """
    begin, end = float(pruning.options["begin"]), float(pruning.options["end"])
    if not 0 <= begin < end <= 1:
        raise ConfigError(f"begin = {begin}, end = {end}: 0 <= begin < end <= 1", where="schedule gradual")
    _refuse_patterns(pruning, "gradual")
    recipe = as_recipe(trained.provenance.recipe)
    first, last = int(begin * recipe.epochs), max(int(begin * recipe.epochs) + 1, int(end * recipe.epochs))
    if last >= recipe.epochs:
        raise MaskError(
            f"a recipe of {recipe.epochs} epochs leaves no time to prune gradually and to train afterwards",
            where="schedule gradual",
            hint="use a longer recipe, or the schedule omp",
        )

    model = initial_model(trained)
    names = _names(pruning, trained, model)

    def before(model: nn.Module, epoch: int) -> Mask | None:
        if epoch < first:
            return None
        share = min(1.0, (epoch - first) / (last - first))
        target = pruning.sparsity * (1 - (1 - share) ** 3)
        within = alive_by_zeros(model, names, MaskProvenance("zeros"))
        return pruning.mask(model, trained, sparsity=target, within=within)[0]

    # a model whose weights were changed by later pruning must not be put back: keep the last epoch
    final = dataclasses.replace(trained, provenance=_keeping_last(trained))
    order = trained.provenance.seeds["order"]
    train_masked(
        model, final, pruning, mask=None, start=0, stop=recipe.epochs, order=order, label="prune gradually",
        before_epoch=before,
    )  # fmt: skip
    model = pruning.runtime.release(model)
    within = alive_by_zeros(model, names, MaskProvenance("zeros"))
    mask, scores = pruning.mask(model, trained, within=within)
    line = f" gradually in epochs {first + 1} to {last + 1} of {recipe.epochs}"
    return _finished(trained, pruning, model, mask, scores, line, schedule="gradual")


@register_schedule("soft-filter")
def softly(trained: Trained, pruning: Pruning) -> Trained:
    """Soft filter pruning [He2018]_: before each epoch the lowest are set to zero, and may grow again; last, for good.

    .. [He2018] He et al.: Soft filter pruning, IJCAI 2018.
    """
    recipe = as_recipe(trained.provenance.recipe)

    def before(model: nn.Module, epoch: int) -> Mask | None:
        if epoch:
            pruning.mask(model, trained)[0].apply_(model)
        return None

    model = initial_model(trained)
    final = dataclasses.replace(trained, provenance=_keeping_last(trained))
    order = trained.provenance.seeds["order"]
    train_masked(
        model, final, pruning, mask=None, start=0, stop=recipe.epochs, order=order, label="prune softly",
        before_epoch=before,
    )  # fmt: skip
    model = pruning.runtime.release(model)
    scored = weights_of(model)
    mask, scores = pruning.mask(model, trained)
    mask.apply_(model)
    line = f" softly over {recipe.epochs} epochs"
    return _finished(trained, pruning, model, mask, scores, line, schedule="soft-filter", scored=scored)


def _keeping_last(trained: Trained) -> Any:
    recipe = {**trained.provenance.recipe, "select": "last"}
    return dataclasses.replace(trained.provenance, recipe=recipe)


def _names(pruning: Pruning, trained: Trained, model: nn.Module) -> list[str]:
    """Names of the tensors that the granularity masks."""
    return list(pruning.mask(model, trained, sparsity=0.0)[0].alive)


def _refuse_patterns(pruning: Pruning, schedule: str) -> None:
    if ":" in pruning.rule.granularity:
        raise ConfigError(
            f"the pattern {pruning.rule.granularity} has one sparsity; {schedule} prunes step by step",
            where=f"schedule {schedule}",
            hint="use omp, one-shot or at-init",
        )
