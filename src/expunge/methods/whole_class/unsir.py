"""UNSIR: a class is forgotten by training on noise that maximises its loss, without reading its records."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from expunge.core.errors import TrainingError
from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.seeds import torch_generator
from expunge.core.trained import Trained, clone_model
from expunge.data.records import Records
from expunge.methods.changed_inputs import explain_integers, require_changeable_inputs
from expunge.methods.composition.two_sets import sample_rows
from expunge.methods.finetuning import FineTuning
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.training.epochs.steps import Pass, cross_entropy

from .request import require_class


@register_method(
    "UNSIR",
    guarantee="empirical",
    citation="[Tarun2023]; its code",
    space={"epochs": [1, 2], "learning_rate": (0.001, 0.1, "log"), "repair_learning_rate": (0.001, 0.1, "log")},
)
@dataclasses.dataclass(frozen=True)
class Unsir(FineTuning):
    """Learn noise that maximises the loss of the forgotten class, train on it with that class as its label beside a
    sample of D_r (impair), then on the sample alone (repair). The records of the class are not read.

    The noise n, a batch of model inputs that starts from N(0, 1), minimises -CE(f_theta_o(n), c) + penalty * mean_i
    ||n_i||^2 by Adam, with the network in evaluation mode; it is not bounded to the range of records. Impair: an epoch
    on `copies` copies of it and at most `samples_per_class` records of each other class; repair: an epoch on these
    records. Each has its own Adam.

    It needs the index of the class, and D_r with labels. The noise comes from the original, so it is derived from D_f;
    it is not kept. Cost: `noise_steps` batches, then two passes over the sample in each epoch, and one over the copies.
    Defaults are those of the code for CIFAR-10.

    Attributes:
        learning_rate: of the impair epoch.
        repair_learning_rate: of the repair epoch.
        noise_steps, noise_learning_rate: steps and learning rate for the noise.
        penalty: weight of the squared norm of the noise.
        copies: batches of noise in the impair epoch.
        samples_per_class: records of D_r of each class, at most.
        optimiser: `adam` or `sgd`.
    """

    epochs: int = 1
    learning_rate: float = 0.02
    weight_decay: float = 0.0
    repair_learning_rate: float = 0.01
    noise_steps: int = 40
    noise_learning_rate: float = 0.1
    penalty: float = 0.1
    copies: int = 20
    samples_per_class: int = 1000
    optimiser: str = "adam"
    ascends: ClassVar[bool] = True
    idle_if_zero: ClassVar[tuple[str, ...]] = ("epochs",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(
            "UNSIR",
            repair_learning_rate=(self.repair_learning_rate, 0 <= self.repair_learning_rate < math.inf),
            noise_steps=(self.noise_steps, self.noise_steps >= 0),
            noise_learning_rate=(self.noise_learning_rate, 0 <= self.noise_learning_rate < math.inf),
            penalty=(self.penalty, 0 <= self.penalty < math.inf),
            copies=(self.copies, self.copies >= 1),
            samples_per_class=(self.samples_per_class, self.samples_per_class >= 1),
        )

    def check_request(self, model: nn.Module, mask: Mask | None, request: ForgetRequest, records: Records) -> None:
        """See `Method.check_request`.

        Raises:
            RequestError: the request is not for a whole class.
        """
        require_class(request, "UNSIR", "the noise stands for the class, not for single records")

    def epoch_reads(self, sizes: Sizes) -> Reads:
        """See `FineTuning.epoch_reads`."""
        sample = min(sizes.retain, self.samples_per_class * max(1, sizes.classes - 1))
        return Reads(retain=2 * sample, other=self.copies * self.batch_size, at_most=True)

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`: the noise is learned first."""
        found = super().estimate_reads(trained, sizes)
        if found is None or not self.epochs:
            return found
        return found + Reads(other=self.noise_steps * self.batch_size)

    def unsupported_reason(self, model: nn.Module, records: Records) -> tuple[str, str] | None:
        """See `Method.unsupported_reason`: the inputs are integers."""
        return explain_integers(records)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            MethodError: the inputs are integers.
            TrainingError: the loss of the noise is not finite.
        """
        require_changeable_inputs(task.context.records, "UNSIR")
        if self.epochs == 0:
            self.run_passes(task, [])
            return
        forgotten = require_class(task.request, "UNSIR", "")
        records = self._make_records(task, self._learn_noise(task, forgotten), forgotten)
        count = int((records.columns["noise"] == 0).sum())
        sample, everything = np.arange(count), np.arange(len(records))
        impair = Pass(everything, records=records, momentum="impair", ends_round=False, name="impair")
        repair = Pass(
            sample, records=records, rate=lambda fraction: self.repair_learning_rate, momentum="repair", name="repair"
        )
        self.run_passes(task, [impair, repair] * self.epochs)

    def _learn_noise(self, task: Task, forgotten: int) -> torch.Tensor:
        """`batch_size x ...` noise that maximises the loss of a class."""
        runtime, shape = task.context.runtime, task.context.records.input_shape
        network = runtime.place(clone_model(task.trained.model)).eval().requires_grad_(False)
        drawn = torch.randn((self.batch_size, *shape), generator=torch_generator(task.seed, "noise"))
        noise = drawn.to(runtime.torch_device).requires_grad_()
        labels = torch.full((self.batch_size,), forgotten, device=noise.device)
        optimiser = torch.optim.Adam([noise], lr=self.noise_learning_rate)
        for step in range(self.noise_steps):
            with runtime.autocast():
                loss = -cross_entropy(network(noise), labels)
            loss = loss + self.penalty * noise.square().flatten(1).sum(1).mean()
            if not math.isfinite(float(loss.detach())):
                raise TrainingError(
                    f"the loss of the noise is {float(loss.detach())} in step {step + 1}",
                    where="UNSIR",
                    hint="lower noise_learning_rate",
                )
            optimiser.zero_grad(set_to_none=True)
            runtime.backward(loss)
            optimiser.step()
        task.trained_records += self.noise_steps * self.batch_size
        return noise.detach().cpu()

    def _make_records(self, task: Task, noise: torch.Tensor, forgotten: int) -> Records:
        """The sample of D_r, then the copies of the noise, as records in memory."""
        records, retain = task.context.records, task.retain_rows
        labels = records.labels[retain]
        parts = [
            sample_rows(task, retain[labels == index], self.samples_per_class, "retain") for index in np.unique(labels)
        ]
        rows = np.concatenate(parts)
        features = [x.cpu() for x, _ in task.make_batches(rows, self.batch_size).in_order()]
        count = len(noise) * self.copies
        return Records(
            "UNSIR",
            [*records.record_ids[rows].tolist(), *(f"noise {number}" for number in range(count))],
            np.concatenate([records.labels[rows], np.full(count, forgotten)]),
            records.class_names,
            torch.cat([*features, *[noise] * self.copies]).contiguous().numpy(),
            columns={"noise": np.repeat([0, 1], [len(rows), count])},
        )
