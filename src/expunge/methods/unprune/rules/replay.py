"""replay: run the first epochs of training again without D_f, add the difference to the pruned weights, prune again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from expunge.core.errors import MethodError
from expunge.core.hashing import plain_parameters
from expunge.core.mask import Mask
from expunge.core.show import plural
from expunge.core.trained import Trained, clone_model
from expunge.methods.initial_weights import regrow
from expunge.methods.replay import run_prefixes
from expunge.methods.replay.method import add_difference
from expunge.methods.replay.prefix import check_prefix, update_provenance
from expunge.methods.start import strip_patches
from expunge.methods.unprune.options import UnpruneOptions
from expunge.methods.unprune.remake import remake_mask, rescore_initial_weights
from expunge.methods.unprune.replayed_rounds import get_round, replay_rounds, unpack_rounds
from expunge.methods.unprune.rescoring import complete_mask, recorded_score_records, scores_initial_weights
from expunge.methods.unprune.rule import UnpruneRule, register_rule
from expunge.methods.unprune.run import Unpruning
from expunge.sparsity import Schedule, get_criterion, get_schedule, recorded_schedule, rule_of, schedule_names
from expunge.training.checkpoint import copy_state, load_state
from expunge.training.recipes import Recipe, count_epochs, get_recipe

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
        schedule = recorded_schedule(trained.mask)
        check_replayable(schedule, trained.mask.provenance.schedule)
        recipe = trained.provenance.recipe
        if recipe:
            count_epochs(options.prefix_epochs, get_recipe(recipe).epochs, "Un-prune.prefix_epochs")
        trained = strip_patches(trained)
        # the whole training needs the order of records, also where the first epochs do not
        prefix = options.prefix if "pruning_weights" in trained.state else "recorded"
        check_prefix(prefix, options.prefix_epochs, trained, "Un-prune.prefix")
        if _prunes_in_rounds(schedule):
            _check_rounds(options, trained)

    def check_pruning(self, schedule: str, keep_weights: bool) -> None:
        """See `UnpruneRule.check_pruning`."""
        found = get_schedule(schedule)
        if not found.scores_initial_weights:
            check_replayable(found, schedule)

    def describe_cost(self, options: UnpruneOptions, trained: Trained) -> tuple[str, str] | None:
        """See `UnpruneRule.describe_cost`."""
        assert trained.mask is not None
        if scores_initial_weights(trained.mask) or not trained.provenance.recipe:
            return None
        retained, all_records = count_passes(options, trained)
        trains = f"{plural(retained, 'epoch')} on D_r and {all_records} on D"
        message = f"the rule replay trains {trains}, besides the inner method; Retrain with mask=re-prune trains "
        message += f"{plural(count_reference_passes(trained), 'epoch')} on D_r"
        hint = "training.keep_epochs and sparsity.keep_weights=true store what the runs on D recompute"
        return message, hint if all_records else ""

    def run(self, state: Unpruning) -> None:
        """See `UnpruneRule.run`."""
        if scores_initial_weights(state.original_mask):
            _rescore_at_initialisation(state)
        else:
            _replay(state)


def _prunes_in_rounds(schedule: Schedule | None) -> bool:
    """Whether a schedule ranks, rewinds and trains repeatedly, so that every round is replayed."""
    return schedule is not None and schedule.round_sparsities is not None


def count_passes(options: UnpruneOptions, trained: Trained) -> tuple[int, int]:
    """Count the epochs of training that the rule repeats on D_r and on D.

    Args:
        options: the options of `Un-prune`.
        trained: the original, or a stand-in with mask, recipe and names of state.
    """
    mask, recipe = trained.mask, get_recipe(trained.provenance.recipe)
    assert mask is not None
    count = count_epochs(options.prefix_epochs, recipe.epochs, "Un-prune.prefix_epochs")
    is_trained, stored = bool(trained.provenance.history), "pruning_weights" in trained.state
    known = {int(epoch) for epoch in trained.provenance.checkpoints} if is_trained else set(recipe.kept_epochs)
    if options.prefix == "recorded" and count in known:
        on_all = 0 if stored else recipe.epochs
    else:
        on_all = count if stored else recipe.epochs + (count if options.prefix == "compressed" else 0)
    if not _prunes_in_rounds(recorded_schedule(mask)):
        return count, on_all
    repeated, length = _count_rounds(mask) - 1, _count_masked_epochs(mask, recipe)
    short = min(count, length)
    return count + repeated * short, on_all + repeated * (short if stored else length)


def count_reference_passes(trained: Trained) -> int:
    """Count the epochs of `Retrain` with `mask="re-prune"`; arguments as in `count_passes`."""
    mask, recipe = trained.mask, get_recipe(trained.provenance.recipe)
    assert mask is not None
    schedule = recorded_schedule(mask)
    rewinds = schedule is not None and schedule.rewinds
    return recipe.epochs + (_count_rounds(mask) * _count_masked_epochs(mask, recipe) if rewinds else 0)


def _count_rounds(mask: Mask) -> int:
    """In how many rounds of training with a mask the original was pruned."""
    schedule = recorded_schedule(mask)
    if schedule is None or schedule.round_sparsities is None:
        return 1
    sparsity = float(rule_of(mask).sparsity or 0)
    return len(schedule.round_sparsities(sparsity, mask.provenance.details.get("options") or schedule.options))


def _count_masked_epochs(mask: Mask, recipe: Recipe) -> int:
    """How many epochs a network is trained with its mask after rewinding."""
    return recipe.epochs - (0 if mask.provenance.details.get("epochs") == "full" else recipe.rewind_epoch)


def check_replayable(schedule: Schedule | None, name: str) -> None:
    """Raise MethodError if the mask of a schedule cannot be made again from replayed weights."""
    if schedule is None or not (schedule.ranks_trained_weights or _prunes_in_rounds(schedule)):
        known = [get_schedule(found) for found in schedule_names()]
        usable = [found.name for found in known if found.ranks_trained_weights or _prunes_in_rounds(found)]
        raise MethodError(
            f"the schedule {name} did not rank the weights of a training without a mask, so replaying that training "
            "does not give its mask",
            where="Un-prune.rule",
            hint=f"use rule=magnitude or gradient, or prune with one of {', '.join(usable)}",
        )


def _check_rounds(options: UnpruneOptions, trained: Trained) -> None:
    """Raise MethodError if the rounds of pruning cannot be replayed."""
    if options.prefix == "compressed":
        raise MethodError(
            "the rounds of pruning start from the rewind checkpoint of the original's recipe, which a compressed "
            "recipe does not reach",
            where="Un-prune.prefix",
            hint="use prefix=recorded or recomputed",
        )
    if trained.provenance.recipe:
        recipe = get_recipe(trained.provenance.recipe)
        count = count_epochs(options.prefix_epochs, recipe.epochs, "Un-prune.prefix_epochs")
        if count < recipe.rewind_epoch:
            raise MethodError(
                f"the replayed {count} epochs do not reach the rewind checkpoint of epoch {recipe.rewind_epoch}, from "
                "which every round of pruning starts",
                where="Un-prune.prefix_epochs",
                hint=f"set it to {recipe.rewind_epoch} or more",
            )
    if trained.provenance.history and "rewind_checkpoint" not in trained.state:
        raise MethodError(
            "the rewind checkpoint, from which every round of pruning starts, is not stored",
            where="state rewind_checkpoint",
            hint="use the original model: methods that do not need the checkpoint drop it",
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
    options, task, mask = state.options, state.task, state.original_mask
    trained = strip_patches(state.original)
    stored = trained.state.get("pruning_weights")
    in_rounds = _prunes_in_rounds(recorded_schedule(mask))
    rounds = unpack_rounds(stored) if in_rounds and stored is not None else None
    prefixes = run_prefixes(
        task,
        trained,
        prefix=options.prefix,
        epochs=options.prefix_epochs,
        where="Un-prune.prefix",
        to_the_end=stored is None,
    )
    final = prefixes.final if stored is None else stored if rounds is None else get_round(rounds, 1)
    assert final is not None
    dense = dataclasses.replace(trained, model=clone_model(trained.model), mask=None)
    load_state(dense.model, final)

    def fit_buffers(model: nn.Module, after: Mapping[str, torch.Tensor]) -> nn.Module:
        return model if _equal_parameters(model, after) else _re_estimate(model, state)

    hat = fit_buffers(add_difference(dense, prefixes, options.scale).model, prefixes.after)
    if in_rounds:
        replayed = replay_rounds(
            task, trained, prefixes, dense.model, hat, rounds, scale=options.scale, re_estimate=fit_buffers
        )
        hat, new_mask, reproduced = replayed.model, complete_mask(replayed.mask, mask), replayed.with_all
        scored = {f"{number}/{name}": t for number, tensors in replayed.scored.items() for name, t in tensors.items()}
    else:
        reproduced = _remake_original(dense.model, state) if stored is None else None
        retain = state.sample(recorded_score_records(mask, options.score_records))
        new_mask, scored = complete_mask(remake_mask(hat, retain, state), mask), copy_state(hat)
    _check_reproduced(reproduced, state)
    sparse = clone_model(hat)
    if options.replay_weights != "replayed":
        old = trained if options.replay_weights == "mixed" else add_difference(trained, prefixes, options.scale)
        _keep_old(sparse, old.model, mask, new_mask)
    new_mask.apply_(sparse)
    sparse = _re_estimate(sparse, state)
    provenance = update_provenance(trained.provenance, prefixes)
    state.current = dataclasses.replace(trained, model=sparse, mask=new_mask, provenance=provenance)
    state.unlearn()
    kept = prefixes.state if stored is None else {**prefixes.state, "pruning_weights": scored}
    task.recomputed |= set(prefixes.state)
    state.note = f"; {prefixes.line}" + ("; the weights of pruning time were recomputed" if stored is None else "")
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


def _remake_original(dense: nn.Module, state: Unpruning) -> Mask | None:
    """Make the original's mask from recomputed dense weights; None if its scores would read D_f."""
    if get_criterion(rule_of(state.original_mask).criterion).needs_data:
        return None
    return remake_mask(dense, state.sample(1), state)  # the records are not read


def _check_reproduced(remade: Mask | None, state: Unpruning) -> None:
    """Raise MethodError if the weights on D, stored or recomputed, do not give the original's mask."""
    if remade is None or len(state.original.split.forget):  # the mask may be from before an earlier request
        return
    mask = state.original_mask
    lost = sum(int((mask.kept[name] & ~kept).sum()) for name, kept in remade.kept.items() if name in mask.kept)
    if lost > SAME_MASK * mask.kept_count:
        raise MethodError(
            f"the weights of pruning time do not give the mask of the original: {lost} of {mask.kept_count} kept "
            "weights differ, so the run that would be replayed is another",
            where="Un-prune.rule",
            hint="check the seeds and the recipe in the provenance of the original; or prune with keep_weights=True",
        )
