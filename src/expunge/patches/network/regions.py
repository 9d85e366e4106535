"""Linear regions of a traced network: patterns as packed bits, explicit affine forms, membership, size."""

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

from .execute import Region, cast, execute_pattern
from .operations import Network

#: Inputs times atoms, summed over points, up to which radii are worth their time (a minute or so).
_RADII = 200_000_000

#: Numbers that an explicit set of margins may take (float64).
EXPLICIT_LIMIT = 40_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """The inputs a certificate speaks of: low <= u <= high, each of the shape of a record, float64.

    Raises:
        ConfigError: not finite, or low above high.
    """

    low: Tensor
    high: Tensor

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.low).all() and torch.isfinite(self.high).all()):
            raise ConfigError("the input box has bounds that are not finite", where="box")
        if not bool((self.low <= self.high).all()):
            raise ConfigError("the input box has a lower bound above its upper one", where="box")

    @classmethod
    def of(cls, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Box:
        """The same bounds for every input."""
        return cls(torch.full(shape, float(low), dtype=torch.float64), torch.full(shape, float(high)).double())

    def contains(self, x: Tensor) -> Tensor:
        """Which of `B x ...` inputs lie in the box: `B` bool."""
        inside = (x.double() >= self.low) & (x.double() <= self.high)
        return inside.flatten(1).all(1)


def pack(bits: Tensor) -> NDArray[np.uint8]:
    """`B x L` bool to `B x ceil(L / 8)` bytes; bit i of the pattern is bit i % 8 (lowest first) of byte i // 8."""
    return np.packbits(bits.cpu().numpy(), axis=1, bitorder="little")


def unpack(packed: NDArray[np.uint8], count: int) -> Tensor:
    """The inverse of `pack` for patterns of `count` bits."""
    return torch.from_numpy(np.unpackbits(packed, axis=1, count=count, bitorder="little").astype(bool))


def compute_patterns(network: Network, x: Tensor, batch: int = 256) -> tuple[Tensor, Tensor]:
    """Executed float32 logits `B x K` and activation bits `B x L` of inputs `B x ...`."""
    with torch.no_grad():
        parts = [execute_pattern(network, part.float(), network.tensors) for part in x.split(batch) if len(part)]
    if not parts:
        return torch.zeros(0, network.classes), torch.zeros(0, network.atoms, dtype=torch.bool)
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def matches_pattern(network: Network, x: Tensor, bits: Tensor) -> Tensor:
    """Whether the executed activation bits of each input equal the pattern `L`: `B` bool."""
    return (compute_patterns(network, x)[1] == bits).all(1)


@dataclasses.dataclass(frozen=True, eq=False)
class AffineForms:
    """f(u) = F u + g and margins q(u) = A u + c on one region, float64, u flattened.

    Attributes:
        F: `K x d`.
        g: `K`.
        A: `L x d`; the closed region is A u + c >= 0.
        c: `L`.
    """

    F: Tensor
    g: Tensor
    A: Tensor
    c: Tensor


def compute_affine_forms(network: Network, bits: Tensor) -> AffineForms:
    """The explicit affine forms of one region, from its pattern `L` alone (no gradients, no differences).

    The pattern's network is evaluated at 0; its linear part comes by forward mode, a column an input, or by reverse
    mode, a row an output, whichever are fewer.

    Raises:
        RequestError: the forms would take more than `EXPLICIT_LIMIT` numbers.
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
    """Logits `K` and margins `L` of the region's affine form at one input, float64."""
    region = Region(network, bits.reshape(1, -1), cast(network.tensors, torch.float64))
    with torch.no_grad():
        logits, margins = region(x.double().reshape(1, *network.input_shape))
    return logits[0], margins[0]


def _columns(network: Network, bits: Tensor, block: int = 128) -> Iterator[Tensor]:
    """Columns of the linear part, `n x (K + L)` at a time: the region's network pushes unit vectors forward."""
    tensors, eye = cast(network.tensors, torch.float64), torch.eye(network.inputs, dtype=torch.float64)
    for part in eye.split(block):
        region = Region(network, bits.expand(len(part), -1), tensors)
        units = part.reshape(-1, *network.input_shape)
        found = torch.func.jvp(region, (torch.zeros_like(units),), (units,))[1]
        yield torch.cat(found, 1)


@torch.enable_grad()
def _rows(network: Network, bits: Tensor, block: int = 512) -> Iterator[Tensor]:
    """Rows of the linear part, `n x d` at a time, by reverse passes that are independent of each other."""
    region = Region(network, bits.reshape(1, -1), cast(network.tensors, torch.float64))
    point = torch.zeros(1, *network.input_shape, dtype=torch.float64, requires_grad=True)
    outputs = torch.cat(region(point), 1)[0]
    for part in torch.eye(len(outputs), dtype=outputs.dtype).split(block):
        (rows,) = torch.autograd.grad(outputs, point, part, retain_graph=True, is_grads_batched=True)
        yield rows.reshape(len(part), -1)


def compute_margin_norms(network: Network, bits: Tensor) -> Tensor:
    """Euclidean norms of the margins' gradients on the region of one pattern `L`: `L` float64.

    The margins' matrix is never held as a whole, so its size does not matter; the time is that of as many passes
    through the network as there are inputs or, where these are fewer, atoms.
    """
    if network.inputs <= network.atoms:
        total = torch.zeros(network.classes + network.atoms, dtype=torch.float64)
        for columns in _columns(network, bits):
            total += columns.square().sum(0)
        return total[network.classes :].sqrt()
    return torch.cat([rows.norm(dim=1) for rows in _rows(network, bits)])[network.classes :]


@dataclasses.dataclass(frozen=True)
class RegionSize:
    """How far a region reaches from its point.

    Attributes:
        radius: distance to the nearest face, sup of r with the Euclidean ball of radius r around the point inside the
            region (box not counted); None where it was not asked for.
        flips: share of one-feature changes (low <-> high of a feature) with the same pattern; None for wide inputs.
        nearby: share of random inputs within `reach` of the point (per feature, inside the box) with the same pattern.
        reach: see `nearby`, in units of the input.
    """

    radius: float | None
    flips: float | None
    nearby: float
    reach: float

    @property
    def point_only(self) -> bool:
        """Whether no tried change of the input stayed inside: the certificate then covers little but its point."""
        return self.nearby == 0 and (self.flips is None or self.flips == 0)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "point_only": self.point_only}


def measure_regions(network: Network, points: Tensor, box: Box, *, flips: int = 1024) -> list[RegionSize]:
    """Sizes of the regions of some inputs `P x ...`; radii for as many of the first as are soon computed."""
    some = _RADII // max(1, network.inputs * network.atoms)
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
    """Size of the region of one input `x` (shape of a record); see `RegionSize`.

    Args:
        network: the traced list.
        x: the input.
        box: the input box.
        reach: of random changes, a feature.
        samples: random changes.
        seed: of the random changes.
        flips: inputs with more features than this get no share of flips.
        radius: whether to compute the radius, see `compute_margin_norms`.
    """
    with torch.no_grad():
        bits = compute_patterns(network, x[None])[1][0]
        distance = None
        if radius:
            norms, margins = compute_margin_norms(network, bits), _at(network, bits, x)[1]
            real = norms > 0
            distance = float((margins[real] / norms[real]).clamp(min=0).min()) if bool(real.any()) else float("inf")
        noise = torch.rand(samples, *x.shape, generator=torch_generator(seed, "region size")) * 2 - 1
        near = (x + reach * noise).double()
        near = torch.minimum(torch.maximum(near, box.low), box.high).float()
        nearby = float(matches_pattern(network, near, bits).double().mean())
        share = None
        if network.inputs <= flips:
            flat = x.float().flatten()
            low, high = box.low.flatten().float(), box.high.flatten().float()
            other = torch.where((flat - low).abs() < (flat - high).abs(), high, low)
            changed = flat.repeat(len(flat), 1)
            changed.diagonal().copy_(other)
            share = float(matches_pattern(network, changed.reshape(-1, *x.shape), bits).double().mean())
    return RegionSize(distance, share, nearby, reach)
