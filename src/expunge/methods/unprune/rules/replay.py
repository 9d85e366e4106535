"""replay: run the first epochs of training again without D_f, add the difference to the pruned weights, prune again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from expunge.core.errors import MethodError
from expunge.core.hashing import plain_parameters
from expunge.core.mask import Mask
from expunge.core.trained import Trained, clone_model
from expunge.methods.initial_weights import regrow
from expunge.methods.replay import run_prefixes
from expunge.methods.replay.method import add_difference
from expunge.methods.replay.prefix import check_prefix, update_provenance
from expunge.methods.start import strip_patches
from expunge.methods.unprune.options import UnpruneOptions
from expunge.methods.unprune.remake import remake_mask, rescore_initial_weights
from expunge.methods.unprune.rescoring import complete_mask, recorded_score_records, sample, scores_initial_weights
from expunge.methods.unprune.rule import UnpruneRule, register_rule
from expunge.methods.unprune.run import Unpruning
from expunge.sparsity import Schedule, get_criterion, get_schedule, recorded_schedule, rule_of, schedule_names
from expunge.training.checkpoint import copy_state, load_state
from expunge.training.recipes import count_epochs, get_recipe

#: Largest fraction of kept weights in which the mask of recomputed dense weights may differ from the original's:
#: another processor rounds differently; another order of records differs in half of them.
SAME_MASK = 0.05


@register_rule(
    "replay",
    uses=("prefix_epochs", "prefix", "scale", "replay_weights", "re_estimate", "score_records"),
)  # fmt: skip
class ReplayRule(UnpruneRule):
    """Replay the first epochs of training without D_f, add the difference to the weights that were pruned, prune again.

    With theta_k(S), the weights after the first k of T epochs of the original's recipe on the records S (see `Replay`),
    and theta_T(D), the dense weights at pruning time:

        theta_hat = theta_T(D) + c (theta_k(D_r) - theta_k(D)).

    The mask is made from theta_hat by the original's criterion, scope, granularity, layers and sparsity; a data-driven
    criterion reads D_r. theta_T(D) is the state `pruning_weights` (`sparsity.keep_weights`). Without it, the whole
    training on D is repeated: T passes over D, of which the first k give theta_k(D).

    A mask made at initialisation depends on records only through its scores: they are recomputed on D_r, as by the
    influence rule, and nothing is replayed. If its criterion reads no records, the mask stays as it is.
    """

    def check_options(self, options: UnpruneOptions) -> None:
        """See `UnpruneRule.check_options`."""
        if not options.scale:
            raise MethodError(
                "with scale=0, replay adds nothing, and the mask stays as it is",
                where="Un-prune.scale",
                hint="use rule=unchanged",
            )

    def check_state(self, options: UnpruneOptions, trained: Trained) -> None:
        """See `UnpruneRule.check_state`."""
        assert trained.mask is not None
        if scores_initial_weights(trained.mask):
            return
        check_replayable(recorded_schedule(trained.mask), trained.mask.provenance.schedule)
        recipe = trained.provenance.recipe
        if recipe:
            count_epochs(options.prefix_epochs, get_recipe(recipe).epochs, "Un-prune.prefix_epochs")
        trained = strip_patches(trained)
        # the whole training needs the order of records, also where the first epochs do not
        prefix = options.prefix if "pruning_weights" in trained.state else "recorded"
        check_prefix(prefix, options.prefix_epochs, trained, "Un-prune.prefix")

    def check_pruning(self, schedule: str, keep_weights: bool) -> None:
        """See `UnpruneRule.check_pruning`."""
        found = get_schedule(schedule)
        if not found.scores_initial_weights:
            check_replayable(found, schedule)

    def run(self, state: Unpruning) -> None:
        """See `UnpruneRule.run`."""
        if scores_initial_weights(state.original_mask):
            _rescore_at_initialisation(state)
        else:
            _replay(state)


def check_replayable(schedule: Schedule | None, name: str) -> None:
    """Raise MethodError if the mask of a schedule cannot be made again from replayed weights."""
    if schedule is None or not schedule.ranks_trained_weights:
        usable = [found for found in schedule_names() if get_schedule(found).ranks_trained_weights]
        raise MethodError(
            f"the schedule {name} did not rank the weights of a training without a mask, so replaying that training "
            "does not give its mask",
            where="Un-prune.rule",
            hint=f"use rule=magnitude or gradient, or prune with one of {', '.join(usable)}",
        )


def _rescore_at_initialisation(state: Unpruning) -> None:
    """Make the mask again from the initial weights and D_r, and run the inner method."""
    mask = state.original_mask
    new_mask = rescore_initial_weights(state)
    model = regrow(state.original.model, mask, new_mask, state.make_initial_values())
    new_mask.apply_(model)
    state.begin_round(model, new_mask)
    reads = get_criterion(rule_of(mask).criterion).needs_data
    state.note = (
        "; the mask was made at initialisation, so its scores were recomputed on D_r and nothing was replayed"
        if reads
        else "; the mask was made at initialisation from no records, so it has nothing to forget and was not changed"
    )
    state.unlearn()


def _replay(state: Unpruning) -> None:
    """Make the mask again from the replayed weights, and run the inner method with it."""
    options, task = state.options, state.task
    trained = strip_patches(state.original)
    stored = trained.state.get("pruning_weights")
    prefixes = run_prefixes(
        task,
        trained,
        prefix=options.prefix,
        epochs=options.prefix_epochs,
        where="Un-prune.prefix",
        to_the_end=stored is None,
    )
    final = prefixes.final if stored is None else stored
    assert final is not None
    dense = dataclasses.replace(trained, model=clone_model(trained.model), mask=None)
    load_state(dense.model, final)
    if stored is None:
        _check_reproduces(dense.model, state)
    replayed = add_difference(dense, prefixes, options.scale)
    model = replayed.model
    if not _equal_parameters(model, prefixes.after):
        model = _re_estimate(model, state)
    retain = state.sample(recorded_score_records(state.original_mask, options.score_records))
    new_mask = complete_mask(remake_mask(model, retain, state), state.original_mask)
    sparse = clone_model(model)
    if options.replay_weights == "mixed":
        _keep_old(sparse, trained.model, state.original_mask, new_mask)
    new_mask.apply_(sparse)
    sparse = _re_estimate(sparse, state)
    provenance = update_provenance(trained.provenance, prefixes)
    state.current = dataclasses.replace(trained, model=sparse, mask=new_mask, provenance=provenance)
    state.unlearn()
    kept = {**prefixes.state}
    if stored is not None:
        kept["pruning_weights"] = copy_state(model)
    task.recomputed |= set(prefixes.state)
    state.note = f"; {prefixes.line}" + ("" if stored is not None else ", the dense weights of pruning time recomputed")
    state.current = dataclasses.replace(
        state.current,
        state={**state.current.state, **kept},
        provenance=dataclasses.replace(state.current.provenance, checkpoints=provenance.checkpoints),
    )


def _equal_parameters(model: nn.Module, after: Mapping[str, torch.Tensor]) -> bool:
    """Whether theta_hat is theta_k(D_r) itself, so that the buffers of that run are its own."""
    return all(torch.equal(parameter, after[name]) for name, parameter in plain_parameters(model).items())


def _re_estimate(model: nn.Module, state: Unpruning) -> nn.Module:
    """Re-estimate the BatchNorm buffers of a network on D_r, if the options ask for it."""
    return state.re_estimate(model) if state.options.re_estimate else model


def _keep_old(model: nn.Module, old: nn.Module, before: Mask, after: Mask) -> None:
    """Set the weights that both masks keep, and those that no mask names, to those of another network."""
    values = plain_parameters(old)
    with torch.no_grad():
        for name, parameter in plain_parameters(model).items():
            if name in before.kept:
                both = before.kept[name] & after.kept[name]
                parameter[both] = values[name].detach().to(parameter.device)[both]
            else:
                parameter.copy_(values[name])


def _check_reproduces(dense: nn.Module, state: Unpruning) -> None:
    """Raise MethodError if recomputed dense weights do not give the original's mask."""
    mask, trained = state.original_mask, state.original
    if get_criterion(rule_of(mask).criterion).needs_data or len(trained.split.forget):
        return  # the scores would read D_f; or the mask was made before an earlier request
    batches = sample(trained, state.task.context, state.task.split.retain, 1)  # not read
    remade = remake_mask(dense, batches, state)
    lost = sum(int((kept & ~remade.kept[name]).sum()) for name, kept in mask.kept.items() if name in remade.kept)
    if lost > SAME_MASK * mask.kept_count:
        raise MethodError(
            f"the dense weights, recomputed, do not give the mask of the original: {lost} of {mask.kept_count} kept "
            "weights differ",
            where="Un-prune.rule",
            hint="check the seeds and the recipe in the provenance of the original; or prune with keep_weights=True",
        )
