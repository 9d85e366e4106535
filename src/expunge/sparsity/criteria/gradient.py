"""Criteria that differentiate: SNIP, GraSP, SynFlow, first-order Taylor."""

from __future__ import annotations

import torch
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.hashing import plain_name
from expunge.core.trained import clone_model
from expunge.models.normalise import Normalise
from expunge.training import curvature
from expunge.training.batchnorm import set_training

from .registry import Material, Scores, register_criterion


def _gradients(material: Material, criterion: str) -> Scores:
    names = list(material.weights)
    model = clone_model(material.model) if material.batch_statistics else material.model
    return curvature.gradient(
        model,
        material.data(criterion)(),
        objective=material.objective,
        names=names,
        batch_statistics=material.batch_statistics,
    )


@register_criterion(
    "SNIP", reduce="sum", needs_data=True, source="Lee, Ajanthan, Torr: SNIP, ICLR 2019, equations 4 to 6"
)
def snip(material: Material) -> Scores:
    """|w dL/dw|: how fast the mean loss L changes as the weight's connection is turned down.

    It is |dL/dc| at c = 1 for the network with weights c * w.
    """
    slopes = _gradients(material, "SNIP")
    return {name: (weight.detach() * slopes[name]).abs() for name, weight in material.weights.items()}


@register_criterion(
    "Taylor", reduce="sum", needs_data=True, source="Molchanov et al.: Importance estimation, CVPR 2019, equations 5, 8"
)
def taylor(material: Material) -> Scores:
    """Mean over batches of (w dL_b/dw)^2: the squared first-order change of a batch's loss if the weight were 0."""
    names = list(material.weights)
    model = clone_model(material.model) if material.batch_statistics else material.model
    total = {name: torch.zeros_like(weight.detach()) for name, weight in material.weights.items()}
    count = 0
    for batch in material.data("Taylor")():
        slopes = curvature.gradient(
            model, [batch], objective=material.objective, names=names, batch_statistics=material.batch_statistics
        )
        for name, weight in material.weights.items():
            total[name] += (weight.detach() * slopes[name]) ** 2
        count += 1
    if count == 0:
        raise MaskError("there are no records to take gradients over", where="criterion Taylor")
    return {name: tensor / count for name, tensor in total.items()}


@register_criterion("GraSP", reduce="sum", needs_data=True, source="Wang, Zhang, Grosse: GraSP, ICLR 2020, equation 8")
def grasp(material: Material) -> Scores:
    """w (H g): what the weight adds to the squared norm of the gradient, to first order; the lowest go first.

    With the others kept, removing weight j changes g^T g by about -2 w_j (H g)_j, so a weight with a small (negative)
    score hinders the flow of gradients and goes first. H and g are those of the mean loss over all batches.
    """
    names = tuple(material.weights)
    model = clone_model(material.model)
    model.train(material.batch_statistics)
    batches = material.data("GraSP")
    slopes = curvature.gradient(
        model, batches(), objective=material.objective, names=names, batch_statistics=material.batch_statistics
    )
    if material.batch_statistics:
        bent = _training_hessian_times(model, material, slopes)
    else:
        bent = curvature.Curvature(model, batches, objective=material.objective, names=names).times(slopes)
    return {name: weight.detach() * bent[name] for name, weight in material.weights.items()}


def _training_hessian_times(model: nn.Module, material: Material, v: Scores) -> Scores:
    """H v of the mean loss with batch statistics (the batches' losses weighted by their sizes)."""
    parameters = curvature.parameters_of(model, list(v))
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    count = 0
    for x, y in material.data("GraSP")():
        where = list(parameters.values())
        set_training(model, frozen=len(x) == 1)  # one record has no batch variance
        slopes = torch.autograd.grad(material.objective(model(x), y), where, create_graph=True)
        along = torch.stack([(g * v[n]).sum() for n, g in zip(parameters, slopes, strict=True)]).sum()
        for name, part in zip(total, torch.autograd.grad(along, where, allow_unused=True), strict=True):
            if part is not None:
                total[name] += part * len(x)
        count += len(x)
    return {name: tensor / max(count, 1) for name, tensor in total.items()}


@register_criterion("SynFlow", reduce="sum", source="Tanaka et al.: SynFlow, NeurIPS 2020, algorithm 1")
def synflow(material: Material) -> Scores:
    """w dR/dw with R the sum of the outputs for an input of ones, all parameters and buffers replaced by |.|.

    No records are read. Evaluation mode, float64 (R is a product over layers), input constants left out. Over a layer
    without bias of a sequential network the scores add up to R, the same for every such layer.
    """
    if material.input_shape is None:
        raise MaskError("SynFlow needs the shape of a record", where="criterion SynFlow")
    model = clone_model(material.model).cpu().double().eval().requires_grad_(True)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.abs_()
        for module in model.modules():
            if isinstance(module, Normalise):
                module.mean.zero_()
                module.deviation.fill_(1.0)
    parameters = {plain_name(name): p for name, p in model.named_parameters()}
    chosen = [parameters[name] for name in material.weights]
    flow = model(torch.ones(1, *material.input_shape, dtype=torch.float64)).sum()
    slopes = torch.autograd.grad(flow, chosen, allow_unused=True)
    return {
        name: torch.zeros_like(p) if slope is None else (p * slope).detach()
        for name, p, slope in zip(material.weights, chosen, slopes, strict=True)
    }
