"""The inverse of influence unlearning in the released code of [Jia2023] (`Wfisher`), for reproductions.

With the gradients g_0, g_1, ... of single records, the code starts from k = v and o = g_0, and computes for i >= 1

    k <- k - (k . g_i) / (n + o . g_i) * o,        o <- o - (o . g_i) / (n + o . g_i) * o,        n = 1000.

o is only rescaled, so o = s g_0 and k = v + c g_0 with two numbers s and c: the inverse adds a multiple of the gradient
of one record. Only the products v . g_i and g_0 . g_i are needed, which are derivatives of the losses along v and g_0.
"""

from __future__ import annotations

import math

import torch

from expunge.core.errors import TrainingError
from expunge.methods.task import Task
from expunge.training.curvature import Vector, combine, gradient, jvp, project
from expunge.training.loop import cross_entropy

#: n in the formula; the code reads n + 2 records: it stops after the record with the number n + 1, counted from 0.
N = 1000


def apply_released_inverse(task: Task, v: Vector, batch_size: int) -> Vector:
    """Return v + c g_0; the first 1,002 records of D_r are read, each counting two passes, in evaluation mode.

    Raises:
        TrainingError: c is not finite.
    """
    rows = task.retain_rows[: N + 2]
    first = project(gradient(task.model, task.read(rows[:1], 1)), task.mask)
    along_v: list[float] = []
    along_first: list[float] = []
    for x, y in task.read(rows, batch_size):
        task.trained_records += len(x)
        along_v += _directional(task, x, y, v)
        along_first += _directional(task, x, y, first)
    scale, added = 1.0, 0.0  # o = scale * g_0 and k = v + added * g_0
    for v_g, first_g in zip(along_v[1:], along_first[1:], strict=True):
        o_g, k_g = scale * first_g, v_g + added * first_g
        added -= k_g / (N + o_g) * scale
        scale -= o_g / (N + o_g) * scale
    if not math.isfinite(added):
        raise TrainingError("the multiple of the first record's gradient is not finite", where="IU.legacy")
    return combine(v, added, first)


def _directional(task: Task, x: torch.Tensor, y: torch.Tensor, vector: Vector) -> list[float]:
    """The derivative of each record's loss along a vector."""
    logits, slope = jvp(task.model, x, vector, mask=task.mask)
    outputs = logits.requires_grad_()
    with torch.enable_grad():
        (by_logits,) = torch.autograd.grad(cross_entropy(outputs, y) * len(y), outputs)
    found: list[float] = (by_logits * slope).sum(1).cpu().double().tolist()
    return found
