"""Which layers of a network follow a rule, and what their rules need: inputs, and derivatives by outputs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from expunge.core.errors import TrainingError
from expunge.core.show import repr_fields

from .generic import record_by_record
from .layer_rules import LayerRule, find_rule
from .products import evaluation_mode
from .vectors import Vector, parameters_of

#: A rule must agree with autograd to this fraction of the largest entry, on two records, else it is not used.
AGREEMENT = 1e-3

#: `B x K` logits and `B` labels -> `B x C x K`: for each record, the derivatives of C numbers by its logits.
Columns = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclasses.dataclass(eq=False)
class Use:
    """One call of a layer: its input (without a graph) and its output (in the graph)."""

    layer: nn.Module
    a: torch.Tensor
    output: torch.Tensor

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How the gradients of single records of a model are computed.

    Attributes:
        model: the network.
        parameters: the parameters, by plain name.
        ruled: for each layer that follows a rule, the name of the parameter of each of its attributes.
        rest: names of the parameters that are differentiated by `torch.func`.
        classes: number of logits K.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    ruled: dict[nn.Module, dict[str, str]]
    rest: tuple[str, ...]
    classes: int

    __repr__ = repr_fields

    @property
    def rest_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of `rest`."""
        return {name: self.parameters[name] for name in self.rest}


def make_plan(model: nn.Module, x: torch.Tensor, parameters: dict[str, nn.Parameter]) -> Plan:
    """Find the layers whose rules hold, by comparing them with autograd on the first two records.

    A layer with a rule can still be used in another way (its weight in a function, its input transposed, its class with
    another forward pass); its parameters are then differentiated by `torch.func`. Cost: a few passes over two records.

    Args:
        model: the network.
        x: inputs of a batch.
        parameters: what to differentiate with respect to.

    Raises:
        TrainingError: the outputs of a record depend on the other records of its batch.
    """
    x = x[:2]
    y = torch.zeros(len(x), dtype=torch.long, device=x.device)
    with evaluation_mode(model):
        logits = _check_independent(model, x)
        plan = Plan(model, parameters, {}, (), logits.shape[1])
        try:
            plan = dataclasses.replace(plan, ruled=_find_called(model, x, parameters))
            found = ruled_gradients(plan, x, y, _probe) if plan.ruled else {}
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):  # a layer is called in an unusual way
            found = {}
        if not found:
            return dataclasses.replace(plan, ruled={}, rest=tuple(parameters))
        expected = record_by_record(model, {name: parameters[name] for name in found}, x, _probe(logits, y))
    right = {name for name in found if _agree(found[name], expected[name])}
    ruled = {layer: own for layer, own in plan.ruled.items() if set(own.values()) <= right}
    covered = {name for own in ruled.values() for name in own.values()}
    covered -= {name for own in plan.ruled.values() if not set(own.values()) <= right for name in own.values()}
    ruled = {layer: own for layer, own in ruled.items() if set(own.values()) <= covered}
    covered = {name for own in ruled.values() for name in own.values()}
    return dataclasses.replace(plan, ruled=ruled, rest=tuple(name for name in parameters if name not in covered))


def _find_called(
    model: nn.Module, x: torch.Tensor, parameters: Mapping[str, nn.Parameter]
) -> dict[nn.Module, dict[str, str]]:
    """The layers that are called, with one record in each row of their input and output, in a way that has a rule."""
    names = {parameter: name for name, parameter in parameters.items()}
    ruled: dict[nn.Module, dict[str, str]] = {}
    for layer in model.modules():
        own = {a: names[p] for a, p in layer.named_parameters(recurse=False, remove_duplicate=False) if p in names}
        if own and find_rule(layer) is not None:
            ruled[layer] = own
    uses: list[Use] = []
    with torch.enable_grad(), without_gradients(parameters_of(model)), _recorded(list(ruled), uses):
        model(x)
    good = {use.layer for use in uses}
    for use in uses:
        if not len(use.a) == len(use.output) == len(x) or find_rule(use.layer, use.a) is None:
            good.discard(use.layer)
    return {layer: own for layer, own in ruled.items() if layer in good}


def _probe(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One column with different entries."""
    row = torch.linspace(1.0, 2.0, logits.shape[1], device=logits.device, dtype=logits.dtype)
    return row.expand(len(logits), 1, -1)


def _agree(a: torch.Tensor, b: torch.Tensor) -> bool:
    scale = float(b.abs().max())
    return float((a - b).abs().max()) <= AGREEMENT * scale


def _check_independent(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the logits; raise TrainingError if those of the first record depend on the second."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            raise TrainingError(
                "the layer normalises with the statistics of the batch, also in evaluation mode: the outputs of a "
                "record depend on the other records, so a single record has no gradient",
                where=type(layer).__name__,
                hint="use track_running_stats=True, or a normalisation within records (GroupNorm)",
            )
    with torch.no_grad():
        together, alone = model(x), model(x[:1])
    if float((together[:1] - alone).abs().max()) > AGREEMENT * float(alone.abs().max()) + 1e-6:
        raise TrainingError(
            "the outputs of a record depend on the other records of its batch, so a single record has no gradient",
            where=type(model).__name__,
            hint="the network must treat records separately in evaluation mode",
        )
    return together


# ---- one forward pass, one backward pass for each column


@contextlib.contextmanager
def without_gradients(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """The parameters need no gradient inside the block, so that backward passes compute those of activations only."""
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _recorded(layers: Sequence[nn.Module], uses: list[Use]) -> Iterator[None]:
    """Every call of the layers inside the block is added to `uses`."""

    def record(layer: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if not output.requires_grad:
            output.requires_grad_()
        uses.append(Use(layer, arguments[0].detach(), output))
        return output.clone()  # a following operation may work in place

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def differentiate(
    plan: Plan, x: torch.Tensor, y: torch.Tensor, columns: Columns
) -> tuple[list[Use], list[torch.Tensor]]:
    """Run one forward pass, and one backward pass for each column.

    Returns:
        The calls of the layers that follow rules, and for each the derivatives of the columns by its output,
        `B x C x ...`.
    """
    uses: list[Use] = []
    every = parameters_of(plan.model)
    with torch.enable_grad(), without_gradients(every), _recorded(list(plan.ruled), uses):
        logits = plan.model(x)
        starts = columns(logits.detach(), y).to(logits.dtype)
        outputs = [use.output for use in uses]
        count = starts.shape[1]
        if count == 1:  # no copy
            only = torch.autograd.grad(logits, outputs, starts[:, 0], allow_unused=True, materialize_grads=True)
            return uses, [part[:, None] for part in only]
        slopes = [output.new_empty(len(output), count, *output.shape[1:]) for output in outputs]
        for number, start in enumerate(starts.unbind(1)):
            last = number == count - 1
            found = torch.autograd.grad(logits, outputs, start, retain_graph=not last, allow_unused=True)
            for slope, part in zip(slopes, found, strict=True):
                slope[:, number] = 0.0 if part is None else part
    return uses, slopes


def ruled_gradients(plan: Plan, x: torch.Tensor, y: torch.Tensor, columns: Columns) -> Vector:
    """Compute the gradients of the parameters that follow rules, in evaluation mode: `B x C x shape` for each."""
    found: Vector = {}
    for use, d in zip(*differentiate(plan, x, y, columns), strict=True):
        names = plan.ruled[use.layer]
        for attribute, gradient in rule_of(use).gradients(use.layer, use.a, d).items():
            name = names.get(attribute)
            if name is not None:
                found[name] = found[name] + gradient if name in found else gradient
    return found


def rule_of(use: Use) -> LayerRule:
    """Return the rule of a call, or raise TrainingError if it differs from the calls that were checked."""
    rule = find_rule(use.layer, use.a)
    if rule is None:
        raise TrainingError(
            "a layer was called with inputs of another shape than before, for which there is no rule",
            where=type(use.layer).__name__,
        )
    return rule
