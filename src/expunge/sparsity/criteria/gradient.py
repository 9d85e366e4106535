"""Criteria that need derivatives: SNIP, GraSP, SynFlow, first-order Taylor."""

from __future__ import annotations

import torch
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.hashing import plain_name
from expunge.core.probe import find_input_fields
from expunge.core.trained import clone_model
from expunge.models.normalise import Normalise
from expunge.training import curvature
from expunge.training.batchnorm import set_training_mode
from expunge.training.runtime import second_derivatives

from .registry import Scores, ScoringContext, register_criterion


def _compute_gradients(context: ScoringContext, criterion: str) -> Scores:
    names = list(context.weights)
    model = clone_model(context.model) if context.batch_statistics else context.model
    return curvature.gradient(
        model,
        context.require_batches(criterion)(),
        objective=context.objective,
        names=names,
        batch_statistics=context.batch_statistics,
    )


@register_criterion(
    "SNIP", reduction="sum", needs_data=True, citation="Lee, Ajanthan, Torr: SNIP, ICLR 2019, equations 4 to 6"
)
def snip(context: ScoringContext) -> Scores:
    """|w dL/dw|: the sensitivity of the mean loss L to scaling the weight's connection.

    It equals |dL/dc| at c = 1 for the network with weights c * w.
    """
    gradients = _compute_gradients(context, "SNIP")
    return {name: (weight.detach() * gradients[name]).abs() for name, weight in context.weights.items()}


@register_criterion(
    "Taylor",
    reduction="sum",
    needs_data=True,
    citation="Molchanov et al.: Importance estimation, CVPR 2019, equations 5, 8",
)
def taylor(context: ScoringContext) -> Scores:
    """Mean over batches of (w dL_b/dw)^2: the squared first-order change of a batch's loss if the weight were 0."""
    names = list(context.weights)
    model = clone_model(context.model) if context.batch_statistics else context.model
    total = {name: torch.zeros_like(weight.detach()) for name, weight in context.weights.items()}
    count = 0
    for batch in context.require_batches("Taylor")():
        gradients = curvature.gradient(
            model, [batch], objective=context.objective, names=names, batch_statistics=context.batch_statistics
        )
        for name, weight in context.weights.items():
            total[name] += (weight.detach() * gradients[name]) ** 2
        count += 1
    if count == 0:
        raise MaskError("there are no records to compute gradients on", where="criterion Taylor")
    return {name: tensor / count for name, tensor in total.items()}


@register_criterion(
    "GraSP", reduction="sum", needs_data=True, citation="Wang, Zhang, Grosse: GraSP, ICLR 2020, equation 8"
)
def grasp(context: ScoringContext) -> Scores:
    """w (H g): the first-order contribution of the weight to the squared gradient norm; the lowest are pruned first.

    Removing only weight j changes g^T g by about -2 w_j (H g)_j, so a weight with a low (negative) score reduces the
    gradient flow. H and g are the Hessian and the gradient of the mean loss over all batches.
    """
    names = tuple(context.weights)
    model = clone_model(context.model)
    model.train(context.batch_statistics)
    batches = context.require_batches("GraSP")
    gradients = curvature.gradient(
        model, batches(), objective=context.objective, names=names, batch_statistics=context.batch_statistics
    )
    if context.batch_statistics:
        hvp = _hvp_with_batch_statistics(model, context, gradients)
    else:
        hvp = curvature.Curvature(model, batches, objective=context.objective, names=names).multiply(gradients)
    return {name: weight.detach() * hvp[name] for name, weight in context.weights.items()}


def _hvp_with_batch_statistics(model: nn.Module, context: ScoringContext, v: Scores) -> Scores:
    """Compute H v of the mean loss with batch statistics (the losses of the batches are weighted by their sizes)."""
    parameters = curvature.parameters_of(model, list(v))
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    count = 0
    with second_derivatives(model):
        for x, y in context.require_batches("GraSP")():
            inputs = list(parameters.values())
            set_training_mode(model, frozen=len(x) == 1, input_shape=x.shape[1:])  # one record has no batch variance
            gradients = torch.autograd.grad(context.objective(model(x), y), inputs, create_graph=True)
            product = torch.stack([(g * v[n]).sum() for n, g in zip(parameters, gradients, strict=True)]).sum()
            for name, part in zip(total, torch.autograd.grad(product, inputs, allow_unused=True), strict=True):
                if part is not None:
                    total[name] += part * len(x)
            count += len(x)
    return {name: tensor / max(count, 1) for name, tensor in total.items()}


@register_criterion(
    "SynFlow", reduction="sum", default_rounds=100, citation="Tanaka et al.: SynFlow, NeurIPS 2020, algorithm 1"
)
def synflow(context: ScoringContext) -> Scores:
    """w dR/dw, where R is the sum of the outputs for an input of ones and |.| replaces all parameters and buffers.

    No records are read. Evaluation mode, float64 (R is a product over layers), without the input normalisation. In a
    sequential network, the scores of every layer without bias add up to the same R.
    """
    if context.input_shape is None:
        raise MaskError("SynFlow needs the shape of a record", where="criterion SynFlow")
    model = clone_model(context.model).cpu().double().eval().requires_grad_(True)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.abs_()
        for module in model.modules():
            if isinstance(module, Normalise):
                module.mean.zero_()
                module.deviation.fill_(1.0)
    parameters = {plain_name(name): p for name, p in model.named_parameters()}
    chosen = [parameters[name] for name in context.weights]
    fields = find_input_fields(model)
    x = torch.ones(1, *context.input_shape) if fields is None else fields.probe(1)
    flow = model(x.double() if x.is_floating_point() else x).sum()
    gradients = torch.autograd.grad(flow, chosen, allow_unused=True)
    return {
        name: torch.zeros_like(p) if gradient is None else (p * gradient).detach()
        for name, p, gradient in zip(context.weights, chosen, gradients, strict=True)
    }
