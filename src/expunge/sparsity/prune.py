"""Pruning of a trained model: criterion x granularity x scope x schedule."""

from __future__ import annotations

from expunge.core.errors import MaskError
from expunge.core.mask import Mask
from expunge.core.registry.custom_code import naming
from expunge.core.trained import Trained
from expunge.training.context import Context

from .schedules.pruning import Pruning, pruning_of
from .schedules.registry import get_schedule
from .schedules.run import Pruned, PruningRun


def prune(trained: Trained, pruning: Pruning, context: Context) -> Trained:
    """Prune a trained model and return the sparse model; the dense model is not modified.

    Args:
        trained: the dense model, with the state that the schedule needs (`omp`, `imp`: the rewind checkpoint;
            `at-init`, `gradual`, `soft-filter`: its recipe and the seed of its initial weights).
        pruning: how to prune it.
        context: the records that it was trained on; device, seed, file for resuming, progress. The seed seeds the order
            of records of the training with the mask, and criteria that draw random numbers.

    Raises:
        MaskError: the sparsity cannot be reached, or the state that the schedule needs is missing.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = expunge.architecture("mlp", records, split, widths=(16,))
        >>> recipe = expunge.get_recipe("one-cycle", epochs=1, batch_size=256)
        >>> dense = expunge.train(records, split, network, recipe=recipe)
        >>> sparse = expunge.prune(dense, expunge.Pruning(sparsity=0.9, layers=("linear",)), expunge.Context(records))
        >>> sparse.mask.kept_count, sparse.mask.total, dense.mask is None
        (118, 1184, True)
    """
    return run_pruning(trained, pruning, context).trained


def run_pruning(trained: Trained, pruning: Pruning, context: Context) -> Pruned:
    """Prune a trained model as `prune` does; the result also has every training of the schedule, for its cost.

    Example:
        >>> import expunge
        >>> from expunge.sparsity import run_pruning
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = expunge.architecture("mlp", records, split, widths=(16,))
        >>> recipe = expunge.get_recipe("one-cycle", epochs=2, batch_size=256, rewind=0.5)
        >>> dense = expunge.train(records, split, network, recipe=recipe)
        >>> pruned = run_pruning(dense, expunge.Pruning(sparsity=0.9, layers=("linear",)), expunge.Context(records))
        >>> [len(fit.history) for fit in pruned.fits]
        [1]
    """
    schedule = get_schedule(pruning.schedule)
    if trained.mask is not None:
        raise MaskError("the model is already sparse", hint="prune the dense model from which it was made")
    if schedule.trains and not trained.provenance.recipe:
        raise MaskError(
            "the recipe of the dense model is not recorded, so it cannot be trained with a mask",
            hint="train it with expunge, or record a recipe in its provenance; the schedule one-shot does not train",
        )
    with naming("schedule", schedule.name, schedule.run, MaskError):
        pruned: Pruned = schedule.run(PruningRun(trained, pruning, context.for_split(trained.split)))
    if not isinstance(pruned, Pruned):
        what = f"returned a value of type {type(pruned).__name__}, not a Pruned"
        raise MaskError(what, where=f"schedule {schedule.name}", hint="return run.finish(model, mask, scores)")
    return pruned


def repeat_pruning(dense: Trained, mask: Mask, context: Context, *, keep_weights: bool = False) -> Trained:
    """Prune another dense model exactly as `mask` was made: criterion, scope, layers, schedule, options [Xiao2025].

    Args:
        dense: the dense model to prune.
        mask: a mask whose provenance records how it was made.
        context: see `prune`.
        keep_weights: see `Pruning`; ignored with a schedule to which it does not apply.

    Raises:
        MaskError: the provenance of the mask does not record how it was made.
        TrustError: it names code that the owner did not agree to run.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = expunge.architecture("mlp", records, split, widths=(16,))
        >>> recipe = expunge.get_recipe("one-cycle", epochs=1, batch_size=256)
        >>> dense = expunge.train(records, split, network, recipe=recipe)
        >>> pruning, context = expunge.Pruning(0.9, layers=("linear",), schedule="one-shot"), expunge.Context(records)
        >>> sparse = prune(dense, pruning, context)
        >>> repeat_pruning(dense, sparse.mask, context).hash == sparse.hash
        True
    """
    pruning = pruning_of(mask, dense.model, context.records.input_shape, keep_weights=keep_weights)
    return run_pruning(dense, pruning, context).trained
