"""The noise of Fisher forgetting in the released code of [Jia2023] (`fisher_new`), for reproductions."""

from __future__ import annotations

import torch

from expunge.methods.task import Task
from expunge.training.curvature import Vector, evaluation_mode, parameters_of, project
from expunge.training.loop import cross_entropy

#: Records in a batch of that code: the result depends on it.
BATCH = 32


def released_moments(task: Task, alpha: float) -> tuple[Vector, Vector]:
    """Return the means (of the parameters whose mean changes) and the variances of all parameters.

    F = mean over batches of 32 of sum_y mean_x p_y(x) * (gradient of the mean cross-entropy to y)^2.

    Args:
        task: the request; the K passes over D_r are counted.
        alpha: scale of the variances.
    """
    classes, forgotten = task.context.records.classes, task.request.forgotten_class
    fisher = squared_batch_gradients(task, classes)
    means: Vector = {}
    variances: Vector = {}
    for name, parameter in parameters_of(task.model).items():
        variance = (1.0 / (fisher[name] + 1e-8)).clamp(max=1e3)
        is_last = len(parameter.shape) > 0 and parameter.shape[0] == classes
        if is_last:
            variance = variance.clamp(max=1e2)
        variance = alpha * variance
        if parameter.dim() > 1:
            variance = variance.mean(1, keepdim=True).expand_as(parameter).clone()
        if is_last and forgotten is not None:
            means[name] = parameter.detach().clone()
            means[name][forgotten] = 0.0
            variance[forgotten] = 1e-4
        variances[name] = 10.0 * variance if is_last or parameter.dim() == 1 else variance
    return means, variances


def squared_batch_gradients(task: Task, classes: int) -> Vector:
    """Return F of `released_moments`; each record counts K times."""
    parameters = parameters_of(task.model)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    count = 0
    with evaluation_mode(task.model), torch.enable_grad():
        for x, y in task.read(task.retain_rows, BATCH):
            task.trained_records += (classes - 1) * len(x)
            logits = task.model(x)
            p = logits.detach().softmax(1).mean(0)
            for label in range(classes):
                loss = cross_entropy(logits, torch.full_like(y, label))
                gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        total[name] += p[label] * gradient.square()
            count += 1
    return project({name: tensor / max(count, 1) for name, tensor in total.items()}, task.mask)
