"""Vectors in the shape of the parameters: `name -> tensor`. With a mask, they are 0 at the pruned weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from expunge.core.errors import TrainingError
from expunge.core.hashing import plain_name
from expunge.core.mask import Mask
from expunge.core.seeds import torch_generator

Vector = dict[str, torch.Tensor]


def parameters_of(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by plain name; only those in `names`, if given.

    Raises:
        TrainingError: a parameter in `names` is frozen or missing.
    """
    found = {plain_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    if names is None:
        return found
    frozen = [name for name in names if name not in found]
    if frozen:
        raise TrainingError(
            "cannot differentiate with respect to this parameter: it is frozen or missing",
            where=frozen[0],
            hint="enable its gradient (requires_grad_), or leave its layer out",
        )
    return {name: found[name] for name in names}


def dot(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """Return the inner product of two vectors, summed in float64."""
    return math.fsum(float((a[name].double() * b[name].double()).sum()) for name in a)


def norm(a: Mapping[str, torch.Tensor]) -> float:
    """Return the Euclidean norm of a vector."""
    return math.sqrt(max(dot(a, a), 0.0))


def combine(a: Mapping[str, torch.Tensor], scale: float, b: Mapping[str, torch.Tensor]) -> Vector:
    """Return a + scale * b."""
    return {name: tensor + scale * b[name] for name, tensor in a.items()}


def project(vector: Vector, mask: Mask | None) -> Vector:
    """Return the vector with 0 at pruned weights. Weights in tensors that the mask does not name are kept."""
    if mask is None:
        return vector
    pruned = {name: ~kept for name, kept in mask.kept.items()}
    return {k: v.masked_fill(pruned[k].to(v.device), 0.0) if k in pruned else v for k, v in vector.items()}


def draw_vector(parameters: Mapping[str, torch.Tensor], seed: int, mask: Mask | None = None) -> Vector:
    """Draw a standard normal vector on the kept weights, on the CPU."""
    generator = torch_generator(seed, "curvature")
    drawn = {n: torch.randn(p.shape, generator=generator).to(p.device, p.dtype) for n, p in parameters.items()}
    return project(drawn, mask)


def check_finite(vector: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise TrainingError with the name of the first tensor that has an infinite entry or NaN.

    Args:
        vector: tensors by name.
        what: what the vector is, for the message.

    >>> import torch
    >>> from expunge.training.curvature import check_finite
    >>> check_finite({"weight": torch.tensor([1.0, float("nan")])}, "the gradient")
    Traceback (most recent call last):
        ...
    expunge.core.errors.TrainingError: weight: the gradient is not finite
      hint: check that the loss of the model is finite on its records
    """
    for name, tensor in vector.items():
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"{what} is not finite", where=name, hint="check that the loss of the model is finite on its records"
            )
