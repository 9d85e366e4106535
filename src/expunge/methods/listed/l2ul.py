"""L2UL: ascent on single records, with adversarial examples of them and important weights held."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from expunge.core.errors import MethodError
from expunge.core.seeds import epoch_order, global_rng, torch_generator
from expunge.core.trained import Trained, clone_model
from expunge.data.records import Records
from expunge.methods.finetuning import FineTuning
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.training.batchnorm import set_training_mode
from expunge.training.curvature import Vector, evaluation_mode, parameters_of, per_record_gradients, project
from expunge.training.epochs.steps import EpochCheck, Pass, Steps, cross_entropy
from expunge.training.predict import predict_logits

from .adversarial import draw_released_targets, draw_targets, explain_discrete, perturb_towards
from .modes import check_without_retain_set

#: Records whose gradients are in memory at once.
_AT_ONCE = 16


@register_method(
    "L2UL",
    guarantee="empirical",
    citation="[Cha2024]; its code",
    space={
        "learning_rate": (1e-4, 0.01, "log"),
        "importance_weight": (0.1, 10.0, "log"),
        "attack_radius": [1.0, 2.0, 4.0],
    },
)
@dataclasses.dataclass(frozen=True)
class L2UL(FineTuning):
    """Instance-wise unlearning: ascend on D_f until all of it is misclassified; hold what nearby inputs are taken for.

    Each step minimises n/(n+m) * -CE(n records of D_f) + m/(n+m) * CE(m adversarial examples, their targets), and
    lambda / 2 * sum_i (1 - Omega_i) (theta_i - theta_o_i)^2. The examples are made once, for the original model:
    targeted L2-PGD from each record of D_f towards random other classes. Omega is the importance for D_f (MAS): the
    mean over its records of |d |f(x)|_2^2 / d theta|, scaled to [0, 1] in each tensor, so that weights that matter for
    D_f may move. It ends as soon as no record of D_f is classified correctly, or as `stop` says. D_r is not read. Needs
    D_f and labels, and inputs that are not discrete. Cost: `attack_steps` passes over |D_f| * `examples` inputs, one
    pass over D_f for Omega, and for each step its records and a forward pass over D_f.

    `attack_radius` is 4 in the released scripts and 2 in their parser; 1 to 5 in its README. The released code
    (`legacy=True`) takes the importance of |f(x)|_2, from the gradient of the mean of a batch in training mode, so that
    it depends on the batches; and targets from all K classes, with class K // 2 in place of the true one, so that a
    record of that class may be held at its own label.

    Attributes:
        examples: adversarial examples of each record (20 for CIFAR-10, 200 for CIFAR-100 and ImageNet).
        attack_radius: of the L2 ball, in units of the model's input.
        attack_step: length of a step of the attack.
        attack_steps: steps of the attack.
        importance_weight: lambda.
        epochs: the most passes over the adversarial examples.
        batch_size: records of D_f in a step.
        example_batch_size: adversarial examples in a step.
        batch_norm: treatment of the BatchNorm buffers: `train` (as released) or `frozen`; `re-estimate` would read D_r.
        legacy: importance and targets as in the released code.
    """

    examples: int = 20
    attack_radius: float = 4.0
    attack_step: float = 0.1
    attack_steps: int = 100
    importance_weight: float = 1.0
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    epochs: int = 100
    batch_size: int = 32
    example_batch_size: int = 256
    batch_norm: str = "train"
    augment: str = "none"
    legacy: bool = False
    trains_on: ClassVar[str | None] = "forget"
    ascends: ClassVar[bool] = True
    one_process: ClassVar[str] = "each of its steps reads a second set of records"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(
            "L2UL",
            examples=(self.examples, self.examples >= 1),
            attack_radius=(self.attack_radius, 0 < self.attack_radius < math.inf),
            attack_step=(self.attack_step, 0 < self.attack_step < math.inf),
            attack_steps=(self.attack_steps, self.attack_steps >= 1),
            importance_weight=(self.importance_weight, 0 <= self.importance_weight < math.inf),
            example_batch_size=(self.example_batch_size, self.example_batch_size >= 1),
        )
        check_without_retain_set("L2UL", self.batch_norm)

    def unsupported_reason(self, model: nn.Module, records: Records) -> tuple[str, str] | None:
        """See `Method.unsupported_reason`: the features are discrete."""
        if records.classes < 2:
            return "there is only one class, so there is no other label to attack", ""
        return explain_discrete(records)

    def epoch_reads(self, sizes: Sizes) -> Reads:
        """See `FineTuning.epoch_reads`."""
        examples = self.examples * sizes.forget
        steps = -(-examples // self.example_batch_size)
        return Reads(
            other=examples, forget=steps * min(self.batch_size, sizes.forget), forget_forward=steps * sizes.forget,
            at_most=True,
        )  # fmt: skip

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`: the examples and the importance are made first."""
        found = super().estimate_reads(trained, sizes)
        if found is None:
            return None
        return found + Reads(forget=sizes.forget, other=self.attack_steps * self.examples * sizes.forget)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            MethodError: the features are discrete.
        """
        reason = self.unsupported_reason(task.model, task.context.records)
        if reason is not None:
            raise MethodError(reason[0], where="L2UL", hint=reason[1] or None)
        start = {name: weight.detach().clone() for name, weight in parameters_of(task.model).items()}
        free = {name: 1 - part for name, part in self._measure_importance(task).items()}
        others = self._attack(task)
        forgotten = list(task.make_batches(task.forget_rows, self.batch_size).in_order())
        whole, rest = divmod(len(others), self.example_batch_size)
        sizes = [self.example_batch_size] * whole + [rest] * (rest > 0)
        passes = []
        order = np.arange(len(others))
        for number in range(self.epochs * len(sizes)):  # of one step, so that it can end after each
            place = number % len(sizes)
            if place == 0:
                order = epoch_order(others.keys, task.seed, number // len(sizes))
            first = sum(sizes[:place])
            batch = forgotten[number % len(forgotten)]
            passes.append(
                Pass(
                    order[first : first + sizes[place]], self._make_loss(batch), others, batch_size=sizes[place],
                    more_trained=len(batch[0]),
                )
            )  # fmt: skip

        def penalty(model: nn.Module, epoch: int) -> torch.Tensor:
            weights = parameters_of(model)
            moved = [(free[name] * (weight - start[name]).square()).sum() for name, weight in weights.items()]
            return 0.5 * self.importance_weight * torch.stack(moved).sum()

        check = None if self.stop != "never" else lambda model, epoch: _count_correct(task, model)
        count = f" of one step, with {len(others)} adversarial examples"
        self.run_passes(task, passes, Steps(penalty=penalty, after_epoch=check), conclude=lambda _: count)

    def _make_loss(
        self, batch: tuple[torch.Tensor, torch.Tensor]
    ) -> Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]:
        def loss(model: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return measure_loss(model, x, targets, *batch)

        return loss

    def _attack(self, task: Task) -> Records:
        """The adversarial examples of D_f, as records with their targets as labels."""
        records, rows = task.context.records, task.forget_rows
        generator = torch_generator(task.seed, "adversarial examples")
        bounds = (0.0, 1.0) if records.dtype == "uint8" else None
        inputs, targets = [], []
        draw = draw_released_targets if self.legacy else draw_targets
        with evaluation_mode(task.model):
            for x, y in task.make_batches(rows, self.batch_size).in_order():
                for _ in range(self.examples):
                    wanted = draw(y, records.classes, generator).to(x.device)
                    made = perturb_towards(
                        task.model, x, wanted, radius=self.attack_radius, step=self.attack_step,
                        steps=self.attack_steps, generator=generator, bounds=bounds,
                    )  # fmt: skip
                    inputs.append(made.cpu())
                    targets.append(wanted.cpu())
        count = self.examples * len(rows)
        task.trained_records += self.attack_steps * count
        return Records(
            name=f"{records.name}, adversarial",
            record_ids=[f"adversarial-{number:07d}" for number in range(count)],
            labels=torch.cat(targets).numpy(),
            class_names=records.class_names,
            features=torch.cat(inputs).contiguous().numpy(),
        )

    def _measure_importance(self, task: Task) -> Vector:
        """Omega of each weight, in [0, 1]."""
        size = self.batch_size if self.legacy else _AT_ONCE
        measure = measure_batch_importance if self.legacy else measure_importance
        return scale_importance(project(measure(task.model, list(task.read(task.forget_rows, size))), task.mask))


def measure_loss(
    model: nn.Module, x: torch.Tensor, targets: torch.Tensor, forget_x: torch.Tensor, forget_y: torch.Tensor
) -> torch.Tensor:
    """Return m/(n+m) CE(adversarial examples) - n/(n+m) CE(records of D_f), for m examples and n records."""
    n, m = len(forget_x), len(x)
    ascent, hold = cross_entropy(model(forget_x), forget_y), cross_entropy(model(x), targets)
    return (m * hold - n * ascent) / (n + m)


def measure_importance(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Vector:
    """Return the mean over records of |d |f(x)|_2^2 / d theta|, in evaluation mode."""
    total = {name: torch.zeros_like(weight) for name, weight in parameters_of(model).items()}
    for x, y in batches:
        gradients = per_record_gradients(model, x, y, objective=lambda logits, _: logits.square().sum(1).mean())
        for name, part in gradients.items():
            total[name] += part.abs().sum(0)
    return {name: part / sum(len(x) for x, _ in batches) for name, part in total.items()}


def measure_batch_importance(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Vector:
    """Return the mean, weighted by size, of the absolute gradient of each batch's mean |f(x)|_2: the released form.

    In training mode: BatchNorm normalises with the batch. The model does not change.
    """
    model = clone_model(model)
    weights = parameters_of(model)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with evaluation_mode(model, batch_statistics=True), torch.enable_grad(), global_rng(0, "importance"):
        for x, _ in batches:
            set_training_mode(model, frozen=len(x) == 1, input_shape=x.shape[1:])  # one record has no batch variance
            size = torch.linalg.vector_norm(model(x), dim=1).mean()
            parts = torch.autograd.grad(size, list(weights.values()), allow_unused=True)
            for name, part in zip(total, parts, strict=True):
                if part is not None:
                    total[name] += part.abs() * len(x)
    return {name: part / sum(len(x) for x, _ in batches) for name, part in total.items()}


def scale_importance(importance: Vector) -> Vector:
    """Scale each tensor to [0, 1] by its least and its largest entry; a constant tensor is 0."""
    found = {}
    for name, part in importance.items():
        low, high = part.min(), part.max()
        found[name] = (part - low) / (high - low) if high > low else torch.zeros_like(part)
    return found


def _count_correct(task: Task, model: nn.Module) -> EpochCheck:
    """End when no record of D_f is classified correctly."""
    records, rows = task.context.records, task.forget_rows
    predicted = predict_logits(model, records, rows, runtime=task.context.runtime).argmax(1).numpy()
    correct = int((predicted == records.labels[rows]).sum())
    stop = "" if correct else "no record of D_f is classified correctly"
    return EpochCheck(stop, {"forget_correct": correct}, len(rows))
