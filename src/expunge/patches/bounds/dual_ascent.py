"""Batched dual ascent: multipliers that give upper bounds of f_j - f_k over many regions at once.

For a region {u in box : q_i(u) >= -e_i} and a row (point p, class j), weak duality gives for every lambda >= 0

    max over the region of f_j - f_k  <=  D(lambda) = max over the box of f_j - f_k + sum_i lambda_i (q_i + e_i)

D has a closed form (the maximum of an affine function over a box) and is convex in lambda. A subgradient of D is
q(u*) + e at the maximiser u* of the box. The minimisation runs in float32 on all rows together, by projected Adam with
a decreasing step [Kingma2015]_. Only the multipliers are used afterwards; their bounds are recomputed in float64.

.. [Kingma2015] Kingma, Ba: Adam, a method for stochastic optimization, ICLR 2015.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from expunge.patches.network.execute import Region, cast
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import Box

#: Largest explicit matrix of pre-activations: one for all points of a shallow network, or one per point of others.
_SHALLOW_LIMIT = 20_000_000
_POINT_LIMIT = 150_000

#: Size of the matrix of pre-activations up to which more and finer steps are cheap.
_SMALL = 20_000

InputMap = Callable[[Tensor], Tensor]
MultiplierMap = Callable[[Tensor], Tensor]


class RowSystem:
    """Objectives f_j - f_k and margins of regions as linear maps of the input, in one dtype.

    A row is a pair of a point and a class j.

    Args:
        network: the operation list.
        bits: `P x L` patterns.
        targets: `P` classes k.
        box: the input box.
        slack: `P x L`, the error e of each margin.
        dtype: float32 for the ascent, float64 for the evaluation of the bounds.
        sign: -1 bounds f_k - f_j instead.
    """

    def __init__(
        self,
        network: Network,
        bits: Tensor,
        targets: Tensor,
        box: Box,
        slack: Tensor,
        dtype: torch.dtype,
        *,
        sign: int = 1,
    ) -> None:
        self.network, self.bits, self.targets, self.sign = network, bits, targets, sign
        self.tensors = cast(network.tensors, dtype)
        self.low, self.high = box.low.reshape(1, -1).to(dtype), box.high.reshape(1, -1).to(dtype)
        self.slack, self.dtype = slack.to(dtype), dtype
        self.matrix: Tensor | None = None
        self.offset: Tensor | None = None
        self.point_maps: tuple[Tensor, Tensor] | None = None
        self.cached_objective: tuple[Tensor, Tensor, Tensor] | None = (
            None  # points and their objectives, cached for the next call
        )
        if network.shallow and network.only_relu and network.atoms * network.inputs <= _SHALLOW_LIMIT and network.atoms:
            self._make_shared_matrix()
        elif 0 < network.atoms * network.inputs <= _POINT_LIMIT and dtype == torch.float32:
            self._make_point_matrices()

    @torch.enable_grad()
    def _make_shared_matrix(self) -> None:
        ones = torch.ones(1, self.network.atoms, dtype=torch.bool)
        region = Region(self.network, ones, self.tensors)
        with torch.no_grad():
            self.offset = region(torch.zeros(1, *self.network.input_shape, dtype=self.dtype))[1][0]
        point = torch.zeros(1, *self.network.input_shape, dtype=self.dtype, requires_grad=True)
        margins = region(point)[1][0]
        eye = torch.eye(len(margins), dtype=self.dtype)
        blocks = []
        for start in range(0, len(eye), 512):
            (rows,) = torch.autograd.grad(
                margins, point, eye[start : start + 512], retain_graph=True, is_grads_batched=True
            )
            blocks.append(rows.reshape(len(rows), -1))
        self.matrix = torch.cat(blocks)

    @torch.enable_grad()
    def _make_point_matrices(self) -> None:
        """Compute the margins of every point as matrices `P x L x d` and offsets `P x L`."""
        count, atoms = self.bits.shape
        zero = torch.zeros(count, *self.network.input_shape, dtype=self.dtype, requires_grad=True)
        margins = Region(self.network, self.bits, self.tensors)(zero)[1]
        blocks = []
        for start in range(0, atoms, 64):
            stop = min(atoms, start + 64)
            cotangent = torch.zeros(stop - start, count, atoms, dtype=self.dtype)
            cotangent[torch.arange(stop - start), :, torch.arange(start, stop)] = 1
            (rows,) = torch.autograd.grad(margins, zero, cotangent, retain_graph=True, is_grads_batched=True)
            blocks.append(rows.reshape(stop - start, count, -1))
        self.point_maps = (torch.cat(blocks).transpose(0, 1).contiguous(), margins.detach())

    def linear_maps(self, points: Tensor) -> tuple[InputMap, MultiplierMap]:
        """Return two maps for rows of the given points: inputs `R x d` to margins, multipliers `R x L` to gradients.

        Without explicit matrices, the second map reuses the graph of the last call of the first. Both are linear, so
        the graph of any input is valid.
        """
        if self.matrix is not None and self.offset is not None:
            matrix, offset = self.matrix, self.offset
            signs = torch.where(self.bits[points], 1.0, -1.0).to(self.dtype)
            return (lambda x: torch.addmm(offset, x, matrix.T).mul_(signs)), (lambda lam: (lam * signs) @ matrix)
        if self.point_maps is not None:
            return self._make_point_maps(points, *self.point_maps)
        region = Region(self.network, self.bits[points], self.tensors)
        graph: list[Tensor] = []

        def push(x: Tensor) -> Tensor:
            with torch.enable_grad():
                at = x.reshape(-1, *self.network.input_shape).requires_grad_(True)
                graph[:] = [at, region(at)[1]]
            return graph[1].detach()

        def pull(lam: Tensor) -> Tensor:
            (gradient,) = torch.autograd.grad(graph[1], graph[0], lam)
            return gradient.flatten(1)

        return push, pull

    @staticmethod
    def _make_point_maps(points: Tensor, matrices: Tensor, offsets: Tensor) -> tuple[InputMap, MultiplierMap]:
        order = torch.argsort(points, stable=True)
        back = torch.argsort(order)
        numbers, sizes = torch.unique_consecutive(points[order], return_counts=True)
        listed, split = [matrices[int(p)] for p in numbers], sizes.tolist()
        shift = offsets[points]

        def push(x: Tensor) -> Tensor:
            parts = [part @ m.T for part, m in zip(x[order].split(split), listed, strict=True)]
            return torch.cat(parts)[back] + shift

        def pull(lam: Tensor) -> Tensor:
            parts = [part @ m for part, m in zip(lam[order].split(split), listed, strict=True)]
            return torch.cat(parts)[back]

        return push, pull

    def objective(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients `P' x K x d` and constants `P' x K` of f_j - f_k on the regions of the given points."""
        return self.combined(points, None)

    @torch.enable_grad()
    def combined(self, points: Tensor, multipliers: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return gradients and constants of (f_j - f_k) + sum_i lambda_ji q_i; multipliers `P' x K x L`, None for 0."""
        count, classes = len(points), self.network.classes
        region = Region(self.network, self.bits[points], self.tensors)
        zero = torch.zeros(count, *self.network.input_shape, dtype=self.dtype, requires_grad=True)
        logits, margins = region(zero, margins=multipliers is not None)
        cotangent = torch.eye(classes, dtype=self.dtype)[:, None, :].repeat(1, count, 1)
        cotangent[:, torch.arange(count), self.targets[points]] -= 1
        cotangent = cotangent * self.sign
        outputs, weights = [logits], [cotangent]
        value = torch.einsum("pk,jpk->pj", logits.detach(), cotangent)
        if multipliers is not None:
            outputs.append(margins)
            weights.append(multipliers.transpose(0, 1).contiguous())
            value = value + torch.einsum("pl,pjl->pj", margins.detach(), multipliers)
        gradients = torch.autograd.grad(outputs, zero, weights, is_grads_batched=True)[0]
        return gradients.reshape(classes, count, -1).transpose(0, 1), value

    def evaluate(self, points: Tensor, multipliers: Tensor) -> Tensor:
        """Return D(lambda), `P' x K`, of multipliers `P' x K x L`; column j = k has no meaning."""
        if self.matrix is None:
            slope, constant = self.combined(points, multipliers)
        else:
            if self.cached_objective is None or not torch.equal(self.cached_objective[0], points):
                self.cached_objective = (points, *self.combined(points, None))
            each = points.repeat_interleave(self.network.classes)
            linear, offset = self.pull_back(each, multipliers.flatten(0, 1))
            slope = self.cached_objective[1] + linear.view(len(points), self.network.classes, -1)
            constant = self.cached_objective[2] + offset.view(len(points), -1)
        slack = torch.einsum("pl,pjl->pj", self.slack[points], multipliers)
        return constant + slack + torch.maximum(slope * self.low, slope * self.high).sum(2)

    def maximiser(self, gradient: Tensor) -> Tensor:
        """Return the corner of the box that maximises gradient . u, `R x d`."""
        return torch.where(gradient > 0, self.high, self.low)

    def dual(self, points: Tensor, gradient: Tensor, constant: Tensor, multipliers: Tensor) -> Tensor:
        """Return D(lambda) of rows, `R`."""
        linear, offset = self.pull_back(points, multipliers)
        slope = gradient + linear
        best = torch.maximum(slope * self.low, slope * self.high).sum(1)
        return constant + offset + (multipliers * self.slack[points]).sum(1) + best

    @torch.enable_grad()
    def pull_back(self, points: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor]:
        """Return sum_i lambda_i q_i as gradient `R x d` and value at 0, `R`."""
        if self.matrix is not None and self.offset is not None:
            signed = torch.where(self.bits[points], multipliers, -multipliers)
            return signed @ self.matrix, signed @ self.offset
        if self.point_maps is not None:
            value = (self.point_maps[1][points] * multipliers).sum(1)
            return self.linear_maps(points)[1](multipliers), value
        region = Region(self.network, self.bits[points], self.tensors)
        zero = torch.zeros(len(points), *self.network.input_shape, dtype=self.dtype, requires_grad=True)
        value = (region(zero)[1] * multipliers).sum(1)
        (gradient,) = torch.autograd.grad(value.sum(), zero)
        return gradient.reshape(len(points), -1), value.detach()


@dataclasses.dataclass(frozen=True)
class AscentOptions:
    """Options of the dual ascent.

    Attributes:
        first: iterations for every row.
        refine: iterations of the first refinement of a row that determines the shift of a point. Each further
            refinement takes twice as many, with twice the step.
        step: initial step, in units of |objective gradient| / rms |margin gradient|.
        tolerance: a row has converged when the last third of a refinement lowers its bound by less than this fraction.
        rounds: maximum number of refinements of a row.
        chunk: rows processed together.
    """

    first: int = 8
    refine: int = 24
    step: float = 0.05
    tolerance: float = 0.001
    rounds: int = 4
    chunk: int = 1024


class _Rows:
    """Objectives and multipliers of the rows of one chunk."""

    def __init__(self, system: RowSystem, points: Tensor, where: Tensor) -> None:
        self.system, self.points = system, points[where[:, 0]]
        gradient, constant = system.objective(points)
        self.gradient, self.constant = gradient[where[:, 0], where[:, 1]], constant[where[:, 0], where[:, 1]]
        self.multipliers = torch.zeros(len(where), system.network.atoms, dtype=system.dtype)
        self.value = self.constant + max_over_box(system, self.gradient)

    def improve(self, rows: Tensor, iterations: int, step: float, low_step: float) -> Tensor:
        """Run projected Adam on some rows; values never get worse. Returns the decrease in the last third, `rows`."""
        system = self.system
        points, gradient, constant = self.points[rows], self.gradient[rows], self.constant[rows]
        start = self.multipliers[rows]
        middle, final = _adam(system, points, gradient, start.clone(), iterations, step, low_step)
        value = system.dual(points, gradient, constant, final)
        better = value < self.value[rows]
        self.multipliers[rows] = torch.where(better[:, None], final, start)
        gained = system.dual(points, gradient, constant, middle) - value
        gained = torch.where(better, gained, torch.zeros_like(gained))
        self.value[rows] = torch.minimum(value, self.value[rows])
        return gained.clamp(min=0)


def max_over_box(system: RowSystem, gradient: Tensor) -> Tensor:
    """Return max over the box of gradient . u, `R`."""
    return torch.maximum(gradient * system.low, gradient * system.high).sum(1)


def _scale(system: RowSystem, points: Tensor, gradient: Tensor) -> Tensor:
    """Return |objective gradient| / rms |margin gradient|, `R x 1`, the latter estimated by one Hutchinson probe."""
    if system.matrix is not None:
        rms = system.matrix.square().sum(1).mean().sqrt().expand(len(points))
    else:
        probe = torch.randint(0, 2, (1, system.network.atoms), generator=torch.Generator().manual_seed(0))
        signs = (probe * 2 - 1).to(system.dtype).expand(len(points), -1)
        rms = system.pull_back(points, signs)[0].norm(dim=1) / system.network.atoms**0.5
    return (gradient.norm(dim=1) / rms.clamp(min=1e-12))[:, None]


def _adam(
    system: RowSystem, points: Tensor, gradient: Tensor, lam: Tensor, iterations: int, step: float, low_step: float
) -> tuple[Tensor, Tensor]:
    slack = system.slack[points]
    scale = _scale(system, points, gradient) * step
    mean, square = torch.zeros_like(lam), torch.zeros_like(lam)
    push, pull = system.linear_maps(points)
    middle = lam
    slope = gradient + system.pull_back(points, lam)[0] if bool(lam.any()) else gradient
    for t in range(1, iterations + 1):
        found = push(system.maximiser(slope)) + slack
        mean.mul_(0.9).add_(found, alpha=0.1)
        square.mul_(0.99).addcmul_(found, found, value=0.01)
        rate = low_step + (1 - low_step) * (1 - (t - 1) / iterations)
        size = rate / (1 - 0.9**t) * (1 - 0.99**t) ** 0.5
        move = mean / square.sqrt().add_(1e-12)
        lam = lam.sub_(move.mul_(scale * size)).clamp_(min=0)
        if t == 2 * iterations // 3:
            middle = lam.clone()
        if t == iterations:
            break
        slope = gradient + pull(lam)
    return middle, lam


def ascend(system: RowSystem, points: Tensor, *, options: AscentOptions | None = None) -> tuple[Tensor, Tensor]:
    """Return multipliers `P' x K x L` and dual values `P' x K` (in the dtype of the system) for the given points.

    Row j = k is zero. Every row is first improved by a few iterations. Then the row with the largest bound of each
    point is refined, until the largest bound belongs to a converged row. The other rows do not affect the shift, so
    they need no better multipliers.
    """
    options = options or AscentOptions()
    network = system.network
    if network.atoms * network.inputs <= _SMALL:
        options = dataclasses.replace(options, tolerance=options.tolerance / 10, rounds=options.rounds + 2)
    count, classes = len(points), network.classes
    grid = torch.arange(classes).expand(count, classes)
    keep = grid != system.targets[points][:, None]
    where = keep.nonzero()
    rows = _Rows(system, points, where)
    everything = torch.arange(len(where))
    for part in everything.split(options.chunk):
        rows.improve(part, options.first, options.step, 0.3)
    level = torch.zeros(len(where), dtype=torch.int64)
    for _ in range(4 * options.rounds):
        table = torch.full((count, classes), -torch.inf, dtype=system.dtype)
        table[where[:, 0], where[:, 1]] = rows.value
        is_open = (where[:, 1] == table.argmax(1)[where[:, 0]]) & (level < options.rounds)
        if not bool(is_open.any()):
            break
        for number in level[is_open].unique().tolist():
            effort = 2**number
            for part in (is_open & (level == number)).nonzero()[:, 0].split(options.chunk):
                gained = rows.improve(part, options.refine * effort, options.step * 0.4 * effort, 0.03)
                converged = gained <= options.tolerance * rows.value[part].abs()
                level[part] = torch.where(converged, options.rounds, number + 1)
    multipliers = torch.zeros(count, classes, network.atoms, dtype=system.dtype)
    multipliers[where[:, 0], where[:, 1]] = rows.multipliers
    values = torch.full((count, classes), -torch.inf, dtype=system.dtype)
    values[where[:, 0], where[:, 1]] = rows.value
    return multipliers, values
