"""Computes patches with proofs from patterns and targets: bounds, rounding errors of float32, shifts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from expunge.core.errors import ConfigError, RequestError
from expunge.core.show import repr_fields
from expunge.patches.model.patch_set import CORRECTIONS, PatchSet
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import Box, compute_affine_forms, pack, unpack
from expunge.patches.network.rounding import (
    TINY32,
    UNIT32,
    UNIT64,
    RoundingBounds,
    bound_claimed_error,
    bound_execution_error,
    count_evaluation_steps,
    gamma,
)

from .dual_ascent import AscentOptions, RowSystem, ascend
from .proof import LEAST, Proof, round_multipliers

#: Candidate thresholds for dropping entries, as fractions of the largest of a row (2: drop all); 31 for bisection.
_THRESHOLDS = (*(0.02 * 35 ** (i / 29) for i in range(30)), 2.0)

CLAIMS = ("float32", "real")
SOLVERS = ("ascent", "highs")


@dataclasses.dataclass(frozen=True)
class SolveOptions:
    """Options of `solve`.

    Attributes:
        correction: how a patch changes the logits: `constant`, `minimal` or `li2025`, see `PatchSet`.
        solver: solver of the bounds: `ascent` (batched dual ascent) or `highs` (one linear program per row).
        claim: `float32` (about executed numbers) or `real` (about real arithmetic, for networks too deep for
            `float32`).
        epsilon: margin by which the logit of the target exceeds every other.
        floor: of the correction `li2025`, lower end of its specification (-100 in the released code), or None.
        chunk: points processed together.
        ascent: options of the solver `ascent`.
    """

    correction: str = "constant"
    solver: str = "ascent"
    claim: str = "float32"
    epsilon: float = 1e-3
    floor: float | None = -100.0
    chunk: int = 64
    ascent: AscentOptions = dataclasses.field(default_factory=AscentOptions)

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        for name, known in (("correction", CORRECTIONS), ("solver", SOLVERS), ("claim", CLAIMS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"unknown {name} {getattr(self, name)!r}", hint=f"known: {', '.join(known)}")
        if not self.epsilon >= 0 or not math.isfinite(self.epsilon):
            raise ConfigError(f"epsilon is a number >= 0, not {self.epsilon}", where="epsilon")


@dataclasses.dataclass(frozen=True, eq=False)
class Bounds:
    """Upper bounds of the executed f_j - f_k over regions, with their proof.

    Attributes:
        value: `P x K` float64, all error terms of the execution and of the evaluation included; -inf in column k.
        proof: the multipliers.
        rounding: the error bounds of the execution.
    """

    value: Tensor
    proof: Proof
    rounding: RoundingBounds

    __repr__ = repr_fields


def compute_bounds(
    network: Network, bits: Tensor, targets: Tensor, box: Box, options: SolveOptions, *, sign: int = 1
) -> Bounds:
    """Return bounds of f_j - f_k (of its negative for `sign` -1) for one chunk of points."""
    rounding = bound_claimed_error(network, bits, box.low, box.high, options.claim)
    points = torch.arange(len(bits))
    if options.solver == "highs":
        multipliers = _solve_highs(network, bits, targets, box, rounding.margins, sign)
    else:
        fast = RowSystem(network, bits, targets, box, rounding.margins, torch.float32, sign=sign)
        multipliers = ascend(fast, points, options=options.ascent)[0]
    double = RowSystem(network, bits, targets, box, rounding.margins, torch.float64, sign=sign)

    def evaluate(kept: Tensor) -> Tensor:
        value = double.evaluate(points, kept) + evaluation_error(network, kept, targets, rounding) + rounding.logits
        value = value + rounding.logits.gather(1, targets[:, None])
        value[points, targets] = -torch.inf
        return value

    proof = Proof.compress(multipliers)
    value = evaluate(proof.dense(network.atoms))
    if options.correction != "li2025":  # li2025 uses the bound of every row, the others only the largest
        proof = Proof.compress(multipliers, least=_choose_thresholds(multipliers, value, evaluate))
        value = evaluate(proof.dense(network.atoms))
    return Bounds(value, proof, rounding)


def _choose_thresholds(multipliers: Tensor, value: Tensor, evaluate: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a threshold per row, `P x K`, below which entries can be dropped without changing the shift of the point.

    Entries are dropped from rows that do not determine the shift, as long as their bounds stay below the largest of the
    point. The bound need not grow monotonically with the threshold, so bisection may miss the best threshold; every
    threshold that it accepts was tested.
    """
    most = value.max(1, keepdim=True).values
    thresholds, other = torch.tensor((LEAST, *_THRESHOLDS), dtype=value.dtype), value < most
    taken = torch.zeros_like(value, dtype=torch.int64)
    step = len(_THRESHOLDS) // 2 + 1
    while step:
        attempt = taken + step * other
        taken = torch.where(
            (evaluate(round_multipliers(multipliers, thresholds[attempt])) < most) & other, attempt, taken
        )
        step //= 2
    return thresholds[taken]


def evaluation_error(network: Network, multipliers: Tensor, targets: Tensor, rounding: RoundingBounds) -> Tensor:
    """Return the error bound of the float64 evaluation of D(lambda), `P x K`.

    It is 4 gamma_n times the sum of absolute terms, plus the effect of underflow, which the product does not cover.
    """
    terms = torch.einsum("pjl,pl->pj", multipliers, rounding.margin_size + rounding.margins)
    terms = terms + rounding.logit_size + rounding.logit_size.gather(1, targets[:, None])
    return 4 * gamma(count_evaluation_steps(network), UNIT64) * terms + rounding.underflow[:, None]


def _solve_highs(network: Network, bits: Tensor, targets: Tensor, box: Box, slack: Tensor, sign: int) -> Tensor:
    from scipy.optimize import linprog

    multipliers = torch.zeros(len(bits), network.classes, network.atoms, dtype=torch.float64)
    limits = np.stack([box.low.flatten().numpy(), box.high.flatten().numpy()], axis=1)
    for p in range(len(bits)):
        forms = compute_affine_forms(network, bits[p])
        k = int(targets[p])
        right = (forms.c + slack[p]).numpy()
        for j in range(network.classes):
            if j == k:
                continue
            objective = -sign * (forms.F[j] - forms.F[k]).numpy()
            answer = linprog(objective, A_ub=-forms.A.numpy(), b_ub=right, bounds=limits, method="highs")
            if answer.status != 0 or answer.ineqlin is None:
                raise RequestError(
                    f"the linear program of class {j} has no solution ({answer.message})",
                    where=f"point {p}",
                    hint="its region may not meet the input box",
                )
            multipliers[p, j] = torch.from_numpy(np.maximum(0, -answer.ineqlin.marginals))
    return multipliers


def addition_error(size: Tensor, change: Tensor | float, claim: str) -> Tensor:
    """Return the float32 rounding error of adding `change` to a logit of size at most `size`."""
    if claim == "real":
        return torch.zeros_like(size)
    return 2 * UNIT32 * (size + change) + TINY32


def solve(
    network: Network,
    bits: Tensor,
    labels: Tensor,
    targets: Tensor,
    box: Box,
    options: SolveOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[PatchSet, Proof]:
    """Compute one patch with a proof for each region, in the given order.

    The shift of a patch is max_j D_j + epsilon plus rounding errors, where D_j is a proved upper bound of f_j - f_k
    over the region; see docs/patches.md.

    Args:
        network: the operation list of the base network.
        bits: patterns, `P x L` bool, all different.
        labels: class that the base network predicts at each point, `P` int64.
        targets: class to predict instead, `P` int64.
        box: the input box to which the certificates are restricted.
        options: see `SolveOptions`.
        progress: called with the number of solved points and their total.

    Raises:
        RequestError: a target equals the label of its point, the base network predicts the label nowhere in the region,
            a shift is not finite in float32, or a linear program has no solution.
        ConfigError: the floor lies above -epsilon (correction `li2025`).

    Source:
        [Li2025], with the defects of its released code fixed.

    Example:
        >>> import torch
        >>> from expunge.patches import Box, PatchedModel, compute_patterns, solve, trace
        >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU())
        >>> network, point = trace(model, (2,)), torch.tensor([[0.75, 0.25]])
        >>> bits = compute_patterns(network, point)[1]
        >>> patches, proof = solve(network, bits, torch.tensor([0]), torch.tensor([1]), Box.of((2,)))
        >>> round(float(patches.shift[0]), 3)
        1.001
        >>> int(model(point).argmax(1)), int(PatchedModel(model, network, patches)(point).argmax(1))
        (0, 1)
    """
    options = options or SolveOptions()
    clash = (targets == labels).nonzero()[:, 0]
    if len(clash):
        raise RequestError(
            f"the target class {int(targets[clash[0]])} is the point's own class", where=f"point {int(clash[0])}",
            hint="a patch must move the prediction to another class",
        )  # fmt: skip
    proofs, shifts, alphas, betas = [], [], [], []
    for part in torch.arange(len(bits)).split(options.chunk) if len(bits) else ():
        found = compute_bounds(network, bits[part], targets[part], box, options)
        _require_predicted_label(found, part, labels[part], targets[part])
        proofs.append(found.proof)
        if options.correction == "li2025":
            alpha, beta = _solve_li2025(network, bits[part], targets[part], box, options, found)
            alphas.append(alpha)
            betas.append(beta)
            shifts.append(torch.zeros(len(part), dtype=torch.float32))
        else:
            shifts.append(_compute_shift(found, targets[part], options))
        if progress is not None:
            progress(int(part[-1]) + 1, len(bits))
    if not all(bool(torch.isfinite(part).all()) for part in [*shifts, *alphas, *betas]):
        raise RequestError(
            "a patch would need a change that is not finite in float32", where="patch",
            hint="the network's weights, the box or epsilon are too large for the claim float32: try claim=real",
        )  # fmt: skip
    if not proofs:
        empty = PatchSet.empty(options.correction, network.atoms, network.classes)
        return empty, Proof.compress(torch.zeros(0, network.classes, network.atoms))
    wide = torch.zeros(len(bits), 0)
    patches = PatchSet(
        correction=options.correction,
        atoms=network.atoms,
        classes=network.classes,
        pattern=pack(bits),
        target=targets.numpy(),
        label=labels.numpy(),
        shift=torch.cat(shifts).numpy(),
        group=np.arange(len(bits), dtype=np.int32),
        alpha=(torch.cat(alphas) if alphas else wide).numpy().astype(np.float32),
        beta=(torch.cat(betas) if betas else wide).numpy().astype(np.float32),
    )
    return patches, Proof.join(proofs)


def _require_predicted_label(found: Bounds, part: Tensor, labels: Tensor, targets: Tensor) -> None:
    """Raise if f_label - f_target is below 0 in the whole region: then the base never predicts the label there."""
    never = (found.value.gather(1, labels[:, None])[:, 0] < 0).nonzero()[:, 0]
    if len(never):
        row = int(never[0])
        raise RequestError(
            f"the network prefers the target class {int(targets[row])} to the label {int(labels[row])} in the whole "
            "region of the point",
            where=f"point {int(part[row])}",
            hint="only a record whose label the network predicts can be patched",
        )


def bound_logit_size(network: Network, patches: PatchSet, box: Box, *, chunk: int = 32) -> float:
    """Return a bound of the size of the base network's logits, and of every partial sum of them, on all regions.

    Args:
        network: the operation list of the base network.
        patches: the patches whose regions are meant.
        box: the input box.
        chunk: patches processed together.

    Example:
        >>> import torch
        >>> from expunge.patches import Box, bound_logit_size, compute_patterns, solve, trace
        >>> network, box = trace(torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU()), (2,)), Box.of((2,))
        >>> bits = compute_patterns(network, torch.tensor([[0.75, 0.25]]))[1]
        >>> patches, _ = solve(network, bits, torch.tensor([0]), torch.tensor([1]), box)
        >>> 1 <= bound_logit_size(network, patches, box) < 1.001
        True
    """
    most = 0.0
    for start in range(0, len(patches), chunk):
        bits = unpack(patches.pattern[start : start + chunk], network.atoms)
        rounding = bound_execution_error(network, bits, box.low, box.high)
        most = max(most, float((rounding.logit_size + rounding.logits).max()))
    return most


def soften(patches: PatchSet, slope: float, *, logit_size: float) -> PatchSet:
    """Return the patches with soft gates; shifts are raised by the float32 rounding error of the sum over gates.

    An execution may add the changes of n groups to a logit one after another, in any order. Each addition loses up to
    2^-24 of the sum so far, which is as large as the logit and all changes together.

    Args:
        patches: patches with exact or soft gates.
        slope: slope n of the soft gates.
        logit_size: size of the logits on the regions, see `bound_logit_size`.

    Example:
        >>> import torch
        >>> from expunge.patches import Box, bound_logit_size, compute_patterns, soften, solve, trace
        >>> network = trace(torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU()), (2,))
        >>> bits = compute_patterns(network, torch.tensor([[0.75, 0.25]]))[1]
        >>> box = Box.of((2,))
        >>> patches, _ = solve(network, bits, torch.tensor([0]), torch.tensor([1]), box)
        >>> soft = soften(patches, 8.0, logit_size=bound_logit_size(network, patches, box))
        >>> soft.gate, soft.slope, bool(soft.shift[0] > patches.shift[0])
        ('soft', 8.0, True)
    """
    if len(patches) and patches.correction != "li2025":
        total, count = float(np.abs(patches.compute_logit_shift()).sum()), len(patches)
        step = 2 * gamma(count + 3, UNIT32)
        spread = count * (patches.classes / 2 if patches.correction == "minimal" else 1)
        lost = 1.05 * step * (total + 1 + logit_size) / max(0.5, 1 - 1.05 * step * spread) + 0.5 * step * (total + 1)
        raised = _round_up(torch.from_numpy(patches.shift.astype(np.float64)) + lost).numpy()
        patches = dataclasses.replace(patches, shift=raised)
    return patches.with_gate("soft", slope)


def _round_up(value: Tensor) -> Tensor:
    """Round float64 up to float32."""
    low = value.float()
    return torch.where(low.double() < value, torch.nextafter(low, torch.full_like(low, torch.inf)), low)


def _compute_shift(found: Bounds, targets: Tensor, options: SolveOptions) -> Tensor:
    """Return the smallest proved float32 shift: bound + epsilon + rounding errors of the additions."""
    size = found.rounding.logit_size.max(1).values + found.rounding.logits.max(1).values
    need = (found.value.max(1).values + options.epsilon).clamp(min=0)
    lost = addition_error(size, need, options.claim) * (2 if options.correction == "minimal" else 1)
    return _round_up((need + lost * 1.01) * (1 + 1e-9))


def _solve_li2025(
    network: Network, bits: Tensor, targets: Tensor, box: Box, options: SolveOptions, upper: Bounds
) -> tuple[Tensor, Tensor]:
    """Return alpha, beta `P x K` of [Li2025], fast variant: f_j - f_k is scaled and moved into [floor, -epsilon]."""
    ub = upper.value
    index = torch.arange(len(bits))
    alpha = torch.ones_like(ub)
    lb = torch.full_like(ub, -torch.inf)
    size = 2 * (upper.rounding.logit_size.max(1).values + upper.rounding.logits.max(1).values)[:, None]
    most = ub.abs().nan_to_num(posinf=0.0) + abs(options.floor or 0.0) + 1
    top = -options.epsilon - 8 * addition_error(size, most, options.claim) - 16 * UNIT64 * (most + options.epsilon)
    if options.floor is not None:
        lb = -compute_bounds(network, bits, targets, box, options, sign=-1).value
        width = top - options.floor
        if bool((width[torch.isfinite(width)] <= 0).any()):
            raise ConfigError("the floor of the specification lies above its top", where="floor")
        wide = ub - lb
        alpha = torch.where(wide > width, width / wide, alpha)
    alpha[index, targets] = 1.0
    alpha = alpha.float()
    high, low = alpha.double() * ub, alpha.double() * lb
    floor = -torch.inf if options.floor is None else options.floor
    beta = torch.where(high > top, top - high, torch.where(low < floor, torch.minimum(floor - low, top - high), 0.0))
    beta[index, targets] = 0.0
    return alpha, -_round_up(-beta)
