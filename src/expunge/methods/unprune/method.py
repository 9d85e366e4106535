"""Un-pruning: a method around any method, that also makes the mask forget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.mask import Mask
from expunge.core.outcome import Cost, Outcome
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive
from expunge.core.split import Ids, Split
from expunge.core.trained import Trained, clone_model
from expunge.methods.base import Context, Method, get_method, identity_outcome, method_class, register, require_range
from expunge.methods.ft import FT
from expunge.models import Architecture
from expunge.sparsity import rule_of
from expunge.sparsity.masks.consistency import record_sparsity, thinned_sparsity
from expunge.training import batchnorm
from expunge.training.curvature import CURVATURES

from .growth import GROWTH_OF, grow, grown_share
from .initial_weights import named, original_weights, revived
from .rescoring import (
    Spent,
    check_channels,
    check_schedule,
    check_scored,
    gradient_scores,
    influence_mask,
    re_prune,
    sample,
)

#: How the mask is made to forget.
RULES: dict[str, str] = {
    "magnitude": "grow the dead weights that are largest after re-initialisation, unlearn, re-prune (paper B)",
    "gradient": "grow the dead weights with the largest gradient on D_r, unlearn, re-prune (dynamic sparse training)",
    "influence": "re-threshold the pruning scores as they would be without D_f, then unlearn; nothing is densified",
    "random": "grow dead weights at random, unlearn, re-prune: a control",
    "dense": "grow all dead weights, unlearn, re-prune: a control",
    "kept": "keep the mask: the method alone, for comparison",
}
INITIAL = ("original", "random", "zero")
REPRUNE = ("once", "each")
REINITIALISE = ("pruned", "grown")


@register("Un-prune", guarantee="empirical", source="paper B [Xiao2025], algorithm 1, reconstructed from its reviews")
@dataclasses.dataclass(frozen=True)
class Unprune(Method):
    """Forget in the mask too: grow the mask, run a method on the denser network, prune again; or re-threshold scores.

    With P the dead weights and s the sparsity, a round of the growing rules is: w_j <- w0_j for j in P; the share
    `growth` of them that ranks highest lives; `method` unlearns; the mask becomes that of the original's criterion,
    scope and layers at sparsity s among what lives. Every rule runs `method` once a round, so rules cost the same but
    for what ranking takes, which is in the cost. On a dense model it is the method alone.

    Attributes:
        method: name of the method that unlearns.
        method_options: its options.
        rule: a key of `RULES`.
        growth: share of weights (or channels) that grow in a round, in [0, 1].
        growth_of: what `growth` is a share of: `pruned`, `all` or `alive` weights.
        rounds: how often to grow and unlearn.
        reprune: re-prune after `each` round, or `once` after the last.
        reinitialise: at every round all `pruned` weights take their initial value; or only those that were never
            `grown` before do, and others go on from the value they last had.
        initial: the initial value: `original` (regenerated from the recorded seed, or the state `initial_weights`,
            checked by hash), `random` (drawn anew), `zero`.
        initial_hash: expected hash of the original's initial weights, in the place of the recorded one.
        final_epochs, final_learning_rate: fine-tuning on D_r with the final mask.
        re_estimate: records of D_r, at most, on which BatchNorm means and variances are measured anew after the last
            re-pruning (forward only); those that the method left are of the denser network, and fit the pruned one
            badly. 0 leaves them; so do fine-tuning afterwards and a method that keeps them frozen.
        score_records: records of D_r that gradients and curvature are read from.
        curvature: how the influence rule estimates the weights without D_f: `gauss-newton`, `hessian`, `none` (one
            long gradient step), or `method` (the method itself, run on the dense weights of pruning time: twice its
            cost, and no small-change assumption).
        curvature_steps: products with the curvature that it may spend.
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
            rounds=(self.rounds, self.rounds >= 1),
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
            raise MethodError("un-pruning cannot be put around itself", where="Un-prune.method")
        if method_class(self.method).guarantee == "behavioural" and self.rule != "kept":
            raise MethodError(
                f"{self.method} changes no weight, so weights that un-pruning revives would stay as they were born",
                where="Un-prune.method",
                hint="un-prune around a method that trains, and patch the result",
            )
        self.inner()

    def inner(self) -> Method:
        """The method that unlearns."""
        return get_method(self.method, **(self.method_options or {}))

    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        """See `Method.forget`.

        Raises:
            MethodError: state that the rule needs is missing or does not match its hash.
            MaskError: the mask does not say how it was made.
        """
        options = dataclasses.asdict(self)
        if len(request.record_ids) == 0:
            return identity_outcome(self, trained, request, context, options)
        mask = trained.mask
        if mask is None or self.rule == "kept":
            return self._alone(trained, request, context, options)
        mask = record_sparsity(mask, trained.model, context.records.input_shape)
        trained = dataclasses.replace(trained, mask=mask)
        self.check_state(trained)
        split = request.apply(trained.split)
        spent = Spent()
        if self.rule == "influence":
            first = self._rethreshold(trained, mask, request, context, spent)
            current = dataclasses.replace(trained, model=first[0], mask=first[1])
            current = self._rounds_of_method(current, trained, request, context, spent)
        else:
            current = self._grow_and_prune(trained, mask, request, split, context, spent)
        if self.final_epochs:
            current = self._final(current, trained, request, context, spent)
        assert current.mask is not None
        changed = current.mask.hash() != mask.hash()
        recorded = {"rule": self.rule, "method": self.method, "growth": self.growth, "growth_of": self.growth_of}
        recorded |= {"rounds": self.rounds, "initial": self.initial, "records": split.hash}
        if self.initial == "original":
            recorded["initial_weights_verified"] = bool(self.initial_hash or trained.provenance.initial_weights)
        details = {**mask.provenance.details, "unpruned": recorded}
        share = thinned_sparsity(current.mask, mask, current.model, context.records.input_shape)
        if share is not None:
            details |= {"sparsity": share, "thinned": {"by": self.method}}
        provenance = dataclasses.replace(mask.provenance, scores_hash=None, details=details)
        after = dataclasses.replace(
            current,
            mask=Mask(current.mask.alive, provenance),
            split=split,
            provenance=trained.provenance.then(
                f"Un-prune ({self.rule}) around {self.method}: {len(request.record_ids)} records forgotten in "
                f"{self.rounds} rounds"
            ),
        )
        rewrote = {*spent.rewrote, *(("mask",) if changed else ())}
        return Outcome(
            trained=after,
            request=request,
            method="Un-prune",
            options=options,
            guarantee="empirical",
            cost=Cost(spent.trained_records, spent.forward_records, len(split.retain), spent.seconds),
            rewrote=tuple(kind for kind in after.influence_state() if kind in rewrote),
            dropped=tuple(kind for kind in trained.state if kind not in after.state),
            history=tuple(spent.history),
            seed=context.seed,
        )

    def check_state(self, trained: Trained) -> None:
        """Raise what `forget` would raise because of state that the model lacks, before anything is computed.

        Raises:
            MethodError: scores, initial weights or their seed are missing, or do not match their hash.
            MaskError: the mask does not say how it was made.
        """
        if trained.mask is None or self.rule == "kept":
            return
        rule_of(trained.mask)
        check_channels(trained.mask, trained.model, trained.provenance.architecture)
        if self.rule == "influence":
            check_scored(trained)
        if self.rule == "gradient" and self.initial == "zero" and trained.mask.provenance.granularity == "filter":
            raise MethodError(
                "the gradient rule cannot rank channels that are re-initialised to zero: they have no gradient",
                where="Un-prune.initial",
                hint="use initial=original or random",
            )
        if self.initial == "original":
            self.original_weights(trained)

    def check_pruning(self, schedule: str, keep_weights: bool) -> None:
        """Raise MethodError where a model pruned by this schedule would lack what the rule needs."""
        if self.rule == "influence":
            check_schedule(schedule)
            if schedule != "at-init" and not keep_weights:
                raise MethodError(
                    "the influence rule needs the weights of pruning time, which are not kept",
                    where="sparsity.keep_weights",
                    hint="set sparsity.keep_weights=true",
                )

    def _alone(self, trained: Trained, request: ForgetRequest, context: Context, options: Mapping[str, Any]) -> Outcome:
        """The method alone: a dense model has no mask that could remember, or the mask is to be kept."""
        outcome = self.inner().forget(trained, request, context)
        why = "the model is dense" if trained.mask is None else "the mask is kept"
        provenance = trained.provenance.then(f"Un-prune: {why}, so {self.method} alone")
        return dataclasses.replace(
            outcome,
            trained=dataclasses.replace(outcome.trained, provenance=provenance),
            method="Un-prune",
            options=options,
            guarantee="empirical",
        )

    # ---- growing rules

    def _grow_and_prune(
        self, trained: Trained, mask: Mask, request: ForgetRequest, split: Split, context: Context, spent: Spent
    ) -> Trained:
        current, values = trained, self._initial_values(trained, context)
        fresh = {name: tensor.clone() for name, tensor in values.items()}
        for number in range(self.rounds):
            assert current.mask is not None
            with spent.clock():
                if self.reinitialise == "pruned":
                    values = fresh
                grown = self._grown(current, values, split.retain, context, number, spent)
                model = revived(current.model, current.mask, grown, values)
            current = dataclasses.replace(trained, model=model, mask=grown)
            current = self._unlearn(current, request, context, number, spent)
            current = dataclasses.replace(current, split=trained.split)
            if self.reprune == "each" or number == self.rounds - 1:
                with spent.clock():
                    sparse = re_prune(current, mask, split, context, self.score_records, spent)
                    assert current.mask is not None
                    values = {
                        name: torch.where(current.mask.alive[name] & ~sparse.alive[name], dense, values[name])
                        for name, dense in named(current.model, sparse.alive).items()
                    }
                    model = clone_model(current.model)
                    sparse.apply_(model)
                current = dataclasses.replace(current, model=model, mask=sparse)
        return self._re_estimated(current, trained, split.retain, context, spent)

    def _re_estimated(self, current: Trained, trained: Trained, retain: Ids, context: Context, spent: Spent) -> Trained:
        """With the BatchNorm statistics of the pruned network on D_r, where the options want them."""
        frozen = getattr(self.inner(), "batch_norm", "") == "frozen"
        if not self.re_estimate or self.final_epochs or frozen or not batchnorm.layers(current.model):
            return current
        with spent.clock():
            model = context.runtime.place(clone_model(current.model))
            batches = sample(trained, context, retain, self.re_estimate, context.runtime)
            spent.forward_records += batchnorm.re_estimate(model, batches.in_order(), context.runtime)
        spent.rewrote.add("batch_norm")
        return dataclasses.replace(current, model=context.runtime.release(model))

    def _grown(
        self,
        current: Trained,
        values: Mapping[str, torch.Tensor],
        retain: Ids,
        context: Context,
        number: int,
        spent: Spent,
    ) -> Mask:
        mask, shape = current.mask, context.records.input_shape
        assert mask is not None
        share = 1.0 if self.rule == "dense" else grown_share(mask, self.growth, self.growth_of, current.model, shape)
        if share <= 0:
            return mask
        reduce = "mean"
        if self.rule == "gradient":
            scores = gradient_scores(current, values, retain, context, self.score_records, spent)
            reduce = "sum"
        elif self.rule == "random":
            generator = torch.Generator().manual_seed(derive(context.seed, "un-prune", "random", number))
            scores = {name: torch.rand(tensor.shape, generator=generator) for name, tensor in mask.alive.items()}
        else:
            scores = {name: tensor.abs() for name, tensor in values.items()}
        return grow(mask, scores, share, current.model, shape, reduce=reduce)

    def _initial_values(self, trained: Trained, context: Context) -> dict[str, torch.Tensor]:
        """Initial values of every tensor that the mask speaks of."""
        assert trained.mask is not None
        if self.initial == "zero":
            return {name: torch.zeros(alive.shape) for name, alive in trained.mask.alive.items()}
        if self.initial == "random":
            blueprint = Architecture.from_json(trained.provenance.architecture)
            return named(blueprint.build(derive(context.seed, "un-prune", "initial")), trained.mask.alive)
        return named(self.original_weights(trained), trained.mask.alive)

    def original_weights(self, trained: Trained) -> nn.Module:
        """See `expunge.methods.unprune.initial_weights.original_weights`."""
        return original_weights(trained, self.initial_hash)

    # ---- re-thresholding

    def _rethreshold(
        self, trained: Trained, mask: Mask, request: ForgetRequest, context: Context, spent: Spent
    ) -> tuple[nn.Module, Mask]:
        with spent.clock():
            moved = influence_mask(
                trained,
                request,
                context,
                initial=self.original_weights if mask.provenance.schedule == "at-init" else None,
                records=self.score_records,
                kind=self.curvature,
                steps=self.curvature_steps,
                unlearn=lambda dense: self._on_dense(dense, request, context),
                spent=spent,
            )
            values = self._initial_values(trained, context)
            model = revived(trained.model, mask, moved, values)
            moved.apply_(model)
        return model, moved

    def _on_dense(self, dense: Trained, request: ForgetRequest, context: Context) -> Outcome:
        path = context.checkpoint
        part = None if path is None else path.with_name(f"{path.name}.dense")
        return self.inner().forget(dense, request, dataclasses.replace(context, checkpoint=part))

    def _rounds_of_method(
        self, current: Trained, trained: Trained, request: ForgetRequest, context: Context, spent: Spent
    ) -> Trained:
        for number in range(self.rounds):
            current = dataclasses.replace(trained, model=current.model, mask=current.mask)
            current = self._unlearn(current, request, context, number, spent)
        return current

    # ---- the method inside

    def _unlearn(
        self, current: Trained, request: ForgetRequest, context: Context, number: int, spent: Spent
    ) -> Trained:
        path = context.checkpoint
        part = None if path is None else path.with_name(f"{path.name}.{number + 1}")
        seed = context.seed if number == 0 else derive(context.seed, "un-prune", number)
        outcome = self.inner().forget(current, request, dataclasses.replace(context, seed=seed, checkpoint=part))
        spent.add(outcome)
        return outcome.trained

    def _final(
        self, current: Trained, trained: Trained, request: ForgetRequest, context: Context, spent: Spent
    ) -> Trained:
        settings = {k: v for k, v in (self.method_options or {}).items() if k in ("batch_size", "augment")}
        tune = FT(epochs=self.final_epochs, learning_rate=self.final_learning_rate, **settings)
        path = context.checkpoint
        part = None if path is None else path.with_name(f"{path.name}.final")
        again = dataclasses.replace(current, split=trained.split)
        seed = derive(context.seed, "un-prune", "final")
        outcome = tune.forget(again, request, dataclasses.replace(context, seed=seed, checkpoint=part))
        spent.add(outcome)
        return outcome.trained
