"""The state of one run of un-pruning: what its rule, the inner method and the re-pruning work on."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from expunge.core.mask import Mask
from expunge.core.seeds import derive
from expunge.core.trained import Trained, clone_model
from expunge.data.batches import Batches
from expunge.methods.composition.stopping import find_stop
from expunge.methods.ft import FT
from expunge.methods.initial_weights import build_initial_network, copy_parameters
from expunge.methods.task import Task
from expunge.models import Architecture
from expunge.sparsity import get_criterion, make_mask, rule_of
from expunge.sparsity.criteria.registry import Scores
from expunge.sparsity.masks.consistency import record_sparsity, thinned_sparsity
from expunge.training import batchnorm

from .options import UnpruneOptions
from .rescoring import complete_mask, place_batches, recorded_score_records, sample


@dataclasses.dataclass(eq=False)
class Unpruning:
    """One run of un-pruning.

    Attributes:
        options: the options of `Un-prune`.
        task: the request; it counts the cost.
        original: the pruned model, whose mask records its sparsity.
        current: the model so far.
        round: number of the round, counted from 0.
        note: what the history says about the rule, appended to the line of the request.
        stops: where and why the inner method ended before its last epoch.
    """

    options: UnpruneOptions
    task: Task
    original: Trained = dataclasses.field(init=False)
    current: Trained = dataclasses.field(init=False)
    round: int = 0
    note: str = ""
    stops: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        trained = self.task.trained
        assert trained.mask is not None
        mask = record_sparsity(trained.mask, trained.model, self.input_shape)
        self.original = self.current = dataclasses.replace(trained, mask=mask)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record."""
        return self.task.context.records.input_shape

    @property
    def mask(self) -> Mask:
        """The current mask."""
        assert self.current.mask is not None
        return self.current.mask

    @property
    def original_mask(self) -> Mask:
        """The original's mask."""
        assert self.original.mask is not None
        return self.original.mask

    # ---- values of regrown weights

    def build_initial_network(self) -> nn.Module:
        """Build the network with the original's initial weights; see `build_initial_network`."""
        return build_initial_network(self.original, self.options.initial_hash)

    def make_initial_values(self) -> Scores:
        """Return the initial values of all tensors that the mask names, as the option `initial` says."""
        names = self.original_mask.kept
        if self.options.initial == "zero":
            return {name: torch.zeros(kept.shape) for name, kept in names.items()}
        if self.options.initial == "random":
            architecture = Architecture.from_json(self.original.provenance.architecture)
            seed = derive(self.task.context.seed, "un-prune", "initial")
            return copy_parameters(architecture.build(seed), names)
        return copy_parameters(self.build_initial_network(), names)

    # ---- records of D_r

    def sample(self, limit: int, *, on_device: bool = False) -> Batches:
        """Sample at most `limit` records of D_r by hash; `on_device`: in larger batches on the runtime's device."""
        batches = sample(self.current, self.task.context, self.task.split.retain, limit)
        return place_batches(batches, self.task.context.runtime) if on_device else batches

    # ---- the parts of a round

    def begin_round(self, model: nn.Module, mask: Mask) -> None:
        """Continue with another model and mask; split, provenance and state are those of the original."""
        self.current = dataclasses.replace(self.original, model=model, mask=mask)

    def unlearn(self) -> None:
        """Run the inner method on the current model."""
        seed = self.task.context.seed
        seed = seed if self.round == 0 else derive(seed, "un-prune", self.round)
        context = self.task.context.for_part(str(self.round + 1), seed=seed)
        outcome = self.task.run(self.options.inner_method(), self.current, context)
        self.task.history.extend(outcome.history)
        if stopped := find_stop(outcome):
            self.stops.append(f"; {self.options.method} in round {self.round + 1}{stopped}")
        self.current = dataclasses.replace(outcome.trained, split=self.original.split)

    def re_prune(self, values: Scores) -> Scores:
        """Prune by the original's rule to its sparsity, among the weights that are kept now. Only D_r is read.

        Args:
            values: initial values of the pruned weights.

        Returns:
            The values with the last values of the weights that this pruned.
        """
        original = self.original_mask
        rule = rule_of(original)
        batches = None
        if get_criterion(rule.criterion).needs_data:
            scored_on = self.sample(recorded_score_records(original, self.options.score_records))
            batches = scored_on.in_order
            self.task.trained_records += scored_on.count
        pruned, _ = make_mask(
            self.current.model,
            rule,
            input_shape=self.input_shape,
            batches=batches,
            seed=self.current.provenance.seeds.get("pruning", 0),
            within=self.mask,
            only=original.kept,
            sparsity=rule.sparsity,
        )
        sparse = complete_mask(pruned, original)
        last = {
            name: torch.where(self.mask.kept[name] & ~sparse.kept[name], dense, values[name])
            for name, dense in copy_parameters(self.current.model, sparse.kept).items()
        }
        model = clone_model(self.current.model)
        sparse.apply_(model)
        self.current = dataclasses.replace(self.current, model=model, mask=sparse)
        return last

    def re_estimate_buffers(self) -> None:
        """Re-estimate the BatchNorm buffers of the pruned network on D_r, if the options ask for it."""
        options = self.options
        frozen = options.inner_method().batch_norm == "frozen"
        if not options.re_estimate or options.final_epochs or frozen or not batchnorm.find_layers(self.current.model):
            return
        self.current = dataclasses.replace(self.current, model=self.re_estimate(self.current.model))

    def re_estimate(self, model: nn.Module) -> nn.Module:
        """Return a copy of a network with BatchNorm buffers of `re_estimate` records of D_r, which are counted."""
        if not batchnorm.find_layers(model):
            return model
        runtime, limit = self.task.context.runtime, self.options.re_estimate
        model = runtime.place(clone_model(model))
        batches = place_batches(sample(self.original, self.task.context, self.task.split.retain, limit), runtime)
        self.task.forward_records += batchnorm.re_estimate(model, batches.in_order(), runtime)
        self.task.recomputed.add("batch_norm")
        self.task.followed.clear()
        return runtime.release(model)

    def fine_tune(self) -> None:
        """Fine-tune on D_r with the final mask."""
        options = self.options
        settings = {k: v for k, v in (options.method_options or {}).items() if k in ("batch_size", "augment")}
        method = FT(epochs=options.final_epochs, learning_rate=options.final_learning_rate, **settings)
        context = self.task.context.for_part("final", seed=derive(self.task.context.seed, "un-prune", "final"))
        start = dataclasses.replace(self.current, split=self.original.split)
        outcome = self.task.run(method, start, context)
        self.task.history.extend(outcome.history)
        self.current = outcome.trained

    # ---- the result

    def finish(self) -> Trained:
        """Return the current model, with a mask whose provenance records the un-pruning."""
        options, original, mask = self.options, self.original_mask, self.mask
        recorded = {"rule": options.rule, "method": options.method, "growth": options.growth}
        recorded |= {"growth_of": options.growth_of, "rounds": options.rounds, "initial": options.initial}
        recorded["records"] = self.task.split.hash
        if options.initial == "original":
            known = options.initial_hash or self.original.provenance.initial_weights
            recorded["initial_weights_verified"] = bool(known)
        details = {**original.provenance.details, "unpruned": recorded}
        sparsity = thinned_sparsity(mask, original, self.current.model, self.input_shape)
        if sparsity is not None:
            details |= {"sparsity": sparsity, "thinned": {"method": options.method}}
        made = dataclasses.replace(original.provenance, scores_hash=None, details=details)
        history = self.original.provenance.history  # one line a request, which the caller adds
        return dataclasses.replace(
            self.current,
            mask=Mask(mask.kept, made),
            provenance=dataclasses.replace(self.current.provenance, history=history),
        )
