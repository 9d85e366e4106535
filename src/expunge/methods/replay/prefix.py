"""The two short runs of replay: the first epochs of training with and without the forgotten records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from expunge.core import early_checkpoints
from expunge.core.errors import MethodError
from expunge.core.hashing import hash_tensors, plain_parameters
from expunge.core.mask import Mask
from expunge.core.show import plural
from expunge.core.split import Ids
from expunge.core.trained import Provenance, Trained, plain_state
from expunge.methods.initial_weights import RECORD_HINT, build_initial_network
from expunge.methods.retraining import Retraining
from expunge.methods.start import find_start
from expunge.methods.task import Task
from expunge.models import Architecture
from expunge.sparsity import recorded_schedule
from expunge.training.checkpoint import copy_state
from expunge.training.loop import Fit, order_seed
from expunge.training.recipes import Recipe, count_epochs, get_recipe

#: Where theta_k(D) comes from.
PREFIXES: dict[str, str] = {
    "recorded": "stored by training (`training.keep_epochs`); recomputed if it was not stored",
    "recomputed": "the first k epochs of the recipe on D, run again; costs k passes over D",
    "compressed": "both runs follow the recipe squeezed into k epochs; for models of which only the initial weights "
    "and a recipe are known",
}
#: Largest distance of a recomputed rewind checkpoint from the stored one, relative to the distance from the initial
#: weights. Another processor rounds differently; another order of records moves it by tens of percent.
SAME_RUN = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Prefixes:
    """The result of the two short runs.

    Attributes:
        epochs: k.
        before: all tensors of theta_k(D), by plain name.
        after: all tensors of theta_k(D_r).
        architecture: the network, with normalisation statistics of D_r if they were measured on training records.
        recorded: whether theta_k(D) was read from the state `early_checkpoints`.
        state: state that was made from D_r alone: `early_checkpoints`, and `rewind_checkpoint` if the original has one
            and k reaches it. Empty if compressed.
        checkpoints: what the checkpoints in `state` state (`Provenance.checkpoints`).
        final: all tensors of theta_T(D), if they were recomputed too.
    """

    epochs: int
    before: Mapping[str, torch.Tensor]
    after: Mapping[str, torch.Tensor]
    architecture: Architecture
    recorded: bool
    state: Mapping[str, Mapping[str, torch.Tensor]]
    checkpoints: Mapping[str, Mapping[str, object]]
    final: Mapping[str, torch.Tensor] | None = None

    @property
    def line(self) -> str:
        """What the history of the model says about the two runs."""
        origin = "stored" if self.recorded else "recomputed"
        return f"the first {plural(self.epochs, 'epoch')} replayed without them (those with them: {origin})"


def check_prefix(prefix: str, epochs: float, trained: Trained, where: str) -> None:
    """Raise MethodError or ConfigError if the first epochs of a model cannot be repeated.

    Args:
        prefix: a key of `PREFIXES`.
        epochs: k, an integer, or a fraction of the epochs.
        trained: the original. A model that is not trained yet is not checked.
        where: the option, for the error.
    """
    provenance = trained.provenance
    if not provenance.history or not provenance.architecture:  # a stand-in for a model that is not trained yet
        return
    if not provenance.recipe:
        raise MethodError(
            "the recipe of the original model is not recorded, so its training cannot be replayed",
            where=where,
            hint="train the original with expunge, or declare its recipe: adopt(..., recipe=...)",
        )
    count_epochs(epochs, get_recipe(provenance.recipe).epochs, where)
    if prefix != "compressed" and "order" not in provenance.seeds:
        raise MethodError(
            "the seed of the original's order of records is not recorded, so its first epochs cannot be repeated",
            where=where,
            hint="use prefix=compressed, which runs both prefixes in an order of its own; or record the training "
            "(expunge.bridges) and adopt(..., recorded=FOLDER)",
        )
    if "initial" not in provenance.seeds and "initial_weights" not in trained.state:
        raise MethodError(
            "neither the original's initial weights nor their seed is available, so its training cannot be replayed",
            where=where,
            hint=RECORD_HINT,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class EarlyRuns:
    """The first epochs of training, with and without the forgotten records. The cost is counted in the task.

    Attributes:
        task: the request.
        trained: the original without patches.
        recipe: the recipe of both runs.
        epochs: k.
        kept: earlier epochs of which the tensors are kept.
        retraining: the run without the forgotten records.
        initial: the parameters that both runs start from, by name.
        initial_hash: their hash.
        where: the method or option, for errors.
        mask: the mask that the original was trained with from the first step on, or None.
    """

    task: Task
    trained: Trained
    recipe: Recipe
    epochs: int
    kept: tuple[int, ...]
    retraining: Retraining
    initial: Mapping[str, torch.Tensor]
    initial_hash: str
    where: str
    mask: Mask | None

    def read(self, *, clean: bool = False) -> Mapping[str, torch.Tensor] | None:
        """Read theta_k(D) from the state `early_checkpoints`; None if it was not stored, or with another mask.

        Args:
            clean: a checkpoint theta_k(D_r) is accepted too.

        Raises:
            MethodError: it is of another run, saw other records than the model, or has other tensors.
        """
        expected = [self._describe(ids) for ids in (self.trained.split.retain, self.task.split.retain)]
        return _read_recorded(self.trained, self.epochs, expected if clean else expected[:1], self.where)

    def run_with(self, *, check: bool = True) -> Fit:
        """Run the first epochs on D, forgotten records included.

        Raises:
            MethodError: with `check`: they do not reach the stored rewind checkpoint.
        """
        run = dataclasses.replace(self.retraining, split=self.trained.split).train_prefix(
            self.epochs, recipe=self.recipe, keep=self.kept, mask=self.mask, part="with"
        )
        self.task.count(run)
        if check and self.mask is None:
            _check_same_run(self.trained, run.snapshots, self.recipe, self.initial, self.where)
        return run

    def run_to_the_end(self) -> tuple[dict[str, torch.Tensor], Fit]:
        """Run the original's whole recipe on D; return theta_T(D), and the run with theta_k(D) as a snapshot.

        Raises:
            MethodError: it does not reach the stored rewind checkpoint.
        """
        recipe = get_recipe(self.trained.provenance.recipe)
        model, run = dataclasses.replace(self.retraining, split=self.trained.split).train_dense(
            keep={recipe.rewind_epoch, self.epochs}, part="with-to-the-end"
        )
        self.task.count(run)
        _check_same_run(self.trained, run.snapshots, recipe, self.initial, self.where)
        return copy_state(model), run

    def run_without(self) -> Fit:
        """Run the first epochs on D_r."""
        run = self.retraining.train_prefix(
            self.epochs, recipe=self.recipe, keep=self.kept, mask=self.mask, part="without"
        )  # fmt: skip
        self.task.count(run)
        return run

    def describe(self) -> dict[str, object]:
        """What checkpoints of the run without the forgotten records state."""
        return self._describe(self.task.split.retain)

    def _describe(self, record_ids: Ids) -> dict[str, object]:
        return early_checkpoints.describe_checkpoint(
            record_ids, self.recipe.to_json(), self.retraining.seeds, self.initial_hash, self.mask
        )


def plan_early_runs(task: Task, trained: Trained, *, prefix: str, epochs: float, where: str) -> EarlyRuns:
    """Prepare the first epochs of training: nothing is trained yet.

    Args:
        task: the request.
        trained: the original without patches.
        prefix: a key of `PREFIXES`.
        epochs: k, a number of epochs, or a fraction of them.
        where: the method or option, for errors.

    Raises:
        MethodError: they cannot be repeated.
    """
    check_prefix(prefix, epochs, trained, where)
    provenance, context = trained.provenance, task.context
    recipe = get_recipe(provenance.recipe)
    count = count_epochs(epochs, recipe.epochs, where)
    kept = tuple(sorted(epoch for epoch in {recipe.rewind_epoch, *recipe.kept_epochs} if 1 <= epoch < count))
    if prefix == "compressed":
        recipe, kept = dataclasses.replace(recipe, epochs=count, keep_epochs=(), keep_moments=False), ()
    network = build_initial_network(trained, where=where, hint=RECORD_HINT)
    initial = {name: p.detach().clone() for name, p in plain_parameters(network).items()}
    seeds = {"initial": 0, "order": order_seed(context.seed), **provenance.seeds}
    start = find_start(trained, seeds["initial"])
    task.thawed |= start.thawed
    retraining = Retraining(trained, task.split, context, seeds, start, where, initial)
    mask = trained.mask if trained.mask is not None and had_mask_from_start(trained.mask) else None
    return EarlyRuns(task, trained, recipe, count, kept, retraining, initial, hash_tensors(initial), where, mask)


def had_mask_from_start(mask: Mask) -> bool:
    """Whether a model was trained with its mask from the first step on: a mask made at initialisation."""
    schedule = recorded_schedule(mask)
    return schedule is not None and schedule.scores_initial_weights


def run_prefixes(
    task: Task,
    trained: Trained,
    *,
    prefix: str,
    epochs: float,
    where: str = "Replay",
    to_the_end: bool = False,
) -> Prefixes:
    """Run the first epochs of training on D_r and, unless they are stored, on D. The cost is counted in the task.

    Both runs have the mask of a model whose mask was made at initialisation; otherwise they are dense.

    Args:
        task: the request.
        trained: the original without patches.
        prefix: a key of `PREFIXES`.
        epochs: k, a number of epochs, or a fraction of them.
        where: the method or option, for errors.
        to_the_end: run the whole recipe on D without a mask, for theta_T(D) (`Prefixes.final`). Unless the prefix is
            compressed, this run gives theta_k(D) too.

    Raises:
        MethodError: the first epochs cannot be repeated; or the stored ones are of another run, or saw other records.
    """
    runs = plan_early_runs(task, trained, prefix=prefix, epochs=epochs, where=where)
    count = runs.epochs
    before = runs.read() if prefix == "recorded" else None
    recorded, final = before is not None, None
    if to_the_end:
        final, run = runs.run_to_the_end()
        if before is None and prefix != "compressed":
            before = run.snapshots[count]
    if before is None:
        before = runs.run_with(check=prefix != "compressed").snapshots[count]
    without = runs.run_without()
    state: dict[str, Mapping[str, torch.Tensor]] = {}
    checkpoints = {}
    if prefix != "compressed":
        found = {epoch: without.snapshots[epoch] for epoch in {count, *(set(runs.kept) & set(runs.recipe.kept_epochs))}}
        state[early_checkpoints.STATE] = early_checkpoints.pack_checkpoints(found)
        checkpoints = {str(epoch): runs.describe() for epoch in sorted(found)}
        if "rewind_checkpoint" in trained.state and runs.mask is None and runs.recipe.rewind_epoch in without.snapshots:
            state["rewind_checkpoint"] = without.snapshots[runs.recipe.rewind_epoch]
    architecture = runs.retraining.make_architecture()
    return Prefixes(count, before, without.snapshots[count], architecture, recorded, state, checkpoints, final)


def update_provenance(provenance: Provenance, prefixes: Prefixes) -> Provenance:
    """Return the provenance with the checkpoints of D_r, and with its normalisation statistics."""
    architecture = prefixes.architecture.to_json()
    return dataclasses.replace(provenance, architecture=architecture, checkpoints=dict(prefixes.checkpoints))


def _read_recorded(
    trained: Trained, epoch: int, expected: Sequence[Mapping[str, object]], where: str
) -> Mapping[str, torch.Tensor] | None:
    """Read a checkpoint from the state, or return None if it was not stored.

    Args:
        trained: the original.
        epoch: k.
        expected: what the checkpoint may state.
        where: the method or option, for errors.
    """
    stored = early_checkpoints.unpack_checkpoints(trained.state.get(early_checkpoints.STATE, {})).get(epoch)
    found = trained.provenance.checkpoints.get(str(epoch), {})
    if stored is None or (found and found.get("mask") != expected[0].get("mask")):
        return None
    hint = "use prefix=recomputed, which runs the first epochs again"
    if found.get("run") != expected[0]["run"]:
        raise MethodError(
            f"the stored checkpoint of epoch {epoch} is not of the run that would be replayed: recipe, order of "
            "records or initial weights differ, so its difference would be noise",
            where=where,
            hint=hint,
        )
    if found.get("records") not in [one["records"] for one in expected]:
        raise MethodError(
            f"the stored checkpoint of epoch {epoch} has seen other records than the model was trained on",
            where=where,
            hint=hint,
        )
    for name, tensor in plain_state(trained.model).items():
        if name not in stored or stored[name].shape != tensor.shape or stored[name].dtype != tensor.dtype:
            fault = "lacks this tensor" if name not in stored else "has it in another shape or type"
            raise MethodError(
                f"the stored checkpoint of epoch {epoch} {fault}", where=f"{early_checkpoints.STATE}: {name}", hint=hint
            )
    return stored


def _check_same_run(
    trained: Trained,
    snapshots: Mapping[int, Mapping[str, torch.Tensor]],
    recipe: Recipe,
    initial: Mapping[str, torch.Tensor],
    where: str,
) -> None:
    """Raise MethodError if the recomputed first epochs do not reach the stored rewind checkpoint."""
    stored, again = trained.state.get("rewind_checkpoint"), snapshots.get(recipe.rewind_epoch)
    if stored is None or again is None:
        return
    moved = sum(float((stored[name].double() - tensor.double()).square().sum()) for name, tensor in initial.items())
    apart = sum(float((stored[name].double() - again[name].double()).square().sum()) for name in initial)
    if apart > SAME_RUN**2 * moved:
        raise MethodError(
            f"the first epochs, run again, do not reach the stored rewind checkpoint (epoch {recipe.rewind_epoch}): "
            "the order of records, the recipe or the records differ from those of the original",
            where=where,
            hint="check the seeds and the recipe in the provenance of the original",
        )
