"""Un-pruning: a method around another method that also recomputes the mask without the forget set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.mask import Mask
from expunge.core.outcome import Cost, Outcome
from expunge.core.reading.limits import ROUNDS
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive
from expunge.core.split import Ids, Split
from expunge.core.trained import Trained, clone_model
from expunge.methods.base import Context, Method, get_method, identity_outcome, method_class, register, require_range
from expunge.methods.ft import FT
from expunge.models import Architecture
from expunge.sparsity import get_schedule, recorded_granularity, rule_of
from expunge.sparsity.masks.consistency import record_sparsity, thinned_sparsity
from expunge.training import batchnorm
from expunge.training.curvature import CURVATURES

from .growth import GROWTH_OF, grow, grown_fraction
from .initial_weights import build_initial_network, copy_parameters, regrow
from .options import INITIAL, REINITIALISE, REPRUNE, RULES
from .rescoring import (
    CostTracker,
    check_channels,
    check_schedule,
    check_scored,
    re_prune,
    rethreshold_mask,
    sample,
    score_by_gradient,
    scores_initial_weights,
)


@register("Un-prune", guarantee="empirical", citation="[Xiao2025], algorithm 1, reconstructed from its reviews")
@dataclasses.dataclass(frozen=True)
class Unprune(Method):
    """Recompute the mask around another method: regrow pruned weights, run the method, prune again; or estimate the
    pruning scores without D_f and keep the weights above a threshold.

    Let P be the pruned weights and s the sparsity. A round of the rules that regrow weights is: set w_j to its initial
    value w0_j for j in P; regrow the fraction `growth` of P that ranks highest; run `method`; then prune to sparsity s
    among the kept weights, with the original's criterion, scope and layers. Every rule runs `method` once per round, so
    the rules differ in cost only by the ranking, which is included in the cost. On a dense model, only `method` runs.

    Attributes:
        method: name of the inner method, which unlearns.
        method_options: its options.
        rule: `magnitude` (regrow the pruned weights that are largest after re-initialisation), `gradient` (those with
            the largest gradients on D_r), `influence` (estimate the pruning scores without D_f and threshold them; the
            network never gets denser), `random` or `dense` (controls: regrow random or all pruned weights), or `kept`
            (do not change the mask).
        growth: fraction of weights (or channels) to regrow in a round, in [0, 1].
        growth_of: the weights that `growth` is a fraction of: `pruned`, `all`, or `kept`.
        rounds: number of rounds.
        reprune: re-prune after `each` round, or `once` after the last.
        reinitialise: in every round, set all `pruned` weights to their initial value; or, with `grown`, only those that
            were never regrown, while the others start from their last value.
        initial: the initial value: `original` (from the recorded seed or the state `initial_weights`, checked by
            hash), `random` (newly drawn), or `zero`.
        initial_hash: expected hash of the original's initial weights, instead of the recorded one.
        final_epochs, final_learning_rate: fine-tuning on D_r with the final mask.
        re_estimate: maximum number of records of D_r for re-estimating the BatchNorm buffers after the last re-pruning
            (forward only). The buffers that the inner method leaves are those of the denser network, and do not fit the
            pruned one. With 0, with final fine-tuning, or if the inner method keeps buffers frozen, they are not
            re-estimated.
        score_records: number of records of D_r for gradients and curvature.
        curvature: how the influence rule estimates the weights without D_f: `gauss-newton`, `hessian`, `none` (one long
            gradient step), or `method` (run the inner method on the dense weights from before pruning; this doubles its
            cost, and does not assume that the change is small).
        curvature_steps: maximum number of products with the curvature.
    """

    method: str = "FT"
    method_options: Mapping[str, Any] | None = None
    rule: str = "magnitude"
    growth: float = 0.2
    growth_of: str = "pruned"
    rounds: int = 1
    reprune: str = "once"
    reinitialise: str = "pruned"
    initial: str = "original"
    initial_hash: str = ""
    final_epochs: int = 0
    final_learning_rate: float = 0.01
    re_estimate: int = 2048
    score_records: int = 1024
    curvature: str = "gauss-newton"
    curvature_steps: int = 10

    def __post_init__(self) -> None:
        require_range(
            "Un-prune",
            growth=(self.growth, 0 <= self.growth <= 1),
            rounds=(self.rounds, 1 <= self.rounds <= ROUNDS),
            final_epochs=(self.final_epochs, self.final_epochs >= 0),
            final_learning_rate=(self.final_learning_rate, self.final_learning_rate >= 0),
            re_estimate=(self.re_estimate, self.re_estimate == 0 or self.re_estimate >= 2),
            score_records=(self.score_records, self.score_records >= 1),
            curvature_steps=(self.curvature_steps, self.curvature_steps >= 1),
        )
        choices: dict[str, tuple[str, tuple[str, ...]]] = {
            "rule": (self.rule, tuple(RULES)),
            "growth_of": (self.growth_of, GROWTH_OF),
            "reprune": (self.reprune, REPRUNE),
            "reinitialise": (self.reinitialise, REINITIALISE),
            "initial": (self.initial, INITIAL),
            "curvature": (self.curvature, ("none", "method", *CURVATURES)),
        }
        for option, (value, known) in choices.items():
            if value not in known:
                hint = unknown_name_hint(str(value), known)
                raise MethodError(f"unknown {option} {value!r}", where=f"Un-prune.{option}", hint=hint)
        if self.rule == "magnitude" and self.initial == "zero" and self.growth > 0:
            raise MethodError(
                "the magnitude rule cannot rank weights that are all re-initialised to zero",
                where="Un-prune.initial",
                hint="use initial=original or random, or another rule",
            )
        if method_class(self.method) is Unprune:
            raise MethodError("Un-prune cannot be its own inner method", where="Un-prune.method")
        if method_class(self.method).guarantee == "behavioural" and self.rule != "unchanged":
            raise MethodError(
                f"{self.method} does not train weights, so regrown weights would stay at their initial values",
                where="Un-prune.method",
                hint="un-prune with a method that trains, and patch the result",
            )
        self.inner_method()

    def inner_method(self) -> Method:
        """Return the inner method, which unlearns."""
        return get_method(self.method, **(self.method_options or {}))

    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        """See `Method.forget`.

        Raises:
            MethodError: state that the rule needs is missing or does not match its hash.
            MaskError: the mask's provenance does not record how it was made.
        """
        options = dataclasses.asdict(self)
        if len(request.record_ids) == 0:
            return identity_outcome(self, trained, request, context, options)
        mask = trained.mask
        if mask is None or self.rule == "unchanged":
            return self._run_inner_only(trained, request, context, options)
        mask = record_sparsity(mask, trained.model, context.records.input_shape)
        trained = dataclasses.replace(trained, mask=mask)
        self.check_state(trained)
        split = request.apply(trained.split)
        tracker = CostTracker()
        if self.rule == "influence":
            model, new_mask = self._rethreshold(trained, mask, request, context, tracker)
            current = dataclasses.replace(trained, model=model, mask=new_mask)
            current = self._run_rounds(current, trained, request, context, tracker)
        else:
            current = self._grow_and_prune(trained, mask, request, split, context, tracker)
        if self.final_epochs:
            current = self._fine_tune(current, trained, request, context, tracker)
        assert current.mask is not None
        mask_changed = current.mask.hash() != mask.hash()
        recorded = {"rule": self.rule, "method": self.method, "growth": self.growth, "growth_of": self.growth_of}
        recorded |= {"rounds": self.rounds, "initial": self.initial, "records": split.hash}
        if self.initial == "original":
            recorded["initial_weights_verified"] = bool(self.initial_hash or trained.provenance.initial_weights)
        details = {**mask.provenance.details, "unpruned": recorded}
        sparsity = thinned_sparsity(current.mask, mask, current.model, context.records.input_shape)
        if sparsity is not None:
            details |= {"sparsity": sparsity, "thinned": {"method": self.method}}
        provenance = dataclasses.replace(mask.provenance, scores_hash=None, details=details)
        after = dataclasses.replace(
            current,
            mask=Mask(current.mask.kept, provenance),
            split=split,
            provenance=trained.provenance.add_history(
                f"Un-prune ({self.rule}) around {self.method}: {len(request.record_ids)} records forgotten in "
                f"{self.rounds} rounds"
            ),
        )
        rewrote = {*tracker.rewrote, *(("mask",) if mask_changed else ())}
        return Outcome(
            trained=after,
            request=request,
            method="Un-prune",
            options=options,
            guarantee="empirical",
            cost=Cost(tracker.trained_records, tracker.forward_records, len(split.retain), tracker.seconds),
            rewrote=tuple(name for name in after.list_influence_state() if name in rewrote),
            dropped=tuple(name for name in trained.state if name not in after.state),
            history=tuple(tracker.history),
            seed=context.seed,
        )

    def check_state(self, trained: Trained) -> None:
        """Check, before anything is computed, that a model has the state that the rule needs.

        Raises:
            MethodError: scores, initial weights or their seed are missing, or do not match their hash.
            MaskError: the mask's provenance does not record how it was made.
        """
        if trained.mask is None or self.rule == "unchanged":
            return
        rule_of(trained.mask)
        check_channels(trained.mask, trained.model, trained.provenance.architecture)
        if self.rule == "influence":
            check_scored(trained)
        whole_channels = recorded_granularity(trained.mask.provenance).whole_channels
        if self.rule == "gradient" and self.initial == "zero" and whole_channels:
            raise MethodError(
                "the gradient rule cannot rank channels that are re-initialised to zero, because their gradients are 0",
                where="Un-prune.initial",
                hint="use initial=original or random",
            )
        if self.initial == "original":
            self.build_initial_network(trained)

    def check_pruning(self, schedule: str, keep_weights: bool) -> None:
        """Raise MethodError if a model pruned with this schedule does not have the state that the rule needs."""
        if self.rule == "influence":
            found = check_schedule(get_schedule(schedule), schedule)
            if found.keeps_scored_weights and not keep_weights:
                raise MethodError(
                    "the influence rule needs the weights from before pruning, which are not stored",
                    where="sparsity.keep_weights",
                    hint="set sparsity.keep_weights=true",
                )

    def _run_inner_only(
        self, trained: Trained, request: ForgetRequest, context: Context, options: Mapping[str, Any]
    ) -> Outcome:
        """Run only the inner method: the model is dense, or the mask is not to be changed."""
        outcome = self.inner_method().forget(trained, request, context)
        reason = "the model is dense" if trained.mask is None else "the mask is not changed"
        provenance = trained.provenance.add_history(f"Un-prune: {reason}, so only {self.method} ran")
        return dataclasses.replace(
            outcome,
            trained=dataclasses.replace(outcome.trained, provenance=provenance),
            method="Un-prune",
            options=options,
            guarantee="empirical",
        )

    # ---- rules that regrow weights

    def _grow_and_prune(
        self, trained: Trained, mask: Mask, request: ForgetRequest, split: Split, context: Context, tracker: CostTracker
    ) -> Trained:
        current, values = trained, self._make_initial_values(trained, context)
        initial_values = {name: tensor.clone() for name, tensor in values.items()}
        for round_number in range(self.rounds):
            assert current.mask is not None
            with tracker.clock():
                if self.reinitialise == "pruned":
                    values = initial_values
                grown = self._grow_mask(current, values, split.retain, context, round_number, tracker)
                model = regrow(current.model, current.mask, grown, values)
            current = dataclasses.replace(trained, model=model, mask=grown)
            current = self._unlearn(current, request, context, round_number, tracker)
            current = dataclasses.replace(current, split=trained.split)
            if self.reprune == "each" or round_number == self.rounds - 1:
                with tracker.clock():
                    sparse = re_prune(current, mask, split, context, self.score_records, tracker)
                    assert current.mask is not None
                    values = {
                        name: torch.where(current.mask.kept[name] & ~sparse.kept[name], dense, values[name])
                        for name, dense in copy_parameters(current.model, sparse.kept).items()
                    }
                    model = clone_model(current.model)
                    sparse.apply_(model)
                current = dataclasses.replace(current, model=model, mask=sparse)
        return self._re_estimate_buffers(current, trained, split.retain, context, tracker)

    def _re_estimate_buffers(
        self, current: Trained, trained: Trained, retain: Ids, context: Context, tracker: CostTracker
    ) -> Trained:
        """Re-estimate the BatchNorm buffers of the pruned network on D_r, if the options ask for it."""
        frozen = getattr(self.inner_method(), "batch_norm", "") == "frozen"
        if not self.re_estimate or self.final_epochs or frozen or not batchnorm.find_layers(current.model):
            return current
        with tracker.clock():
            model = context.runtime.place(clone_model(current.model))
            batches = sample(trained, context, retain, self.re_estimate, context.runtime)
            tracker.forward_records += batchnorm.re_estimate(model, batches.in_order(), context.runtime)
        tracker.rewrote.add("batch_norm")
        return dataclasses.replace(current, model=context.runtime.release(model))

    def _grow_mask(
        self,
        current: Trained,
        values: Mapping[str, torch.Tensor],
        retain: Ids,
        context: Context,
        round_number: int,
        tracker: CostTracker,
    ) -> Mask:
        mask, shape = current.mask, context.records.input_shape
        assert mask is not None
        fraction = (
            1.0 if self.rule == "dense" else grown_fraction(mask, self.growth, self.growth_of, current.model, shape)
        )
        if fraction <= 0:
            return mask
        reduce = "mean"
        if self.rule == "gradient":
            scores = score_by_gradient(current, values, retain, context, self.score_records, tracker)
            reduce = "sum"
        elif self.rule == "random":
            generator = torch.Generator().manual_seed(derive(context.seed, "un-prune", "random", round_number))
            scores = {name: torch.rand(tensor.shape, generator=generator) for name, tensor in mask.kept.items()}
        else:
            scores = {name: tensor.abs() for name, tensor in values.items()}
        return grow(mask, scores, fraction, current.model, shape, reduce=reduce)

    def _make_initial_values(self, trained: Trained, context: Context) -> dict[str, torch.Tensor]:
        """Return the initial values of all tensors that the mask names."""
        assert trained.mask is not None
        if self.initial == "zero":
            return {name: torch.zeros(kept.shape) for name, kept in trained.mask.kept.items()}
        if self.initial == "random":
            architecture = Architecture.from_json(trained.provenance.architecture)
            return copy_parameters(architecture.build(derive(context.seed, "un-prune", "initial")), trained.mask.kept)
        return copy_parameters(self.build_initial_network(trained), trained.mask.kept)

    def build_initial_network(self, trained: Trained) -> nn.Module:
        """See `expunge.methods.unprune.initial_weights.build_initial_network`."""
        return build_initial_network(trained, self.initial_hash)

    # ---- the influence rule

    def _rethreshold(
        self, trained: Trained, mask: Mask, request: ForgetRequest, context: Context, tracker: CostTracker
    ) -> tuple[nn.Module, Mask]:
        with tracker.clock():
            new_mask = rethreshold_mask(
                trained,
                request,
                context,
                initial=self.build_initial_network if scores_initial_weights(mask) else None,
                records=self.score_records,
                matrix_type=self.curvature,
                steps=self.curvature_steps,
                unlearn=lambda dense: self._unlearn_dense(dense, request, context),
                tracker=tracker,
            )
            values = self._make_initial_values(trained, context)
            model = regrow(trained.model, mask, new_mask, values)
            new_mask.apply_(model)
        return model, new_mask

    def _unlearn_dense(self, dense: Trained, request: ForgetRequest, context: Context) -> Outcome:
        path = context.checkpoint
        checkpoint = None if path is None else path.with_name(f"{path.name}.dense")
        return self.inner_method().forget(dense, request, dataclasses.replace(context, checkpoint=checkpoint))

    def _run_rounds(
        self, current: Trained, trained: Trained, request: ForgetRequest, context: Context, tracker: CostTracker
    ) -> Trained:
        for round_number in range(self.rounds):
            current = dataclasses.replace(trained, model=current.model, mask=current.mask)
            current = self._unlearn(current, request, context, round_number, tracker)
        return current

    # ---- the inner method

    def _unlearn(
        self, current: Trained, request: ForgetRequest, context: Context, round_number: int, tracker: CostTracker
    ) -> Trained:
        path = context.checkpoint
        checkpoint = None if path is None else path.with_name(f"{path.name}.{round_number + 1}")
        seed = context.seed if round_number == 0 else derive(context.seed, "un-prune", round_number)
        outcome = self.inner_method().forget(
            current, request, dataclasses.replace(context, seed=seed, checkpoint=checkpoint)
        )
        tracker.add(outcome)
        return outcome.trained

    def _fine_tune(
        self, current: Trained, trained: Trained, request: ForgetRequest, context: Context, tracker: CostTracker
    ) -> Trained:
        settings = {k: v for k, v in (self.method_options or {}).items() if k in ("batch_size", "augment")}
        fine_tuning = FT(epochs=self.final_epochs, learning_rate=self.final_learning_rate, **settings)
        path = context.checkpoint
        checkpoint = None if path is None else path.with_name(f"{path.name}.final")
        start = dataclasses.replace(current, split=trained.split)
        seed = derive(context.seed, "un-prune", "final")
        outcome = fine_tuning.forget(start, request, dataclasses.replace(context, seed=seed, checkpoint=checkpoint))
        tracker.add(outcome)
        return outcome.trained
