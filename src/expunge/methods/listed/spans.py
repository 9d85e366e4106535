"""The inputs of convolution and linear layers as rows, the span of the retained ones, and projections away from it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn import functional

from expunge.core.hashing import plain_name
from expunge.core.mask import Mask
from expunge.data.batches import Batch
from expunge.training.curvature import evaluation_mode

_Conv = nn.modules.conv._ConvNd
#: Eigenvalues below this fraction of the largest count as 0: they are rounding of float64.
_ROUNDING = 1e-13


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The convolution and linear layers with a trainable weight, by the plain name of the weight.

    Transposed convolutions are left out: the rows of their inputs are not those of their weight.
    """
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        is_conv = isinstance(module, _Conv) and not getattr(module, "transposed", False)
        weight = getattr(module, "weight", None)
        if (is_conv or isinstance(module, nn.Linear)) and isinstance(weight, nn.Parameter) and weight.requires_grad:
            found[plain_name(f"{path}.weight" if path else "weight")] = module
    return found


def read_rows(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The inputs of a layer as `G x N x D` rows: its output is their product with the weight of each of G groups.

    Args:
        layer: a linear or convolution layer.
        x: its input.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    assert isinstance(layer, _Conv)
    spatial = len(layer.kernel_size)
    x = x if x.dim() == spatial + 2 else x[None]
    if isinstance(layer.padding, str) or any(layer.padding):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    for axis, (size, stride, dilation) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]  # a new last axis for the kernel
    # B x C x positions x kernel -> G x (B positions) x (C / G kernel)
    batch, channels = x.shape[:2]
    positions = x.shape[2 : 2 + spatial].numel()
    x = x.reshape(batch, layer.groups, channels // layer.groups, positions, -1)
    return x.permute(1, 0, 3, 2, 4).reshape(layer.groups, batch * positions, -1)


@contextlib.contextmanager
def _recording(layers: dict[str, nn.Module], products: dict[str, torch.Tensor]) -> Iterator[None]:
    """Add the products of the rows of every input to `products`, within the block."""

    def hook(name: str) -> torch.utils.hooks.RemovableHandle:
        def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = read_rows(layer, inputs[0].detach()).double()
            product = rows.transpose(1, 2) @ rows
            products[name] = products[name] + product if name in products else product

        return layers[name].register_forward_pre_hook(add)

    handles = [hook(name) for name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sum_products(model: nn.Module, batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
    """Return X^T X for the input rows X of each layer over all batches, `G x D x D` float64, in evaluation mode.

    Cost: one forward pass, and a product of D^2 for each row; memory: D^2 for each layer.
    """
    products: dict[str, torch.Tensor] = {}
    layers = find_layers(model)
    with evaluation_mode(model), torch.no_grad(), _recording(layers, products):
        for x, _ in batches:
            model(x)
    return products


def find_span(product: torch.Tensor, kept: float, *, of_singular_values: bool = False) -> torch.Tensor:
    """Return an orthonormal basis (`D x k`) of the leading directions of rows X, from X^T X.

    Args:
        product: `D x D` float64.
        kept: fraction of the sum of squared singular values of X that the directions have at least; 1: all directions.
        of_singular_values: the sum of the singular values themselves, and the largest number of directions that does
            not exceed the fraction, as the released code of PGU counts them.
    """
    values, vectors = torch.linalg.eigh(product)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    rank = int((values > _ROUNDING * len(values) * values[:1]).sum())
    if kept >= 1.0 or rank == 0:
        return vectors[:, :rank]
    sizes = values.sqrt() if of_singular_values else values
    fractions = sizes.cumsum(0) / sizes.sum()
    count = int((fractions <= kept).sum()) if of_singular_values else int((fractions < kept).sum()) + 1
    return vectors[:, : min(count, rank)]


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """I - M M^T for the rows of one weight; with a mask, for the kept weights of each row.

    Attributes:
        bases: of each group, `D x k`; or, with a mask, of each row of the weight (`kept entries x k`).
        kept: `rows x D` bool, or None without a mask.
    """

    bases: tuple[torch.Tensor, ...]
    kept: torch.Tensor | None = None

    @classmethod
    def make(
        cls, product: torch.Tensor, kept: torch.Tensor | None, fraction: float, *, of_singular_values: bool
    ) -> Projection:
        """Make the projection of a weight.

        With a mask, a row reads only the inputs that it keeps, so its directions are those of these inputs: pruning
        the projected gradient instead would change the outputs. Equal rows share their basis.

        Args:
            product: X^T X of its group, `G x D x D`.
            kept: the kept entries of the weight, or None.
            fraction: see `find_span`.
            of_singular_values: see `find_span`.
        """
        if kept is None:
            return cls(tuple(find_span(part, fraction, of_singular_values=of_singular_values) for part in product))
        rows = kept.reshape(len(kept), -1).to(product.device)
        size = len(rows) // len(product)
        known: dict[tuple[int, bytes], torch.Tensor] = {}
        bases = []
        for number, row in enumerate(rows):
            key = number // size, row.cpu().numpy().tobytes()
            if key not in known:
                index = row.nonzero()[:, 0]
                inner = product[key[0]][index][:, index]
                known[key] = find_span(inner, fraction, of_singular_values=of_singular_values) if len(index) else inner
            bases.append(known[key])
        return cls(tuple(bases), rows)

    def apply(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the projected gradient of the weight; 0 where it is pruned."""
        flat = gradient.double().reshape(len(gradient), -1)
        result = torch.zeros_like(flat)
        if self.kept is None:
            size = len(flat) // len(self.bases)
            for group, basis in enumerate(self.bases):
                part = flat[group * size : (group + 1) * size]
                result[group * size : (group + 1) * size] = _remove(part, basis)
        else:
            for row, (basis, kept) in enumerate(zip(self.bases, self.kept, strict=True)):
                result[row, kept] = _remove(flat[row, kept], basis)
        return result.reshape(gradient.shape).to(gradient.dtype)


def _remove(rows: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """rows - rows M M^T, twice: the second time removes the rounding of the first."""
    for _ in range(2):
        rows = rows - (rows @ basis) @ basis.T
    return rows


def make_projections(
    products: dict[str, torch.Tensor], mask: Mask | None, fraction: float, *, of_singular_values: bool = False
) -> dict[str, Projection]:
    """Make the projection of each weight; see `Projection.make`."""
    kept = {} if mask is None else mask.kept
    return {
        name: Projection.make(product, kept.get(name), fraction, of_singular_values=of_singular_values)
        for name, product in products.items()
    }
