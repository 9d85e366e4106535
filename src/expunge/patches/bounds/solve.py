"""From patterns and targets to patches with proofs: bounds, shifts, and the terms that executed float32 adds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from expunge.core.errors import ConfigError, RequestError
from expunge.patches.model.patch_set import KINDS, PatchSet
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import Box, affine_forms, pack
from expunge.patches.network.rounding import TINY32, UNIT32, UNIT64, Rounding, claimed_error, evaluation_steps, gamma

from .dual_ascent import Ascent, RowSystem, ascend
from .proof import LEAST, Proof, rounded

#: Shares of a row's largest multiplier below which entries may be dropped (2: all are); 31, for a search by halves.
_THIN = (*(0.02 * 35 ** (i / 29) for i in range(30)), 2.0)

CLAIMS = ("float32", "real")
ENGINES = ("ascent", "highs")


@dataclasses.dataclass(frozen=True)
class Solve:
    """How patches are computed.

    Attributes:
        kind: `constant`, `minimal` or `paper`.
        engine: `ascent` (batched) or `highs` (one linear program a row).
        claim: `float32` (holds for the executed numbers) or `real` (real arithmetic; for nets too deep for the former).
        epsilon: by how much logit k exceeds every other.
        floor: lower end of the paper's specification (-100 in its code), or None for no lower end.
        chunk: points handled together.
        ascent: of the engine `ascent`.
    """

    kind: str = "constant"
    engine: str = "ascent"
    claim: str = "float32"
    epsilon: float = 1e-3
    floor: float | None = -100.0
    chunk: int = 64
    ascent: Ascent = dataclasses.field(default_factory=Ascent)

    def __post_init__(self) -> None:
        for name, known in (("kind", KINDS), ("engine", ENGINES), ("claim", CLAIMS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"unknown {name} {getattr(self, name)!r}", hint=f"known: {', '.join(known)}")
        if not self.epsilon >= 0 or not math.isfinite(self.epsilon):
            raise ConfigError(f"epsilon is a number >= 0, not {self.epsilon}", where="epsilon")


@dataclasses.dataclass(frozen=True, eq=False)
class Bounds:
    """Upper bounds of the executed f_j - f_k over regions (row k: -inf), and the proof of them.

    Attributes:
        value: `P x K` float64, all error terms of execution and of this evaluation included.
        proof: the multipliers.
        rounding: the error terms.
    """

    value: Tensor
    proof: Proof
    rounding: Rounding


def bound(network: Network, bits: Tensor, targets: Tensor, box: Box, options: Solve, *, sign: int = 1) -> Bounds:
    """Bounds of (f_j - f_k), or of its negative for `sign` -1, for one chunk of points."""
    rounding = claimed_error(network, bits, box.low, box.high, options.claim)
    points = torch.arange(len(bits))
    if options.engine == "highs":
        multipliers = _highs(network, bits, targets, box, rounding.margins, sign)
    else:
        fast = RowSystem(network, bits, targets, box, rounding.margins, torch.float32, sign=sign)
        multipliers = ascend(fast, points, options=options.ascent)[0]
    sure = RowSystem(network, bits, targets, box, rounding.margins, torch.float64, sign=sign)

    def proved(kept: Tensor) -> Tensor:
        value = sure.evaluate(points, kept) + evaluation_error(network, kept, targets, rounding) + rounding.logits
        value = value + rounding.logits.gather(1, targets[:, None])
        value[points, targets] = -torch.inf
        return value

    proof = Proof.compress(multipliers)
    value = proved(proof.dense(network.atoms))
    if options.kind != "paper":  # the paper's patch uses every row's bound, the others only the largest
        proof = Proof.compress(multipliers, least=_thinned(multipliers, value, proved))
        value = proved(proof.dense(network.atoms))
    return Bounds(value, proof, rounding)


def _thinned(multipliers: Tensor, value: Tensor, proved: Callable[[Tensor], Tensor]) -> Tensor:
    """For rows that do not decide, below which share of their largest multiplier entries are dropped, `P x K`.

    The bound must stay below the point's largest. It need not grow with every step of the share, so the search by
    halves finds a good share, not always the best; each that it takes was tried.
    """
    most = value.max(1, keepdim=True).values
    shares, other = torch.tensor((LEAST, *_THIN), dtype=value.dtype), value < most
    taken = torch.zeros_like(value, dtype=torch.int64)
    step = len(_THIN) // 2 + 1
    while step:
        attempt = taken + step * other
        taken = torch.where((proved(rounded(multipliers, shares[attempt])) < most) & other, attempt, taken)
        step //= 2
    return shares[taken]


def evaluation_error(network: Network, multipliers: Tensor, targets: Tensor, rounding: Rounding) -> Tensor:
    """`P x K`: how far a float64 evaluation of D(lambda) can be off: 4 gamma_n times the sum of absolute terms.

    What underflow can cost is added, which that product does not see where a term itself underflows.
    """
    terms = torch.einsum("pjl,pl->pj", multipliers, rounding.margin_size + rounding.margins)
    terms = terms + rounding.logit_size + rounding.logit_size.gather(1, targets[:, None])
    return 4 * gamma(evaluation_steps(network), UNIT64) * terms + rounding.dust[:, None]


def _highs(network: Network, bits: Tensor, targets: Tensor, box: Box, slack: Tensor, sign: int) -> Tensor:
    from scipy.optimize import linprog

    multipliers = torch.zeros(len(bits), network.classes, network.atoms, dtype=torch.float64)
    limits = np.stack([box.low.flatten().numpy(), box.high.flatten().numpy()], axis=1)
    for p in range(len(bits)):
        forms = affine_forms(network, bits[p])
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
    """What adding `change` to a logit of at most `size` can lose in float32."""
    if claim == "real":
        return torch.zeros_like(size)
    return 2 * UNIT32 * (size + change) + TINY32


def solve(
    network: Network,
    bits: Tensor,
    labels: Tensor,
    targets: Tensor,
    box: Box,
    options: Solve | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[PatchSet, Proof]:
    """Patches for `P` regions (`P x L` bits) towards `targets`, with proofs; one patch a point, in the given order.

    Raises:
        RequestError: a target equals the point's label, the base network answers the label nowhere in the region (it
            is then no label of a point that is to be forgotten), or a linear program has no solution.
    """
    options = options or Solve()
    clash = (targets == labels).nonzero()[:, 0]
    if len(clash):
        raise RequestError(
            f"the target class {int(targets[clash[0]])} is the point's own class", where=f"point {int(clash[0])}",
            hint="a patch must move the prediction to another class",
        )  # fmt: skip
    proofs, shifts, alphas, betas = [], [], [], []
    for part in torch.arange(len(bits)).split(options.chunk) if len(bits) else ():
        found = bound(network, bits[part], targets[part], box, options)
        _need_answered(found, part, labels[part], targets[part])
        proofs.append(found.proof)
        if options.kind == "paper":
            alpha, beta = _paper(network, bits[part], targets[part], box, options, found)
            alphas.append(alpha)
            betas.append(beta)
            shifts.append(torch.zeros(len(part), dtype=torch.float32))
        else:
            shifts.append(_shift(found, targets[part], options))
        if progress is not None:
            progress(int(part[-1]) + 1, len(bits))
    if not all(bool(torch.isfinite(part).all()) for part in [*shifts, *alphas, *betas]):
        raise RequestError(
            "a patch would need a change that float32 does not hold", where="patch",
            hint="the network's weights, the box or epsilon are too large for the claim float32: try claim=real",
        )  # fmt: skip
    if not proofs:
        empty = PatchSet.empty(options.kind, network.atoms, network.classes)
        return empty, Proof.compress(torch.zeros(0, network.classes, network.atoms))
    wide = torch.zeros(len(bits), 0)
    patches = PatchSet(
        kind=options.kind,
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


def _need_answered(found: Bounds, part: Tensor, labels: Tensor, targets: Tensor) -> None:
    """Raise where f_label - f_target is below 0 in the whole region: then the base never answers the label there."""
    never = (found.value.gather(1, labels[:, None])[:, 0] < 0).nonzero()[:, 0]
    if len(never):
        row = int(never[0])
        raise RequestError(
            f"the network prefers the target class {int(targets[row])} to the label {int(labels[row])} in the whole "
            "region of the point",
            where=f"point {int(part[row])}",
            hint="a patch is made for a record that the network answers with its label",
        )


def soften(patches: PatchSet, slope: float) -> PatchSet:
    """The patches behind soft gates of slope n; shifts are raised by what a sum over gates can lose in float32."""
    if len(patches) and patches.kind != "paper":
        total = float(np.abs(patches.logit_shift()).sum())
        lost = 3 * gamma(len(patches) + 3, UNIT32) * (total + 1)
        raised = _up(torch.from_numpy(patches.shift.astype(np.float64)) + lost).numpy()
        patches = dataclasses.replace(patches, shift=raised)
    return patches.with_gate("soft", slope)


def _up(value: Tensor) -> Tensor:
    """float64 to the next float32 that is not smaller."""
    low = value.float()
    return torch.where(low.double() < value, torch.nextafter(low, torch.full_like(low, torch.inf)), low)


def _shift(found: Bounds, targets: Tensor, options: Solve) -> Tensor:
    """The smallest float32 shift that the proof supports: bound + epsilon + what the additions lose."""
    size = found.rounding.logit_size.max(1).values + found.rounding.logits.max(1).values
    need = (found.value.max(1).values + options.epsilon).clamp(min=0)
    lost = addition_error(size, need, options.claim) * (2 if options.kind == "minimal" else 1)
    return _up((need + lost * 1.01) * (1 + 1e-9))


def _paper(
    network: Network, bits: Tensor, targets: Tensor, box: Box, options: Solve, upper: Bounds
) -> tuple[Tensor, Tensor]:
    """alpha, beta `P x K` of the paper's fast variant: every f_j - f_k squeezed and shifted into [floor, -epsilon]."""
    ub = upper.value
    index = torch.arange(len(bits))
    alpha = torch.ones_like(ub)
    lb = torch.full_like(ub, -torch.inf)
    size = 2 * (upper.rounding.logit_size.max(1).values + upper.rounding.logits.max(1).values)[:, None]
    most = ub.abs().nan_to_num(posinf=0.0) + abs(options.floor or 0.0) + 1
    top = -options.epsilon - 8 * addition_error(size, most, options.claim) - 16 * UNIT64 * (most + options.epsilon)
    if options.floor is not None:
        lb = -bound(network, bits, targets, box, options, sign=-1).value
        room = top - options.floor
        if bool((room[torch.isfinite(room)] <= 0).any()):
            raise ConfigError("the floor of the specification lies above its top", where="floor")
        wide = ub - lb
        alpha = torch.where(wide > room, room / wide, alpha)
    alpha[index, targets] = 1.0
    alpha = alpha.float()
    high, low = alpha.double() * ub, alpha.double() * lb
    floor = -torch.inf if options.floor is None else options.floor
    beta = torch.where(high > top, top - high, torch.where(low < floor, torch.minimum(floor - low, top - high), 0.0))
    beta[index, targets] = 0.0
    return alpha, -_up(-beta)
