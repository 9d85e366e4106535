"""The stacked engines of the ensemble trainer: batched matrix products for perceptrons, `vmap` for other networks."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import ConfigError
from expunge.core.mask import Mask
from expunge.core.seeds import epoch_order
from expunge.core.show import repr_fields
from expunge.data.batches import Batches, copy_to_device
from expunge.data.records import Records
from expunge.data.transforms import to_input
from expunge.training import batchnorm
from expunge.training.epochs.optimisers import group_parameters
from expunge.training.recipes import Recipe
from expunge.training.recipes.decay_rules import find_undecayed
from expunge.training.runtime import Runtime

from .member import Stacked
from .stackable import clip_members, split_state, stacked_losses

if TYPE_CHECKING:
    from expunge.models import Architecture


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """Members that are trained together, in descending order of their numbers of records.

    Attributes:
        rows: training records of each member.
        orders: seeds of their orders of records.
        states: state dicts to start from.
        masks: their masks, or None for all.
    """

    rows: list[NDArray[np.int64]]
    orders: list[int]
    states: list[dict[str, torch.Tensor]]
    masks: list[Mask | None]

    __repr__ = repr_fields

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def counts(self) -> list[int]:
        """Number of records of each member, descending."""
        return [len(rows) for rows in self.rows]

    def stack_states(self, device: torch.device) -> Stacked:
        """Stack the starting states: `M x ...` by name."""
        return {k: torch.stack([state[k].detach().to(device) for state in self.states]) for k in self.states[0]}

    def stack_pruned(self, device: torch.device) -> Stacked:
        """Stack the pruned weights, `M x ...` bool by name; empty without masks.

        Weights in tensors that one of the masks does not name are kept in that member.
        """
        if self.masks[0] is None:
            return {}
        masks = cast("list[Mask]", self.masks)
        names = {name: kept for mask in masks for name, kept in mask.kept.items()}
        return {
            name: torch.stack([~mask.kept.get(name, torch.ones_like(like)) for mask in masks]).to(device)
            for name, like in names.items()
        }


@dataclasses.dataclass(frozen=True)
class StepBatch:
    """The batches and learning rates of one optimiser step of a chunk.

    Attributes:
        active: number of members that have a batch in this step; these are the first ones.
        index: `active x B` row numbers, padded with row 0 where a member's batch is shorter.
        weight: weight of a record in the mean loss: 1 / B, or `active x B` weights that are 0 on padding.
        rates: one learning rate, or one per active member.
    """

    active: int
    index: torch.Tensor
    weight: float | torch.Tensor
    rates: float | torch.Tensor

    __repr__ = repr_fields


def step_batches(chunk: Chunk, keys: NDArray[np.uint64], recipe: Recipe, epoch: int) -> Iterator[StepBatch]:
    """Yield the steps of one epoch. Members differ in order, number of batches and learning rates."""
    size, counts = recipe.batch_size, chunk.counts
    orders = [
        torch.from_numpy(rows[epoch_order(keys[rows], seed, epoch)])
        for rows, seed in zip(chunk.rows, chunk.orders, strict=True)
    ]
    numbers = [-(-count // size) for count in counts]
    if counts[0] == counts[-1]:
        table = torch.stack(orders)
        for number, index in enumerate(table.split(size, dim=1)):
            rate = recipe.rate(epoch + number / numbers[0], numbers[0])
            yield StepBatch(len(chunk), index, 1 / index.shape[1], rate)
        return
    table = torch.zeros(len(chunk), numbers[0] * size, dtype=torch.int64)
    for line, order in zip(table, orders, strict=True):
        line[: len(order)] = order
    for number in range(numbers[0]):
        active = sum(number < n for n in numbers)
        lengths = torch.tensor([min(size, counts[m] - number * size) for m in range(active)])
        width = int(lengths.max())
        is_record = torch.arange(width) < lengths[:, None]
        weight = is_record / lengths[:, None]
        rates = torch.tensor([recipe.rate(epoch + number / numbers[m], numbers[m]) for m in range(active)])
        yield StepBatch(active, table[:active, number * size : number * size + width], weight, rates)


class StackedStep(abc.ABC):
    """Trains one chunk: its members' stacked parameters, and the optimiser steps on them."""

    @abc.abstractmethod
    def run_epoch(self, epoch: int) -> NDArray[np.float64]:
        """Run one epoch; return the `M` mean losses per record."""

    @abc.abstractmethod
    def copy_states(self) -> Stacked:
        """Copy all parameters and buffers to the CPU: `M x ...` by name."""


class Engine(abc.ABC):
    """A way to train chunks.

    Attributes:
        needs_equal_counts: whether all members of a chunk must have the same number of records.
    """

    needs_equal_counts = False

    def __init__(self, records: Records, architecture: Architecture, recipe: Recipe, runtime: Runtime) -> None:
        self.records, self.architecture, self.recipe, self.runtime = records, architecture, recipe, runtime

    @abc.abstractmethod
    def begin(self, chunk: Chunk) -> StackedStep:
        """Start training a chunk."""


def can_use_products(architecture: Architecture, records: Records, recipe: Recipe) -> bool:
    """Whether `ProductsEngine` supports the run: an mlp without BatchNorm, records in memory, plain SGD."""
    plain = architecture.name == "mlp" and not architecture.options["batch_norm"]
    return plain and records.features is not None and recipe.augment == "none" and recipe.is_plain_sgd


class ProductsEngine(Engine):
    """Trains multi-layer perceptrons by batched matrix products, with an explicit backward pass.

    With a the input of a layer, W its weights and d the gradient at its output, all `M x ...`, one product computes the
    gradient and adds it to the momentum: V <- mu V + a^T d. No graph is built. Inputs are normalised once.
    """

    def __init__(self, records: Records, architecture: Architecture, recipe: Recipe, runtime: Runtime) -> None:
        super().__init__(records, architecture, recipe, runtime)
        if not can_use_products(architecture, records, recipe):
            raise ConfigError(
                "the engine `products` supports only mlp without BatchNorm, records in memory, and plain SGD (no other "
                "optimiser, augmentation, clipping, label smoothing, or parameters without weight decay)",
                where=architecture.name,
                hint="use engine=vmap",
            )

    def begin(self, chunk: Chunk) -> StackedStep:
        """See `Engine.begin`."""
        return _Products(self, chunk)


class _Products(StackedStep):
    def __init__(self, engine: ProductsEngine, chunk: Chunk) -> None:
        device = engine.runtime.torch_device
        self.chunk, self.recipe, self.device = chunk, engine.recipe, device
        self.keys = engine.records.keys
        features, self.labels = copy_to_device(engine.records, device)
        model = engine.architecture.build(0).to(device)
        with torch.no_grad():
            self.inputs = cast(nn.Module, model.normalise)(to_input(features, False)).flatten(1).contiguous()
        names = [name.removesuffix(".weight") for name, p in model.named_parameters() if p.dim() == 2]
        state = chunk.stack_states(device)
        self.other_tensors = {k: v for k, v in state.items() if k.rpartition(".")[0] not in names}
        self.names = names
        pruned = chunk.stack_pruned(device)
        # W is stored as M x in x out: then x W, a^T d and d W^T need no copies
        self.weights = [state[f"{n}.weight"].transpose(1, 2).contiguous() for n in names]
        self.biases = [state[f"{n}.bias"].unsqueeze(1).contiguous() for n in names]
        self.pruned_weights = [
            pruned[f"{n}.weight"].transpose(1, 2).contiguous() if f"{n}.weight" in pruned else None for n in names
        ]
        self.pruned_biases = [pruned[f"{n}.bias"].unsqueeze(1) if f"{n}.bias" in pruned else None for n in names]
        self.weight_moments = [torch.zeros_like(w) for w in self.weights]
        self.bias_moments = [torch.zeros_like(b) for b in self.biases]
        self._mask()

    def copy_states(self) -> Stacked:
        found = {k: v.cpu().clone() for k, v in self.other_tensors.items()}
        for name, weight, bias in zip(self.names, self.weights, self.biases, strict=True):
            found[f"{name}.weight"] = weight.transpose(1, 2).contiguous().cpu()
            found[f"{name}.bias"] = bias.squeeze(1).clone().cpu()
        return found

    def _mask(self) -> None:
        for tensors, masks in ((self.weights, self.pruned_weights), (self.biases, self.pruned_biases)):
            for tensor, pruned in zip(tensors, masks, strict=True):
                if pruned is not None:
                    tensor.masked_fill_(pruned, 0.0)

    def run_epoch(self, epoch: int) -> NDArray[np.float64]:
        """See `StackedStep.run_epoch`."""
        losses = torch.zeros(len(self.chunk), dtype=torch.float64)
        with torch.inference_mode(False), torch.no_grad():
            for step in step_batches(self.chunk, self.keys, self.recipe, epoch):
                losses[: step.active] += self._step(step).double().cpu()
        return cast("NDArray[np.float64]", losses.numpy() / np.asarray(self.chunk.counts))

    def _step(self, step: StepBatch) -> torch.Tensor:
        active, width = step.active, step.index.shape[1]
        index = step.index.reshape(-1).to(self.device)
        labels = self.labels.index_select(0, index).view(active, width, 1)
        weight = step.weight if isinstance(step.weight, float) else step.weight.to(self.device).unsqueeze(2)
        layers = len(self.weights)
        weights, biases = [w[:active] for w in self.weights], [b[:active] for b in self.biases]
        inputs = [self.inputs.index_select(0, index).view(active, width, -1)]
        for layer in range(layers):
            inputs.append(torch.baddbmm(biases[layer], inputs[-1], weights[layer]))
            if layer < layers - 1:
                inputs[-1].relu_()
        logs = torch.log_softmax(inputs.pop(), dim=2)
        picked = logs.gather(2, labels)
        if isinstance(weight, float):
            loss = -picked.sum((1, 2))
        else:
            loss = -torch.where(weight > 0, picked, 0.0).sum((1, 2))
        delta = logs.exp_()
        delta.scatter_add_(2, labels, torch.full_like(picked, -1.0))
        delta.mul_(weight)
        for layer in reversed(range(layers)):
            layer_input = inputs[layer]
            input_gradient = None
            if layer:
                input_gradient = torch.bmm(delta, weights[layer].transpose(1, 2))
                input_gradient = torch.ops.aten.threshold_backward(input_gradient, layer_input, 0)
            gradient = layer_input.transpose(1, 2), delta
            self._update(weights[layer], self.weight_moments[layer][:active], gradient, step.rates)
            self._update(biases[layer], self.bias_moments[layer][:active], delta.sum(1, keepdim=True), step.rates)
            if input_gradient is not None:
                delta = input_gradient
        self._mask()
        return loss

    def _update(
        self,
        weight: torch.Tensor,
        moment: torch.Tensor,
        gradient: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        rates: float | torch.Tensor,
    ) -> None:
        """Update as torch does: g = gradient + decay w; v = mu v + g; w -= rate v, or rate (g + mu v) with Nesterov."""
        recipe = self.recipe
        mu, decay = recipe.momentum, recipe.weight_decay
        if recipe.nesterov and mu > 0:
            g = torch.bmm(*gradient) if isinstance(gradient, tuple) else gradient
            g = g.add_(weight, alpha=decay) if decay else g
            moment.mul_(mu).add_(g)
            change = g.add_(moment, alpha=mu)
        else:
            if isinstance(gradient, tuple):
                moment.baddbmm_(*gradient, beta=mu)
            else:
                moment.mul_(mu).add_(gradient)
            if decay:
                moment.add_(weight, alpha=decay)
            change = moment
        if isinstance(rates, float):
            weight.add_(change, alpha=-rates)
        else:
            weight.sub_(change * rates.to(weight.device).view(-1, *[1] * (weight.dim() - 1)))


class VmapEngine(Engine):
    """Trains any network by `torch.func.functional_call` under `torch.vmap`, with one backward pass for all models.

    Buffers and frozen parameters are stacked too. All members of a chunk must have the same number of records, so that
    no padding enters the batch statistics. `train_ensemble` rejects networks with an obstacle
    (`stackable.find_stacking_obstacle`).
    """

    needs_equal_counts = True

    def begin(self, chunk: Chunk) -> StackedStep:
        """See `Engine.begin`."""
        return _Vmap(self, chunk)


class _Vmap(StackedStep):
    def __init__(self, engine: VmapEngine, chunk: Chunk) -> None:
        self.chunk, self.recipe, self.records, self.runtime = chunk, engine.recipe, engine.records, engine.runtime
        device = engine.runtime.torch_device
        self.model = engine.architecture.build(0).to(device)
        state = chunk.stack_states(device)
        trainable, self.fixed = split_state(self.model, state)
        self.parameters = {k: v.requires_grad_() for k, v in trainable.items()}
        self.pruned = chunk.stack_pruned(device)
        names = find_undecayed(self.model, self.recipe.no_decay)
        self.optimiser = group_parameters(self.parameters, names, self.recipe)
        self._mask()

    def copy_states(self) -> Stacked:
        return {k: v.detach().cpu().clone() for k, v in {**self.parameters, **self.fixed}.items()}

    @torch.no_grad()
    def _mask(self) -> None:
        tensors = {**self.parameters, **self.fixed}
        for name, pruned in self.pruned.items():
            tensors[name].masked_fill_(pruned, 0.0)

    def run_epoch(self, epoch: int) -> NDArray[np.float64]:
        """See `StackedStep.run_epoch`."""
        size = self.recipe.batch_size
        streams = [
            Batches(
                self.records, rows, batch_size=size, device=self.runtime.torch_device, augment=self.recipe.augment
            ).epoch(order, epoch)
            for rows, order in zip(self.chunk.rows, self.chunk.orders, strict=True)
        ]
        count = self.chunk.counts[0]
        total = -(-count // size)
        losses = torch.zeros(len(self.chunk), dtype=torch.float64)
        for number, batches in enumerate(zip(*streams, strict=True)):
            x, y = (torch.stack(parts) for parts in zip(*batches, strict=True))
            for group in self.optimiser.param_groups:
                group["lr"] = self.recipe.rate(epoch + number / total, total)
            batchnorm.set_training_mode(self.model, frozen=x.shape[1] == 1, input_shape=x.shape[2:])
            loss = stacked_losses(self.model, self.parameters, self.fixed, x, y, smoothing=self.recipe.label_smoothing)
            self.optimiser.zero_grad(set_to_none=True)
            loss.sum().backward()
            for name, pruned in self.pruned.items():
                gradient = self.parameters[name].grad if name in self.parameters else None
                if gradient is not None:  # None: a frozen layer, or one that the forward pass does not use
                    gradient.masked_fill_(pruned, 0.0)
            if self.recipe.clip_norm is not None:
                clip_members([p.grad for p in self.parameters.values() if p.grad is not None], self.recipe.clip_norm)
            self.optimiser.step()
            self._mask()
            losses += loss.detach().double().cpu() * x.shape[1]
        return losses.numpy() / count
