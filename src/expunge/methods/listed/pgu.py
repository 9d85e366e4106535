"""PGU: ascent on the forget set in directions that do not change what the layers compute on the retain set."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import nn

from expunge.core.show import plural
from expunge.core.trained import Trained
from expunge.methods.base import Method
from expunge.methods.composition.stopping import explain_stop
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.training import Recipe
from expunge.training.checkpoint import copy_state, load_state
from expunge.training.curvature import parameters_of
from expunge.training.epochs.steps import AfterEpoch, EpochCheck, Pass, Steps
from expunge.training.masked import Restriction
from expunge.training.predict import predict_logits

from .spans import Projection, make_projections, sum_products


@register_method(
    "PGU",
    guarantee="empirical",
    citation="[Hoang2024]; its code, unlearn.py",
    space={"kept": [0.9, 0.95, 0.99, 0.999], "learning_rate": (0.01, 0.5, "log"), "entropy_weight": [0.0, 0.2, 0.5]},
)
@dataclasses.dataclass(frozen=True)
class PGU(Method):
    """Projected-gradient unlearning: steps on D_f, of which the part in the span of the retained inputs is removed.

    It minimises mean_{D_f} -log(1 - (p_y - offset)) - entropy_weight * H(p) by SGD without momentum, where p is the
    softmax and H its entropy. The gradient G of the weight of each convolution and linear layer becomes G (I - M M^T):
    the columns of M are the leading singular vectors of the inputs of this layer on D_r (patches for a convolution), as
    many as have the fraction `kept` of the sum of squared singular values. Biases, other parameters and the BatchNorm
    statistics do not change. With `kept=1`, M spans all retained inputs, so the outputs on D_r do not change, in exact
    arithmetic. The rate falls exponentially from `learning_rate` to `last_rate`. It ends after the first epoch in which
    the accuracy on D_f is below that on the validation records, if there are any. Needs D_r (without labels), D_f with
    labels, validation records. Cost: a forward pass over D_r, `epochs` passes over D_f and forward passes over the
    validation records; an eigenvalue decomposition of each layer; of a pruned model, of each row of its weight.

    The released code (`legacy=True`) counts directions by the sum of the singular values themselves, which keeps more
    of them; makes no step in its first epoch, and none at all if D_f is then predicted worse than the validation
    records; and goes back to the epoch before the last if the accuracies were nearer then. Such a run is not resumed.

    Attributes:
        kept: fraction of the inputs of a layer, by squared singular values, that no step changes.
        learning_rate, last_rate: of the first and after the last epoch.
        entropy_weight: weight of the entropy.
        offset: what a probability of the true label may stay below 1 by before the loss is 0.
        epochs: the most passes over D_f.
        batch_size: records per step.
        legacy: count directions, and end, as the released code does.
    """

    kept: float = 0.95
    learning_rate: float = 0.05
    last_rate: float = 0.01
    entropy_weight: float = 0.2
    offset: float = 0.05
    epochs: int = 100
    batch_size: int = 128
    legacy: bool = False
    idle_if_zero: ClassVar[tuple[str, ...]] = ("epochs",)

    def __post_init__(self) -> None:
        require_range(
            "PGU",
            kept=(self.kept, 0 < self.kept <= 1),
            learning_rate=(self.learning_rate, 0 < self.learning_rate < math.inf),
            last_rate=(self.last_rate, 0 < self.last_rate < math.inf),
            entropy_weight=(self.entropy_weight, 0 <= self.entropy_weight < math.inf),
            offset=(self.offset, 0 < self.offset < 1),
            epochs=(self.epochs, self.epochs >= 0),
            batch_size=(self.batch_size, self.batch_size >= 1),
        )

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        epoch = Reads(forget=sizes.forget, forget_forward=sizes.forget, other_forward=sizes.validation, at_most=True)
        return Reads(retain_forward=sizes.retain) + max(self.epochs, self.legacy) * epoch

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`."""
        products = sum_products(task.model, task.read(task.retain_rows, 256, forward_only=True))
        projections = make_projections(products, task.mask, self.kept, of_singular_values=self.legacy)
        weights = parameters_of(task.model)
        held = {n: torch.zeros(w.shape, dtype=torch.bool) for n, w in weights.items() if n not in projections}
        recipe = Recipe(
            name="PGU", epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate, momentum=0.0,
            weight_decay=0.0,
        )  # fmt: skip
        ratio = self.last_rate / self.learning_rate
        rates = [self.learning_rate * ratio ** (epoch / max(1, self.epochs)) for epoch in range(self.epochs)]

        def loss(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return measure_loss(model(x), labels, self.offset, self.entropy_weight)

        compare: AfterEpoch = lambda model, epoch: self._compare(task, model)  # noqa: E731
        if self.legacy:
            rates, compare = rates[1:], _ReleasedEnd(compare)
            task.context = dataclasses.replace(task.context, checkpoint=None)
            first = compare(task.model, -1)
            task.forward_records += first.forward_records
            if first.stop or not rates:
                task.line += " without a step" + explain_stop(first.stop)
                return
            recipe = dataclasses.replace(recipe, epochs=len(rates))
        passes = tuple(Pass(task.forget_rows, loss, rate=functools.partial(_hold, rate)) for rate in rates)
        steps = Steps(
            batch_norm="frozen", restriction=Restriction(held), passes=passes, keep_last_good=True, after_epoch=compare
        )
        with _projecting(weights, projections):
            found = task.fit(task.forget_rows, recipe, steps=steps)
        free, total = count_free(projections, weights)
        task.line += (
            f" in {plural(len(found.history), 'epoch')} on the forget set, {free:,} of {plural(total, 'weight')} free"
        )
        task.line += explain_stop(found.stopped)

    def _compare(self, task: Task, model: nn.Module) -> EpochCheck:
        """End when the accuracy on D_f is below that on the validation records."""
        records, runtime = task.context.records, task.context.runtime
        rows = {"forget": task.forget_rows, "validation": records.rows(task.split.validation)}
        found = {}
        for part, numbers in rows.items():
            predicted = predict_logits(model, records, numbers, runtime=runtime).argmax(1).numpy()
            found[part] = 100.0 * float((predicted == records.labels[numbers]).mean()) if len(numbers) else 0.0
        stop = "" if found["forget"] >= found["validation"] else "D_f is predicted worse than validation records"
        entry = {f"{part}_accuracy": value for part, value in found.items()}
        return EpochCheck(stop, entry, sum(map(len, rows.values())))


class _ReleasedEnd:
    """How the released code ends: with the last epoch, or the one before if its accuracies were nearer.

    Args:
        compare: measures both accuracies, and says whether to end.
    """

    def __init__(self, compare: AfterEpoch) -> None:
        self.compare = compare
        self.distance = 0.0
        self.state: dict[str, torch.Tensor] = {}

    def __call__(self, model: nn.Module, epoch: int) -> EpochCheck:
        check = self.compare(model, epoch)
        distance = abs(check.entry["validation_accuracy"] - check.entry["forget_accuracy"])
        if check.stop and self.state and distance >= self.distance:
            load_state(model, self.state)
            return dataclasses.replace(check, stop=f"{check.stop}; the epoch before was nearer")
        self.distance, self.state = distance, copy_state(model)
        return check


def count_free(projections: Mapping[str, Projection], weights: Mapping[str, nn.Parameter]) -> tuple[int, int]:
    """Dimensions in which the projected weights can move, and their number; 0 free ones: no step changes anything."""
    free = total = 0
    for name, projection in projections.items():
        weight = weights[name]
        total += weight.numel() if projection.kept is None else int(projection.kept.sum())
        shared = len(weight) // len(projection.bases)  # rows of a group; with a mask, each row has its own basis
        free -= shared * sum(basis.shape[1] for basis in projection.bases)
    return free + total, total


def measure_loss(logits: torch.Tensor, labels: torch.Tensor, offset: float, entropy_weight: float) -> torch.Tensor:
    """Return mean -log(1 - (p_y - offset)) - entropy_weight * H(p) of `B x K` logits.

    Where p_y is so small that the first term is negative it goes on falling, as in the released code.
    """
    logs = logits.float().log_softmax(1)
    p = logs.exp()
    first = -torch.log(1 - (p.gather(1, labels[:, None])[:, 0] - offset)).mean()
    return first + entropy_weight * (p * logs).sum(1).mean()


def _hold(rate: float, fraction: float) -> float:
    """A rate that is constant within an epoch."""
    return rate


@contextlib.contextmanager
def _projecting(weights: Mapping[str, nn.Parameter], projections: Mapping[str, Projection]) -> Iterator[None]:
    """Project the gradients of the weights within the block."""
    handles = [weights[name].register_hook(projection.apply) for name, projection in projections.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
