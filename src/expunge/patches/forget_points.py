"""Forgetting many points: one certified patch a point, or representatives with soft gates until enough is forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.core.errors import ConfigError, RequestError
from expunge.patches.bounds.proof import Proof
from expunge.patches.bounds.solve import Solve, soften, solve
from expunge.patches.model.gates import slope_for_locality
from expunge.patches.model.patch_set import GATES, LARGEST_SLOPE, SMALLEST_SLOPE, PatchSet
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.execute import atom_values
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import Box, pack, patterns, unpack

from .targets import REPRESENTATIVES, TARGETS, choose_representatives, choose_targets

MODES = ("points", "representatives")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How many points are forgotten.

    Attributes:
        mode: `points` (one patch a distinct pattern, exact gates by default) or `representatives` (paper C: patches of
            a few points whose soft gates reach the others of their cluster).
        target: see `choose_targets`.
        gate: `exact` or `soft`.
        slope: n of the soft gate; 0 chooses the smallest power of two that reaches the locality target.
        locality: the locality target: share of retained records that may have an open soft gate (0: none, those with
            exactly a stored pattern excepted).
        representatives: `k-means` or `k-medoids`.
        clusters: representatives a round (paper C: 2).
        rounds: at most so many rounds (paper C: 2).
        fraction: stop once this share of the points is forgotten.
        budget: at most so many patterns; 0 for no limit.
        solve: of the patches.
    """

    mode: str = "points"
    target: str = "runner-up"
    gate: str = "exact"
    slope: float = 0.0
    locality: float = 0.0
    representatives: str = "k-medoids"
    clusters: int = 2
    rounds: int = 10
    fraction: float = 1.0
    budget: int = 0
    solve: Solve = dataclasses.field(default_factory=Solve)

    def __post_init__(self) -> None:
        known = {"mode": MODES, "gate": GATES, "target": TARGETS, "representatives": REPRESENTATIVES}
        for name, names in known.items():
            if getattr(self, name) not in names:
                hint = f"known: {', '.join(names)}"
                raise ConfigError(f"unknown {name} {getattr(self, name)!r}", where=name, hint=hint)
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction lies in (0, 1], not {self.fraction}", where="fraction")
        if not 0 <= self.locality < 1:
            raise ConfigError(f"locality lies in [0, 1), not {self.locality}", where="locality")
        if min(self.clusters, self.rounds) < 1 or self.budget < 0 or self.slope < 0:
            raise ConfigError("clusters and rounds are at least 1, budget and slope at least 0", where="patches")
        if not self.slope <= LARGEST_SLOPE:
            raise ConfigError(f"a slope is at most {LARGEST_SLOPE:g}, not {self.slope:g}", where="slope")
        if 0 < self.slope < SMALLEST_SLOPE:
            hint = "0 chooses one"
            raise ConfigError(f"a slope is at least {SMALLEST_SLOPE:g}, not {self.slope:g}", where="slope", hint=hint)
        self._idle()

    def _idle(self) -> None:
        """Raise where an option was set that would do nothing."""
        idle: dict[str, tuple[str, ...]] = {}
        if self.gate == "exact":
            idle["exact gates"] = ("slope", "locality")
        if self.slope:
            idle["a given slope"] = ("locality",)
        if self.mode == "points":
            idle["mode `points`"] = ("representatives", "clusters", "rounds")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for where, names in idle.items():
            for name in names:
                if getattr(self, name) != defaults[name]:
                    raise ConfigError(f"{name} does nothing with {where}", where=name, hint="leave it out")


@dataclasses.dataclass(frozen=True, eq=False)
class Forgotten:
    """Patches for a forget set and what became of each point.

    Attributes:
        patches, proof: in the same order; the proof of a group's patches is that of its representative where it is
            the representative's own region, else empty of force (the checker then says so).
        patch_of: `P` int64, the patch whose pattern a point has, or -1; -2 where it is one of an earlier request.
        status: `P` texts: `patched`, `shared` (another point's patch covers it, or one of an earlier request),
            `already wrong`, `outside the box`, `left` (budget or fraction reached, or the search ended).
        shared_retained: numbers of retained records that have exactly a stored pattern.
    """

    patches: PatchSet
    proof: Proof
    patch_of: NDArray[np.int64]
    status: NDArray[np.str_]
    shared_retained: NDArray[np.int64]

    def counts(self) -> dict[str, int]:
        """Points by status."""
        names, counts = np.unique(self.status, return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))


def forget_points(
    model: nn.Module,
    network: Network,
    points: Tensor,
    labels: Tensor,
    box: Box,
    plan: Plan | None = None,
    *,
    retain: tuple[Tensor, Tensor] | None = None,
    retrained: Callable[[Tensor], Tensor] | None = None,
    already: PatchSet | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Forgotten:
    """Patches that make a model stop answering the labels of points.

    Args:
        model: the base model.
        network: its traced list.
        points: inputs `P x ...`.
        labels: `P`.
        box: inputs the certificates speak of.
        plan: see `Plan`.
        retain: inputs and labels of retained records: for the locality of soft gates, the target `neighbour`, and to
            name retained records that share a pattern with a forgotten point.
        retrained: for the target `retrained`.
        already: patches of earlier requests; their patterns are not patched again.
        seed: of targets and clustering.
        progress: told of points solved.

    Raises:
        RequestError: no point can be patched as asked (all outside the box), what the plan needs is missing, or the
            patches of earlier requests are of another kind or behind another gate.
    """
    plan = plan or Plan()
    for name, held in () if already is None else (("kind", plan.solve.kind), ("gate", plan.gate)):
        if getattr(already, name) != held:
            raise RequestError(
                f"the patches of earlier requests have {name} {getattr(already, name)}, not {held}",
                where="patches",
                hint=f"one set has one kind and one gate: use {name}={getattr(already, name)}",
            )
    labels = labels.long()
    logits, bits = patterns(network, points)
    status = np.full(len(points), "left", dtype="<U20")
    if already is not None and len(already) and plan.mode == "representatives":
        status[(_answers(PatchedModel(model, network, already), points) != labels).numpy()] = "shared"
    status[logits.argmax(1).numpy() != labels.numpy()] = "already wrong"
    status[~box.contains(points).numpy()] = "outside the box"
    if len(points) and (status == "outside the box").all():
        raise RequestError(
            "no point lies in the input box", where="box", hint="give the box that the features really have"
        )
    targets = choose_targets(plan.target, logits, labels, seed=seed, points=points, retain=retain, retrained=retrained)
    packed = [row.tobytes() for row in pack(bits)]
    known = {} if already is None else dict.fromkeys(already.keys(), -2)
    if plan.mode == "points":
        found = _each(network, bits, labels, targets, box, plan, packed, known, status, progress)
    else:
        found = _grow(model, network, points, bits, labels, targets, box, plan, status, retain, already, seed)
    patches, proof, patch_of = found
    patch_of[[status[row] == "shared" and key in known and patch_of[row] == -1 for row, key in enumerate(packed)]] = -2
    patches = _behind_gate(network, patches, plan, retain)
    return Forgotten(patches, proof, patch_of, status, _sharing(network, patches, retain))


def _each(
    network: Network,
    bits: Tensor,
    labels: Tensor,
    targets: Tensor,
    box: Box,
    plan: Plan,
    packed: list[bytes],
    known: dict[bytes, int],
    status: NDArray[Any],
    progress: Callable[[int, int], None] | None,
) -> tuple[PatchSet, Proof, NDArray[np.int64]]:
    """One patch for every distinct pattern, up to the fraction and the budget."""
    open_ = np.flatnonzero(status == "left")
    wanted = int(np.ceil(plan.fraction * len(open_) - 1e-9))
    rows: list[int] = []
    patch_of = np.full(len(packed), -1, dtype=np.int64)
    for done, row in enumerate(open_):
        key = packed[row]
        if done >= wanted or (key not in known and plan.budget and len(rows) >= plan.budget):
            continue
        if key in known:
            status[row] = "shared"
            patch_of[row] = known[key]
        else:
            known[key] = len(rows)
            patch_of[row] = len(rows)
            status[row] = "patched"
            rows.append(int(row))
    at = torch.tensor(rows, dtype=torch.int64)
    patches, proof = solve(network, bits[at], labels[at], targets[at], box, plan.solve, progress=progress)
    return patches, proof, patch_of


def _grow(
    model: nn.Module,
    network: Network,
    points: Tensor,
    bits: Tensor,
    labels: Tensor,
    targets: Tensor,
    box: Box,
    plan: Plan,
    status: NDArray[Any],
    retain: tuple[Tensor, Tensor] | None,
    already: PatchSet | None,
    seed: int,
) -> tuple[PatchSet, Proof, NDArray[np.int64]]:
    """Paper C's rounds: cluster what is left, patch each representative, open the gate at every member, look again.

    Corrected: every cluster's own representative and target are used, and the gate is not opened at members that the
    patch would only confirm (their label is the target); patches of one cluster share one gate (their maximum),
    whereas clusters add up. Only the representative's patch is solved for its own region.
    """
    patches = PatchSet.empty(plan.solve.kind, network.atoms, network.classes)
    earlier = set() if already is None else set(already.keys())
    slope = plan.slope
    proofs: list[Proof] = []
    patch_of = np.full(len(points), -1, dtype=np.int64)
    eligible = np.flatnonzero(status == "left")
    left = eligible
    for turn in range(plan.rounds):
        if not len(left) or len(eligible) - len(left) >= plan.fraction * len(eligible):
            break
        if plan.budget and len(patches) >= plan.budget:
            break
        wanted = int(np.ceil(plan.fraction * len(eligible) - 1e-9)) - (len(eligible) - len(left))
        heads, cluster = choose_representatives(
            plan.representatives, points[left], bits[left], plan.clusters, seed=seed + turn
        )
        for c, head in enumerate(heads):
            at = left[head]
            flips = labels[left].numpy() != int(targets[at])
            members = left[(cluster == c) & flips]
            members = np.concatenate([[at], members[members != at]])
            taken = earlier | set(patches.keys())
            keys = [row.tobytes() for row in pack(bits[members])]
            fresh = [m for i, m in enumerate(members) if keys[i] not in taken and keys[i] not in keys[:i]]
            fresh = fresh[: max(0, wanted)]
            if plan.budget:
                fresh = fresh[: max(0, plan.budget - len(patches))]
            if not fresh:
                continue
            rows = torch.as_tensor(np.asarray(fresh, dtype=np.int64))
            one, proof = solve(network, bits[rows[:1]], labels[rows[:1]], targets[rows[:1]], box, plan.solve)
            if plan.gate == "soft" and not plan.slope and not plan.locality:
                slope = max(slope, _local_slope(network, pack(bits[rows]), plan, retain))
            count = len(rows)
            wanted -= count
            repeated = one.take(np.zeros(count, dtype=np.int64))
            own: dict[str, Any] = {
                "pattern": pack(bits[rows]),
                "label": labels[rows].numpy(),
                "group": np.zeros(count, np.int32),
            }
            group = dataclasses.replace(repeated, **own)
            patch_of[fresh] = len(patches) + np.arange(count)
            patches = patches.join(group)
            proofs.append(proof.take(np.zeros(count, dtype=np.int64)))
        shown = _behind_gate(network, patches, dataclasses.replace(plan, slope=slope), retain)
        if already is not None:
            shown = join_behind_gate(already, shown)
        answers = _answers(PatchedModel(model, network, shown), points[left])
        status[left[(answers != labels[left]).numpy()]] = "patched"
        left = left[(answers == labels[left]).numpy()]
    empty = Proof.compress(torch.zeros(0, network.classes, network.atoms))
    return patches, Proof.join(proofs) if proofs else empty, patch_of


def _answers(patched: PatchedModel, points: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([patched(part).argmax(1) for part in points.split(512)])


def _behind_gate(network: Network, patches: PatchSet, plan: Plan, retain: tuple[Tensor, Tensor] | None) -> PatchSet:
    if plan.gate == "exact" or not len(patches):
        return patches.with_gate(plan.gate, plan.slope or 1.0)
    return soften(patches, plan.slope or _local_slope(network, patches.pattern, plan, retain))


def _local_slope(
    network: Network, pattern: NDArray[np.uint8], plan: Plan, retain: tuple[Tensor, Tensor] | None
) -> float:
    if retain is None:
        raise RequestError(
            "a slope chosen for locality needs the retained records", where="slope", hint="give a slope above 0"
        )
    stored = unpack(pattern, network.atoms).float()
    with torch.no_grad():
        batches = (atom_values(network, x, network.tensors)[1] for x in retain[0].split(512))
        return slope_for_locality(network, batches, stored, open_share=plan.locality)


def join_behind_gate(earlier: PatchSet, later: PatchSet) -> PatchSet:
    """The patches of an earlier and of a later request as one set, behind the earlier set's gate.

    Raises:
        RequestError: they are of different kinds or networks, or disagree on a pattern.
    """
    joined = earlier.join(later.with_gate(earlier.gate, earlier.slope))
    return soften(joined, earlier.slope) if earlier.gate == "soft" else joined


def _sharing(network: Network, patches: PatchSet, retain: tuple[Tensor, Tensor] | None) -> NDArray[np.int64]:
    if retain is None or not len(patches):
        return np.zeros(0, dtype=np.int64)
    keys = set(patches.keys())
    packed = pack(patterns(network, retain[0])[1])
    return np.asarray([i for i, row in enumerate(packed) if row.tobytes() in keys], dtype=np.int64)
