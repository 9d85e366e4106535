"""The engines of the ensemble trainer: batched matrix products for perceptrons, `vmap` for everything else."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from expunge.core.errors import ConfigError, TrainingError
from expunge.core.hashing import plain_name, plain_parameters
from expunge.core.mask import Mask
from expunge.core.seeds import epoch_order
from expunge.data.batches import Batches, tensors_on
from expunge.data.records import Records
from expunge.data.transforms import to_input
from expunge.training import batchnorm
from expunge.training.recipes import Recipe
from expunge.training.runtime import Runtime

from .member import Stacked

if TYPE_CHECKING:
    from expunge.models import Architecture


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """Members trained together, most records first: rows, order seeds, starting states, masks."""

    rows: list[NDArray[np.int64]]
    orders: list[int]
    states: list[dict[str, torch.Tensor]]
    masks: list[Mask | None]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def counts(self) -> list[int]:
        """Records of each member, descending."""
        return [len(rows) for rows in self.rows]

    def stacked(self, device: torch.device) -> Stacked:
        """The starting states, `M x ...` by name."""
        return {k: torch.stack([state[k].detach().to(device) for state in self.states]) for k in self.states[0]}

    def dead(self, device: torch.device) -> Stacked:
        """Masked weights, `M x ...` bool by name; empty without masks. A weight one mask leaves out is alive there."""
        if self.masks[0] is None:
            return {}
        masks = cast("list[Mask]", self.masks)
        names = {name: tensor for mask in masks for name, tensor in mask.alive.items()}
        return {
            name: torch.stack([~mask.alive.get(name, torch.ones_like(like)) for mask in masks]).to(device)
            for name, like in names.items()
        }


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a chunk.

    Attributes:
        live: how many of the members, from the first, have a batch in this step.
        index: `live x B` rows; padded with row 0 where a member's batch is shorter.
        share: 1 / B, or `live x B` weights with 0 on padding.
        rates: one learning rate, or one a member.
    """

    live: int
    index: torch.Tensor
    share: float | torch.Tensor
    rates: float | torch.Tensor


def steps(chunk: Chunk, keys: NDArray[np.uint64], recipe: Recipe, epoch: int) -> Iterator[Step]:
    """The steps of one epoch: each member's own order, its own number of batches and its own rates."""
    size, counts = recipe.batch_size, chunk.counts
    orders = [
        torch.from_numpy(rows[epoch_order(keys[rows], seed, epoch)])
        for rows, seed in zip(chunk.rows, chunk.orders, strict=True)
    ]
    numbers = [-(-count // size) for count in counts]
    if counts[0] == counts[-1]:
        table = torch.stack(orders)
        for number, index in enumerate(table.split(size, dim=1)):
            rate = recipe.rate(epoch + number / numbers[0])
            yield Step(len(chunk), index, 1 / index.shape[1], rate)
        return
    table = torch.zeros(len(chunk), numbers[0] * size, dtype=torch.int64)
    for line, order in zip(table, orders, strict=True):
        line[: len(order)] = order
    for number in range(numbers[0]):
        live = sum(number < n for n in numbers)
        lengths = torch.tensor([min(size, counts[m] - number * size) for m in range(live)])
        width = int(lengths.max())
        inside = torch.arange(width) < lengths[:, None]
        share = inside / lengths[:, None]
        rates = torch.tensor([recipe.rate(epoch + number / numbers[m]) for m in range(live)])
        yield Step(live, table[:live, number * size : number * size + width], share, rates)


class Job(abc.ABC):
    """The training of one chunk."""

    @abc.abstractmethod
    def epoch(self, epoch: int) -> NDArray[np.float64]:
        """Run one epoch; `M` mean losses a record."""

    @abc.abstractmethod
    def states(self) -> Stacked:
        """Copies of all parameters and buffers, `M x ...`, on the CPU."""


class Engine(abc.ABC):
    """A way to train chunks. `needs_equal_counts`: members of a chunk must have equally many records."""

    needs_equal_counts = False

    def __init__(self, records: Records, architecture: Architecture, recipe: Recipe, runtime: Runtime) -> None:
        self.records, self.architecture, self.recipe, self.runtime = records, architecture, recipe, runtime

    @abc.abstractmethod
    def begin(self, chunk: Chunk) -> Job:
        """Start training a chunk."""


def fits_products(architecture: Architecture, records: Records, recipe: Recipe) -> bool:
    """Whether `ProductsEngine` can train it: a registered mlp without BatchNorm, records in memory, no augmentation."""
    plain = architecture.name == "mlp" and not architecture.options["batch_norm"]
    return plain and records.features is not None and recipe.augment == "none"


class ProductsEngine(Engine):
    """Multi-layer perceptrons by batched matrix products, with the backward pass written out.

    With a = input of a layer, W its weights and d the gradient at its output, all `M x ...`: momentum takes the
    gradient in the same product, V <- mu V + a^T d, and no graph is built. Inputs are normalised once.
    """

    def __init__(self, records: Records, architecture: Architecture, recipe: Recipe, runtime: Runtime) -> None:
        super().__init__(records, architecture, recipe, runtime)
        if not fits_products(architecture, records, recipe):
            raise ConfigError(
                "the engine `products` trains mlp without BatchNorm and without augmentation, on records in memory",
                where=architecture.name,
                hint="use engine=vmap",
            )

    def begin(self, chunk: Chunk) -> Job:
        """See `Engine.begin`."""
        return _Products(self, chunk)


class _Products(Job):
    def __init__(self, engine: ProductsEngine, chunk: Chunk) -> None:
        device = engine.runtime.torch_device
        self.chunk, self.recipe, self.device = chunk, engine.recipe, device
        self.keys = engine.records.keys
        features, self.labels = tensors_on(engine.records, device)
        model = engine.architecture.build(0).to(device)
        with torch.no_grad():
            self.inputs = cast(nn.Module, model.normalise)(to_input(features, False)).flatten(1).contiguous()
        names = [name.removesuffix(".weight") for name, p in model.named_parameters() if p.dim() == 2]
        state = chunk.stacked(device)
        self.rest = {k: v for k, v in state.items() if k.rpartition(".")[0] not in names}
        self.names = names
        dead = chunk.dead(device)
        # W is kept as M x in x out: then x W, a^T d and d W^T need no copies
        self.weights = [state[f"{n}.weight"].transpose(1, 2).contiguous() for n in names]
        self.shifts = [state[f"{n}.bias"].unsqueeze(1).contiguous() for n in names]
        self.dead = [dead[f"{n}.weight"].transpose(1, 2).contiguous() if f"{n}.weight" in dead else None for n in names]
        self.dead_shifts = [dead[f"{n}.bias"].unsqueeze(1) if f"{n}.bias" in dead else None for n in names]
        self.moments = [torch.zeros_like(w) for w in self.weights]
        self.shift_moments = [torch.zeros_like(b) for b in self.shifts]
        self._mask()

    def states(self) -> Stacked:
        found = {k: v.cpu().clone() for k, v in self.rest.items()}
        for name, weight, shift in zip(self.names, self.weights, self.shifts, strict=True):
            found[f"{name}.weight"] = weight.transpose(1, 2).contiguous().cpu()
            found[f"{name}.bias"] = shift.squeeze(1).clone().cpu()
        return found

    def _mask(self) -> None:
        for tensors, dead in ((self.weights, self.dead), (self.shifts, self.dead_shifts)):
            for tensor, gone in zip(tensors, dead, strict=True):
                if gone is not None:
                    tensor.masked_fill_(gone, 0.0)

    def epoch(self, epoch: int) -> NDArray[np.float64]:
        """See `Job.epoch`."""
        losses = torch.zeros(len(self.chunk), dtype=torch.float64)
        with torch.inference_mode(False), torch.no_grad():
            for step in steps(self.chunk, self.keys, self.recipe, epoch):
                losses[: step.live] += self._step(step).double().cpu()
        return cast("NDArray[np.float64]", losses.numpy() / np.asarray(self.chunk.counts))

    def _step(self, step: Step) -> torch.Tensor:
        live, width = step.live, step.index.shape[1]
        index = step.index.reshape(-1).to(self.device)
        labels = self.labels.index_select(0, index).view(live, width, 1)
        share = step.share if isinstance(step.share, float) else step.share.to(self.device).unsqueeze(2)
        layers = len(self.weights)
        weights, shifts = [w[:live] for w in self.weights], [b[:live] for b in self.shifts]
        inputs = [self.inputs.index_select(0, index).view(live, width, -1)]
        for layer in range(layers):
            inputs.append(torch.baddbmm(shifts[layer], inputs[-1], weights[layer]))
            if layer < layers - 1:
                inputs[-1].relu_()
        logs = torch.log_softmax(inputs.pop(), dim=2)
        picked = logs.gather(2, labels)
        if isinstance(share, float):
            loss = -picked.sum((1, 2))
        else:
            loss = -torch.where(share > 0, picked, 0.0).sum((1, 2))
        delta = logs.exp_()
        delta.scatter_add_(2, labels, torch.full_like(picked, -1.0))
        delta.mul_(share)
        for layer in reversed(range(layers)):
            below = inputs[layer]
            onward = None
            if layer:
                onward = torch.bmm(delta, weights[layer].transpose(1, 2))
                onward = torch.ops.aten.threshold_backward(onward, below, 0)
            gradient = below.transpose(1, 2), delta
            self._update(weights[layer], self.moments[layer][:live], gradient, step.rates)
            self._update(shifts[layer], self.shift_moments[layer][:live], delta.sum(1, keepdim=True), step.rates)
            if onward is not None:
                delta = onward
        self._mask()
        return loss

    def _update(
        self,
        weight: torch.Tensor,
        moment: torch.Tensor,
        gradient: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        rates: float | torch.Tensor,
    ) -> None:
        """SGD as in torch: g = gradient + decay w; v = mu v + g; w -= rate v, or rate (g + mu v) with Nesterov."""
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
    """Any network: `torch.func.functional_call` under `torch.vmap`, one backward pass for all models.

    BatchNorm buffers are stacked too. Members of a chunk need equally many records, so that no padding enters the batch
    statistics. Networks that draw random numbers in training (dropout) are refused: their streams would differ.
    """

    needs_equal_counts = True

    def begin(self, chunk: Chunk) -> Job:
        """See `Engine.begin`."""
        return _Vmap(self, chunk)


class _Vmap(Job):
    def __init__(self, engine: VmapEngine, chunk: Chunk) -> None:
        self.chunk, self.recipe, self.records, self.runtime = chunk, engine.recipe, engine.records, engine.runtime
        device = engine.runtime.torch_device
        self.model = engine.architecture.build(0).to(device)
        for name, module in self.model.named_modules():
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
                raise TrainingError(
                    "the network draws random numbers while training, which stacked models cannot share",
                    where=name,
                    hint="train these models one by one, or build the network with dropout=0",
                )
        state = chunk.stacked(device)
        # by plain names, as states and masks are; the model's own, with `module.` perhaps, are for the call
        self.own = {plain_name(name): name for name in self.model.state_dict()}
        names = set(plain_parameters(self.model))
        self.parameters = {k: v.requires_grad_() for k, v in state.items() if k in names}
        self.buffers = {k: v for k, v in state.items() if k not in names}
        self.dead = chunk.dead(device)
        self.optimiser = torch.optim.SGD(
            self.parameters.values(),
            lr=self.recipe.learning_rate,
            momentum=self.recipe.momentum,
            weight_decay=self.recipe.weight_decay,
            nesterov=self.recipe.nesterov and self.recipe.momentum > 0,
        )
        self._mask()

    def states(self) -> Stacked:
        return {k: v.detach().cpu().clone() for k, v in {**self.parameters, **self.buffers}.items()}

    @torch.no_grad()
    def _mask(self) -> None:
        for name, dead in self.dead.items():
            self.parameters[name].masked_fill_(dead, 0.0)

    def _losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        def one(parameters: Stacked, buffers: Stacked, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            state = {self.own[name]: tensor for name, tensor in {**parameters, **buffers}.items()}
            logits = torch.func.functional_call(self.model, state, (x,))
            return functional.cross_entropy(logits.float(), y)

        return torch.vmap(one)(self.parameters, self.buffers, x, y)

    def epoch(self, epoch: int) -> NDArray[np.float64]:
        """See `Job.epoch`."""
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
                group["lr"] = self.recipe.rate(epoch + number / total)
            batchnorm.set_training(self.model, frozen=x.shape[1] == 1)
            loss = self._losses(x, y)
            self.optimiser.zero_grad(set_to_none=True)
            loss.sum().backward()
            for name, dead in self.dead.items():
                slope = self.parameters[name].grad
                if slope is not None:  # the forward uses this layer
                    slope.masked_fill_(dead, 0.0)
            self.optimiser.step()
            self._mask()
            losses += loss.detach().double().cpu() * x.shape[1]
        return losses.numpy() / count
