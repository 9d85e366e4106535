"""K-FAC: the Gauss-Newton matrix (here the same as the Fisher information) as Kronecker products, one for each layer.

For a linear layer or a convolution with patches a_l and derivatives g_l at the places l = 1..L of its output, the
block of the layer is A x G with

    A = E_x sum_l a_l a_l^T,        G = E_x sum_c (1 / L) sum_l g_lc g_lc^T,

where the columns c are those of the Fisher information (`diagonal_fisher`), and a_l has a 1 appended if the layer has a
bias [Martens2015]_, [Grosse2016]_. It equals the block of the Gauss-Newton matrix if a and g are independent and, for
L > 1, if the derivatives at different places are uncorrelated. Groups of a convolution are separate blocks. All other
parameters (BatchNorm, for example) have the diagonal of the Fisher information.

.. [Martens2015] Martens, Grosse: Optimizing neural networks with Kronecker-factored approximate curvature, ICML 2015.
.. [Grosse2016] Grosse, Martens: A Kronecker-factored approximate Fisher matrix for convolution layers, ICML 2016.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from expunge.core.errors import TrainingError
from expunge.core.mask import Mask
from expunge.core.show import repr_fields
from expunge.data.batches import Batch

from .fisher import make_columns
from .layer_rules import find_rule
from .plan import Plan, Use, differentiate, make_plan
from .products import evaluation_mode
from .records import AT_ONCE, squares_of_uses, sum_rest_squares
from .solvers import Solution, solve_by_products
from .vectors import Vector, check_finite, combine, norm, parameters_of, project


@dataclasses.dataclass(eq=False)
class KroneckerBlock:
    """The block of one layer.

    Attributes:
        weight: name of its weight.
        bias: name of its bias, or None.
        a: `groups x I x I`: second moments of the inputs, the last one constant 1 if there is a bias.
        g: `groups x O x O`: second moments of the derivatives by the outputs.
    """

    weight: str
    bias: str | None
    a: torch.Tensor
    g: torch.Tensor

    __repr__ = repr_fields

    def join(self, vector: Vector) -> torch.Tensor:
        """Return the entries of a vector that belong to the block, as `groups x O x I`."""
        rows = vector[self.weight].reshape(self.g.shape[0], self.g.shape[1], -1)
        return rows if self.bias is None else torch.cat([rows, vector[self.bias].view(*rows.shape[:2], 1)], 2)

    def split(self, rows: torch.Tensor, like: Vector) -> Vector:
        """The inverse of `join`."""
        if self.bias is None:
            return {self.weight: rows.reshape(like[self.weight].shape)}
        weight, bias = rows[..., :-1], rows[..., -1]
        return {self.weight: weight.reshape(like[self.weight].shape), self.bias: bias.reshape(like[self.bias].shape)}


@dataclasses.dataclass(frozen=True, eq=False)
class KroneckerFactors:
    """The matrix F of `kronecker_factors`: one Kronecker product for each layer, and a diagonal.

    Attributes:
        blocks: the layers.
        diagonal: the other parameters.
        mask: restricts F to the kept weights, or None.
    """

    blocks: tuple[KroneckerBlock, ...]
    diagonal: Vector
    mask: Mask | None

    __repr__ = repr_fields

    def multiply(self, vector: Vector, damping: float = 0.0) -> Vector:
        """Return (P F P + damping I) v, where P projects onto the kept weights. No pass over records."""
        v = project(vector, self.mask)
        found = {name: entries * v[name] for name, entries in self.diagonal.items()}
        for block in self.blocks:
            found |= block.split(block.g @ block.join(v) @ block.a, v)
        return combine({name: project(found, self.mask)[name] for name in v}, damping, v)

    def solve(self, b: Vector, *, damping: float, tolerance: float = 1e-6, steps: int = 500) -> Solution:
        """Solve (P F P + damping I) x = b on the kept weights.

        Without a mask by the eigenvalues of the factors: (A x G + damping I)^-1 is exact. The masked block of a
        Kronecker product is not a Kronecker product, so a mask needs conjugate gradients, with that inverse as the
        preconditioner; they multiply with the factors only. Cost: no pass over records; the eigenvalues of each factor.

        Args:
            b: the right side.
            damping: positive, unless F has no eigenvalue 0.
            tolerance: of the relative residual, with a mask.
            steps: largest number of products with the factors, with a mask.
        """
        b = project(b, self.mask)
        values = [(block, torch.linalg.eigh(block.a), torch.linalg.eigh(block.g)) for block in self.blocks]

        def invert(v: Vector) -> Vector:
            found = {name: v[name] / (entries + damping) for name, entries in self.diagonal.items()}
            for block, (a_values, a_vectors), (g_values, g_vectors) in values:
                rows = g_vectors.mT @ block.join(v) @ a_vectors
                rows = rows / (g_values.clamp_min(0)[:, :, None] * a_values.clamp_min(0)[:, None] + damping)
                found |= block.split(g_vectors @ rows @ a_vectors.mT, v)
            return {name: found[name] for name in v}

        if self.mask is None:
            x = invert(b)
            size = norm(b)
            return Solution(x, norm(combine(b, -1.0, self.multiply(x, damping))) / size if size else 0.0, 0)
        return solve_by_products(
            lambda v: self.multiply(v, damping), b, steps=steps, tolerance=tolerance,
            precondition=lambda v: project(invert(v), self.mask),
        )  # fmt: skip


def kronecker_factors(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    kind: str = "exact",
    mask: Mask | None = None,
    names: Sequence[str] | None = None,
    samples: int = 1,
    seed: int = 0,
) -> KroneckerFactors:
    """Compute the Kronecker factors of the Fisher information, in evaluation mode.

    Cost and memory: as `diagonal_fisher`, and the factors: the squares of the sizes of each layer.

    Args:
        model: the network; it does not change.
        batches: pairs of inputs `B x ...` and labels `B`.
        kind: a key of `FISHERS`. `exact` gives the Gauss-Newton matrix.
        mask: restricts the matrix to the kept weights.
        names: parameters, or None for all.
        samples: labels that are drawn for each record, for `sampled`.
        seed: of the draws.

    Raises:
        ConfigError, TrainingError: as `diagonal_fisher`.

    >>> import torch
    >>> from torch import nn
    >>> from expunge.training.curvature import kronecker_factors
    >>> factors = kronecker_factors(nn.Linear(4, 3), [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))])
    >>> factors.blocks[0].a.shape, factors.blocks[0].g.shape
    (torch.Size([1, 5, 5]), torch.Size([1, 3, 3]))
    """
    parameters = parameters_of(model, names)
    columns, count = make_columns(kind, samples, seed)
    plan: Plan | None = None
    blocks: dict[str, KroneckerBlock] = {}
    diagonal: Vector = {}
    records = 0
    with evaluation_mode(model):
        for x, y in batches:
            if len(x) == 0:
                continue
            plan = make_plan(model, x, parameters) if plan is None else plan
            step = max(1, AT_ONCE // max(count or plan.classes - 1, 1))
            for part, labels in zip(x.split(step), y.split(step), strict=True):
                found = sum_rest_squares(plan, part, labels, columns)
                if plan.ruled:
                    uses, slopes = differentiate(plan, part, labels, columns)
                    found |= _add_factors(plan, uses, slopes, blocks)
                for name, entries in found.items():
                    diagonal[name] = diagonal[name] + entries if name in diagonal else entries
            records += len(x)
    if records == 0:
        raise TrainingError("there are no records to compute Kronecker factors on")
    for block in blocks.values():
        block.a, block.g = block.a / records, block.g / records
    diagonal = {name: entries / records for name, entries in diagonal.items()}
    for block in blocks.values():
        check_finite({block.weight: block.a}, "the Kronecker factor A")
        check_finite({block.weight: block.g}, "the Kronecker factor G")
    check_finite(diagonal, "the Fisher information")
    return KroneckerFactors(tuple(blocks.values()), project(diagonal, mask), mask)


def _add_factors(plan: Plan, uses: list[Use], slopes: list[torch.Tensor], blocks: dict[str, KroneckerBlock]) -> Vector:
    """Add the factors of the layers that have some; return the squares of the others, summed over records."""
    calls = [name for use in uses for name in plan.ruled[use.layer].values()]
    others = []
    for use, d in zip(uses, slopes, strict=True):
        names, rule = plan.ruled[use.layer], find_rule(use.layer, use.a)
        attributes = {a for a, p in use.layer.named_parameters(recurse=False) if p is not None}
        alone = all(calls.count(name) == 1 for name in names.values()) and set(names) == attributes
        factors = rule.factors(use.layer, use.a, d) if rule is not None and alone else None
        if factors is None:
            others.append((use, d))
            continue
        weight = names["weight"]
        if weight in blocks:
            blocks[weight].a += factors[0]
            blocks[weight].g += factors[1]
        else:
            blocks[weight] = KroneckerBlock(weight, names.get("bias"), *factors)
    return squares_of_uses(plan, [use for use, _ in others], [d for _, d in others])
