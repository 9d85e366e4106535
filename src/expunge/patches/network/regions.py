"""Linear regions of a traced network: activation patterns, explicit affine forms, membership, size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.core.errors import ConfigError, RequestError
from expunge.core.seeds import torch_generator
from expunge.core.show import repr_fields

from .execute import Region, cast, execute_pattern
from .operations import Network

#: Radii are computed while inputs times atoms, summed over points, stays below this (about a minute).
_RADIUS_WORK = 200_000_000

#: Largest size of explicit affine forms, in float64 numbers.
EXPLICIT_LIMIT = 40_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """The input box low <= u <= high, to which certificates are restricted.

    Attributes:
        low: lower bounds, shape of a record, float64.
        high: upper bounds, likewise.

    Raises:
        ConfigError: a bound is not finite, or low is above high.

    Example:
        >>> import torch
        >>> from expunge.patches import Box
        >>> Box.of((2,)).contains(torch.tensor([[0.5, 1.0], [0.5, 1.1]]))
        tensor([ True, False])
    """

    low: Tensor
    high: Tensor

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.low).all() and torch.isfinite(self.high).all()):
            raise ConfigError("the input box has bounds that are not finite", where="box")
        if not bool((self.low <= self.high).all()):
            raise ConfigError("the input box has a lower bound above its upper one", where="box")

    @classmethod
    def of(cls, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Box:
        """Return a box with the same bounds for every feature."""
        return cls(torch.full(shape, float(low), dtype=torch.float64), torch.full(shape, float(high)).double())

    def contains(self, x: Tensor) -> Tensor:
        """Return which of the inputs `B x ...` lie in the box, `B` bool."""
        inside = (x.double() >= self.low) & (x.double() <= self.high)
        return inside.flatten(1).all(1)


def pack(bits: Tensor) -> NDArray[np.uint8]:
    """Pack `B x L` bool into `B x ceil(L / 8)` bytes; bit i is bit i % 8 (lowest first) of byte i // 8."""
    return np.packbits(bits.cpu().numpy(), axis=1, bitorder="little")


def unpack(packed: NDArray[np.uint8], count: int) -> Tensor:
    """Unpack patterns of `count` bits, the inverse of `pack`."""
    return torch.from_numpy(np.unpackbits(packed, axis=1, count=count, bitorder="little").astype(bool))


def compute_patterns(network: Network, x: Tensor, batch: int = 256) -> tuple[Tensor, Tensor]:
    """Execute the network in float32 and return logits `B x K` and activation patterns `B x L` bool.

    A relu unit has one bit, 1 where its pre-activation is positive. A max-pool window has one bit per position, 1 at
    the first position of its maximum.

    Args:
        network: the traced operation list.
        x: inputs, `B x ...`.
        batch: inputs executed together.

    Example:
        >>> import torch
        >>> from expunge.patches import compute_patterns, trace
        >>> network = trace(torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU()), (2,))
        >>> logits, bits = compute_patterns(network, torch.tensor([[0.5, -1.0]]))
        >>> logits.tolist(), bits.tolist()
        ([[0.5, 0.0]], [[True, False]])
    """
    with torch.no_grad():
        parts = [execute_pattern(network, part.float(), network.tensors) for part in x.split(batch) if len(part)]
    if not parts:
        return torch.zeros(0, network.classes), torch.zeros(0, network.atoms, dtype=torch.bool)
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def matches_pattern(network: Network, x: Tensor, bits: Tensor) -> Tensor:
    """Return whether the executed activation pattern of each input `B x ...` equals the pattern `bits`, `B` bool.

    Args:
        network: the traced operation list.
        x: inputs, `B x ...`.
        bits: one pattern, `L` bool.

    Example:
        >>> import torch
        >>> from expunge.patches import compute_patterns, matches_pattern, trace
        >>> network = trace(torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU()), (2,))
        >>> bits = compute_patterns(network, torch.tensor([[0.5, -1.0]]))[1][0]
        >>> matches_pattern(network, torch.tensor([[2.0, -3.0], [2.0, 3.0]]), bits).tolist()
        [True, False]
    """
    return (compute_patterns(network, x)[1] == bits).all(1)


@dataclasses.dataclass(frozen=True, eq=False)
class AffineForms:
    """Logits f(u) = F u + g and margins q(u) = A u + c on one region, float64, with u flattened.

    Attributes:
        F: `K x d`, gradients of the logits.
        g: `K`, logits of the affine form at 0.
        A: `L x d`, gradients of the margins; the closed region is A u + c >= 0.
        c: `L`, margins of the affine form at 0.
    """

    F: Tensor
    g: Tensor
    A: Tensor
    c: Tensor

    __repr__ = repr_fields


def compute_affine_forms(network: Network, bits: Tensor) -> AffineForms:
    """Return the explicit affine forms of one region, computed from its pattern alone.

    The network with fixed choices is affine. Its constant part is its value at 0. Its linear part comes from forward
    mode (one column per input) or reverse mode (one row per output), whichever needs fewer passes.

    Args:
        network: the traced operation list.
        bits: the pattern, `L` bool.

    Raises:
        RequestError: the forms would take more than `EXPLICIT_LIMIT` numbers.

    Example:
        >>> import torch
        >>> from expunge.patches import compute_affine_forms, trace
        >>> network = trace(torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU()), (2,))
        >>> forms = compute_affine_forms(network, torch.tensor([True, False]))
        >>> forms.F.int().tolist(), forms.A.int().tolist()
        ([[1, 0], [0, 0]], [[1, 0], [0, -1]])
    """
    d = network.inputs
    if d * (network.atoms + network.classes) > EXPLICIT_LIMIT:
        raise RequestError(
            f"explicit affine forms of {network.atoms} margins over {d} inputs do not fit in memory",
            hint="use the matrix-free bounds",
        )
    g, c = _at(network, bits, torch.zeros(network.input_shape))
    rows = torch.cat(list(_columns(network, bits))).T if d <= len(c) else torch.cat(list(_rows(network, bits)))
    return AffineForms(rows[: network.classes], g, rows[network.classes :], c)


def _at(network: Network, bits: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits `K` and margins `L` of the affine form of the region at one input, float64."""
    region = Region(network, bits.reshape(1, -1), cast(network.tensors, torch.float64))
    with torch.no_grad():
        logits, margins = region(x.double().reshape(1, *network.input_shape))
    return logits[0], margins[0]


def _columns(network: Network, bits: Tensor, block: int = 128) -> Iterator[Tensor]:
    """Yield columns of the linear part, `n x (K + L)` at a time, by forward passes of unit vectors."""
    tensors, eye = cast(network.tensors, torch.float64), torch.eye(network.inputs, dtype=torch.float64)
    for part in eye.split(block):
        region = Region(network, bits.expand(len(part), -1), tensors)
        units = part.reshape(-1, *network.input_shape)
        found = torch.func.jvp(region, (torch.zeros_like(units),), (units,))[1]
        yield torch.cat(found, 1)


@torch.enable_grad()
def _rows(network: Network, bits: Tensor, block: int = 512) -> Iterator[Tensor]:
    """Yield rows of the linear part, `n x d` at a time, by independent reverse passes."""
    region = Region(network, bits.reshape(1, -1), cast(network.tensors, torch.float64))
    point = torch.zeros(1, *network.input_shape, dtype=torch.float64, requires_grad=True)
    outputs = torch.cat(region(point), 1)[0]
    for part in torch.eye(len(outputs), dtype=outputs.dtype).split(block):
        (rows,) = torch.autograd.grad(outputs, point, part, retain_graph=True, is_grads_batched=True)
        yield rows.reshape(len(part), -1)


def compute_margin_norms(network: Network, bits: Tensor) -> Tensor:
    """Return the Euclidean norms of the gradients of the margins on the region of one pattern `L`, `L` float64.

    The matrix of gradients is never stored as a whole, so its size is no limit. The time is that of min(d, L) passes
    through the network.
    """
    if network.inputs <= network.atoms:
        total = torch.zeros(network.classes + network.atoms, dtype=torch.float64)
        for columns in _columns(network, bits):
            total += columns.square().sum(0)
        return total[network.classes :].sqrt()
    return torch.cat([rows.norm(dim=1) for rows in _rows(network, bits)])[network.classes :]


@dataclasses.dataclass(frozen=True)
class RegionSize:
    """How far a region extends around a point.

    Attributes:
        radius: Euclidean distance to the nearest face of the region, the box not counted; None if it was not computed.
        flips: fraction of one-feature changes (low <-> high of the box) with the same pattern; None for inputs with
            many features.
        nearby: fraction of random inputs within `reach` of the point (per feature, inside the box) with the same
            pattern.
        reach: largest random change of a feature, in units of the input.
    """

    radius: float | None
    flips: float | None
    nearby: float
    reach: float

    @property
    def point_only(self) -> bool:
        """Whether every tested change left the region: then the certificate covers little but its point."""
        return self.nearby == 0 and (self.flips is None or self.flips == 0)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "point_only": self.point_only}


def measure_regions(network: Network, points: Tensor, box: Box, *, flips: int = 1024) -> list[RegionSize]:
    """Return the sizes of the regions of several inputs; see `measure_region`.

    Radii are computed for the first points only, as many as take about a minute.

    Args:
        network: the traced operation list.
        points: inputs, `P x ...`.
        box: the input box.
        flips: inputs with more features than this get no fraction of one-feature changes.

    Example:
        >>> import torch
        >>> from expunge.patches import Box, measure_regions, trace
        >>> network = trace(torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU()), (2,))
        >>> sizes = measure_regions(network, torch.tensor([[0.5, 0.5], [0.5, 0.25]]), Box.of((2,), -1.0, 1.0))
        >>> [size.radius for size in sizes]
        [0.5, 0.25]
    """
    some = _RADIUS_WORK // max(1, network.inputs * network.atoms)
    return [measure_region(network, x, box, flips=flips, radius=i < some) for i, x in enumerate(points)]


def measure_region(
    network: Network,
    x: Tensor,
    box: Box,
    *,
    reach: float = 0.01,
    samples: int = 100,
    seed: int = 0,
    flips: int = 4096,
    radius: bool = True,
) -> RegionSize:
    """Return the size of the region of one input; see `RegionSize`.

    Args:
        network: the traced operation list.
        x: the input, shape of a record.
        box: the input box.
        reach: largest random change of a feature.
        samples: number of random changes.
        seed: seeds the random changes.
        flips: inputs with more features than this get no fraction of one-feature changes.
        radius: whether to compute the radius, see `compute_margin_norms`.

    Example:
        >>> import torch
        >>> from expunge.patches import Box, measure_region, trace
        >>> network = trace(torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU()), (2,))
        >>> size = measure_region(network, torch.tensor([0.5, 0.25]), Box.of((2,), -1.0, 1.0))
        >>> size.radius, size.flips, size.nearby, size.point_only
        (0.25, 0.0, 1.0, False)
    """
    with torch.no_grad():
        bits = compute_patterns(network, x[None])[1][0]
        distance = None
        if radius:
            norms, margins = compute_margin_norms(network, bits), _at(network, bits, x)[1]
            nonzero = norms > 0
            distance = (
                float((margins[nonzero] / norms[nonzero]).clamp(min=0).min()) if bool(nonzero.any()) else float("inf")
            )
        noise = torch.rand(samples, *x.shape, generator=torch_generator(seed, "region size")) * 2 - 1
        near = (x + reach * noise).double()
        near = torch.minimum(torch.maximum(near, box.low), box.high).float()
        nearby = float(matches_pattern(network, near, bits).double().mean())
        flipped = None
        if network.inputs <= flips:
            flat = x.float().flatten()
            low, high = box.low.flatten().float(), box.high.flatten().float()
            other = torch.where((flat - low).abs() < (flat - high).abs(), high, low)
            changed = flat.repeat(len(flat), 1)
            changed.diagonal().copy_(other)
            flipped = float(matches_pattern(network, changed.reshape(-1, *x.shape), bits).double().mean())
    return RegionSize(distance, flipped, nearby, reach)
