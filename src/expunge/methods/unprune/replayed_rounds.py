"""Replaying a schedule that prunes in rounds (IMP): the first epochs of every round are trained again without D_f.

Round r of the original ranked theta^(r-1)(D): the dense weights theta_T(D) in round 1, later those at the end of round
r - 1, which was trained with its mask m_(r-1) from the rewind checkpoint theta_w(D). The replayed rounds have the masks
m'_r. Let phi_k^(r)(D) be the weights k epochs after rewinding to theta_w(D) with the mask m_r, and phi_k^(r)(D_r) those
k epochs after rewinding to theta_w(D_r), a checkpoint of the replayed first epochs, with the mask m'_r (k is at most
the length of a round). Then

    m'_r               = the original's rule for theta_hat^(r-1), among the weights that m'_(r-1) keeps
    theta_hat^(0)      = theta_T(D) + c (theta_k(D_r) - theta_k(D))
    theta_hat^(r)_j    = theta^(r)(D)_j + c (phi_k^(r)(D_r)_j - phi_k^(r)(D)_j)    if m_r and m'_r keep j
                       = phi_k^(r)(D_r)_j                                          if only m'_r keeps j
                       = 0                                                         if m'_r prunes j

The last round needs no training: its mask is made from theta_hat of the round before. If k is the length of training,
c = 1 and the recipe selects the last epoch, then theta_hat^(r) = theta^(r)(D_r), and the mask is that of `Retrain` with
`mask="re-prune"`, bit for bit.

Cost, for R rounds of L epochs, besides the dense run: (R - 1) min(k, L) passes over D_r, and over D as many, or
(R - 1) L if the weights of the rounds are not stored (`sparsity.keep_weights`); those runs give phi_k^(r)(D) too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import nn

from expunge.core.errors import MethodError
from expunge.core.hashing import plain_parameters
from expunge.core.mask import Mask
from expunge.core.split import as_ids
from expunge.core.trained import Trained, clone_model
from expunge.methods.replay import Prefixes, combine
from expunge.methods.task import Task
from expunge.sparsity import PruningRun, pruning_of
from expunge.sparsity.schedules.registry import get_schedule
from expunge.training.checkpoint import copy_state, load_state
from expunge.training.loop import Fit
from expunge.training.train import prune_seed

Tensors = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class ReplayedRounds:
    """The result.

    Attributes:
        model: the network with theta_hat before the last round.
        mask: the mask of the last round.
        scored: the weights that each replayed round ranked, by round (counted from 1).
        with_all: the mask of the last round of the run on D, from the stored or recomputed weights; None if its
            criterion reads records.
    """

    model: nn.Module
    mask: Mask
    scored: Mapping[int, Tensors]
    with_all: Mask | None


@dataclasses.dataclass(eq=False)
class _Run:
    """The rounds on one set of records: the mask and the weights so far.

    Attributes:
        pruning: the inputs of the schedule; its dense model has the rewind checkpoint as state.
        task: the request, which counts the cost.
        order: seed of the order of records.
        label: which records, for progress.
        mask: the mask of the last round.
    """

    pruning: PruningRun
    task: Task
    order: int
    label: str
    mask: Mask | None = None

    def prune(self, model: nn.Module, sparsity: float) -> Mask:
        """Make the mask of the next round."""
        self.mask, _ = self.pruning.make_mask(model, sparsity=sparsity, within=self.mask)
        if self.pruning.score_records:
            self.task.trained_records += min(self.pruning.score_records, len(self.pruning.train_rows))
        return self.mask

    def train(self, number: int, epochs: int, *, to_the_end: bool = False) -> tuple[nn.Module, Tensors]:
        """Rewind, and train with the mask.

        Args:
            number: the round, counted from 1.
            epochs: k.
            to_the_end: train the whole round, as the original was trained.

        Returns:
            The network at the end, and all tensors after k epochs.
        """
        run, (start, stop) = self.pruning, self.pruning.find_epoch_range()
        recipe = run.recipe if to_the_end else dataclasses.replace(run.recipe, select="last")
        model = run.build_rewound_model()
        result: Fit = run.train(
            model,
            mask=self.mask,
            start=start,
            stop=stop if to_the_end else start + epochs,
            order=self.order,
            label=f"round {number} {self.label}",
            part=str(number),
            recipe=recipe,
            snapshots={start + epochs},
        )
        self.task.count(result)
        return run.context.runtime.release(model), result.snapshots[start + epochs]


def unpack_rounds(stored: Tensors) -> dict[int, dict[str, torch.Tensor]]:
    """Return the tensors of the state `pruning_weights` by round.

    Raises:
        MethodError: a tensor is not named `ROUND/NAME`.
    """
    found: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in stored.items():
        number, slash, name = key.partition("/")
        if not (slash and number.isascii() and number.isdigit()):
            raise MethodError(
                "the weights that the rounds of pruning ranked are named ROUND/NAME",
                where=f"state pruning_weights: {key[:60]}",
            )
        found.setdefault(int(number), {})[name] = tensor
    return found


def get_round(stored: Mapping[int, Tensors], number: int) -> Tensors:
    """Return the weights that a round ranked; raise MethodError if they are missing."""
    if number not in stored:
        raise MethodError(
            f"the weights that round {number} of pruning ranked are not stored",
            where="state pruning_weights",
            hint="prune again with keep_weights=True; or remove the state, so that the rounds are recomputed",
        )
    return stored[number]


def replay_rounds(
    task: Task,
    trained: Trained,
    prefixes: Prefixes,
    dense: nn.Module,
    hat: nn.Module,
    stored: Mapping[int, Tensors] | None,
    *,
    scale: float,
    re_estimate: Callable[[nn.Module, Tensors], nn.Module],
) -> ReplayedRounds:
    """Repeat the rounds of pruning with replayed weights.

    Args:
        task: the request.
        trained: the original without patches, with its rewind checkpoint.
        prefixes: the first epochs of the dense training; they reach the rewind epoch.
        dense: the network with theta_T(D).
        hat: the network with theta_hat.
        stored: the weights that each round ranked; None: the rounds on D are run again.
        scale: c.
        re_estimate: `(network, tensors of the run that its buffers are from) -> network` with buffers that fit it.

    Raises:
        MethodError: weights of a round are missing.
    """
    mask = trained.mask
    assert mask is not None
    pruning = pruning_of(mask, trained.model, task.context.records.input_shape)
    find_sparsities = get_schedule(pruning.schedule).round_sparsities
    assert find_sparsities is not None
    assert pruning.sparsity is not None
    sparsities = find_sparsities(pruning.sparsity, pruning.options)
    runs = []
    for label, split, model, rewound in (
        ("with", trained.split, dense, trained.state["rewind_checkpoint"]),
        ("without", task.split, hat, prefixes.state["rewind_checkpoint"]),
    ):
        inputs = dataclasses.replace(
            trained,
            model=model,
            mask=None,
            split=dataclasses.replace(split, forget=as_ids(())),
            state={"rewind_checkpoint": rewound},
        )
        seeds = trained.provenance.seeds
        context = task.context.for_part(f"rounds-{label}", seed=seeds.get("pruning", 0))
        order = seeds.get("pruning_order", prune_seed(context.seed))
        runs.append(_Run(PruningRun(inputs, pruning, context), task, order, label))
    with_all, without = runs
    start, stop = with_all.pruning.find_epoch_range()
    epochs = min(prefixes.epochs, stop - start)
    scored: dict[int, Tensors] = {}
    last = len(sparsities)
    for number, sparsity in enumerate(sparsities, 1):
        new = without.prune(hat, sparsity)
        scored[number] = copy_state(hat)
        if number == last:
            break
        old = with_all.prune(dense, sparsity)
        dense, before = with_all.train(number, epochs, to_the_end=stored is None)
        if stored is not None:
            load_state(dense, get_round(stored, number + 1))
        _, after = without.train(number, epochs)
        hat = re_estimate(combine_round(dense, before, after, old, new, scale), after)
    checked = None if with_all.pruning.score_records else with_all.prune(dense, sparsities[-1])
    return ReplayedRounds(hat, new, scored, checked)


def combine_round(dense: nn.Module, before: Tensors, after: Tensors, old: Mask, new: Mask, scale: float) -> nn.Module:
    """Return a network with theta_hat after a round, and with the buffers of the replayed run.

    Args:
        dense: the network with theta^(r)(D).
        before: phi_k^(r)(D).
        after: phi_k^(r)(D_r).
        old: m_r.
        new: m'_r.
        scale: c.
    """
    current = {name: p.detach() for name, p in plain_parameters(dense).items()}
    found = combine(current, before, after, scale=scale)
    for name, kept in new.kept.items():
        zero = torch.zeros((), dtype=found[name].dtype)
        only_new = torch.where(kept, after[name], zero)
        found[name] = torch.where(kept & old.kept[name], found[name], only_new)
    model = clone_model(dense)
    load_state(model, {**{name: tensor for name, tensor in after.items() if name not in found}, **found})
    return model
