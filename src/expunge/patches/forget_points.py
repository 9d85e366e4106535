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
from expunge.patches.bounds.solve import SolveOptions, soften, solve
from expunge.patches.model.gates import choose_local_slope
from expunge.patches.model.patch_set import GATES, LARGEST_SLOPE, SMALLEST_SLOPE, PatchSet
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.execute import compute_atom_values
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import Box, compute_patterns, pack, unpack

from .targets import REPRESENTATIVES, TARGETS, choose_representatives, choose_targets

MODES = ("points", "representatives")


@dataclasses.dataclass(frozen=True)
class PointSelection:
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
    solve: SolveOptions = dataclasses.field(default_factory=SolveOptions)

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
        self._check_unused_options()

    def _check_unused_options(self) -> None:
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
class ForgetPointsResult:
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
    selection: PointSelection | None = None,
    *,
    retain: tuple[Tensor, Tensor] | None = None,
    retrained: Callable[[Tensor], Tensor] | None = None,
    earlier: PatchSet | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ForgetPointsResult:
    """Patches that make a model stop answering the labels of points.

    Args:
        model: the base model.
        network: its traced list.
        points: inputs `P x ...`.
        labels: `P`.
        box: inputs the certificates speak of.
        selection: see `PointSelection`.
        retain: inputs and labels of retained records: for the locality of soft gates, the target `neighbour`, and to
            name retained records that share a pattern with a forgotten point.
        retrained: for the target `retrained`.
        earlier: patches of earlier requests; their patterns are not patched again.
        seed: of targets and clustering.
        progress: told of points solved.

    Raises:
        RequestError: no point can be patched as asked (all outside the box), what the selection needs is missing, or the
            patches of earlier requests are of another correction or behind another gate.
    """
    selection = selection or PointSelection()
    for name, held in () if earlier is None else (("correction", selection.solve.correction), ("gate", selection.gate)):
        if getattr(earlier, name) != held:
            raise RequestError(
                f"the patches of earlier requests have {name} {getattr(earlier, name)}, not {held}",
                where="patches",
                hint=f"one set has one correction and one gate: use {name}={getattr(earlier, name)}",
            )
    labels = labels.long()
    logits, bits = compute_patterns(network, points)
    status = np.full(len(points), "left", dtype="<U20")
    if earlier is not None and len(earlier) and selection.mode == "representatives":
        status[(_predict(PatchedModel(model, network, earlier), points) != labels).numpy()] = "shared"
    status[logits.argmax(1).numpy() != labels.numpy()] = "already wrong"
    status[~box.contains(points).numpy()] = "outside the box"
    if len(points) and (status == "outside the box").all():
        raise RequestError(
            "no point lies in the input box", where="box", hint="give the box that the features really have"
        )
    targets = choose_targets(
        selection.target, logits, labels, seed=seed, points=points, retain=retain, retrained=retrained
    )
    packed = [row.tobytes() for row in pack(bits)]
    known = {} if earlier is None else dict.fromkeys(earlier.keys(), -2)
    if selection.mode == "points":
        found = _patch_each_pattern(network, bits, labels, targets, box, selection, packed, known, status, progress)
    else:
        found = _patch_in_rounds(
            model, network, points, bits, labels, targets, box, selection, status, retain, earlier, seed
        )
    patches, proof, patch_of = found
    patch_of[[status[row] == "shared" and key in known and patch_of[row] == -1 for row, key in enumerate(packed)]] = -2
    patches = _set_gate(network, patches, selection, retain)
    return ForgetPointsResult(patches, proof, patch_of, status, _find_shared_retained(network, patches, retain))


def _patch_each_pattern(
    network: Network,
    bits: Tensor,
    labels: Tensor,
    targets: Tensor,
    box: Box,
    selection: PointSelection,
    packed: list[bytes],
    known: dict[bytes, int],
    status: NDArray[Any],
    progress: Callable[[int, int], None] | None,
) -> tuple[PatchSet, Proof, NDArray[np.int64]]:
    """One patch for every distinct pattern, up to the fraction and the budget."""
    open_ = np.flatnonzero(status == "left")
    wanted = int(np.ceil(selection.fraction * len(open_) - 1e-9))
    rows: list[int] = []
    patch_of = np.full(len(packed), -1, dtype=np.int64)
    for done, row in enumerate(open_):
        key = packed[row]
        if done >= wanted or (key not in known and selection.budget and len(rows) >= selection.budget):
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
    patches, proof = solve(network, bits[at], labels[at], targets[at], box, selection.solve, progress=progress)
    return patches, proof, patch_of


def _patch_in_rounds(
    model: nn.Module,
    network: Network,
    points: Tensor,
    bits: Tensor,
    labels: Tensor,
    targets: Tensor,
    box: Box,
    selection: PointSelection,
    status: NDArray[Any],
    retain: tuple[Tensor, Tensor] | None,
    earlier: PatchSet | None,
    seed: int,
) -> tuple[PatchSet, Proof, NDArray[np.int64]]:
    """Paper C's rounds: cluster what is left, patch each representative, open the gate at every member, look again.

    Corrected: every cluster's own representative and target are used, and the gate is not opened at members that the
    patch would only confirm (their label is the target); patches of one cluster share one gate (their maximum),
    whereas clusters add up. Only the representative's patch is solved for its own region.
    """
    patches = PatchSet.empty(selection.solve.correction, network.atoms, network.classes)
    known = set() if earlier is None else set(earlier.keys())
    slope = selection.slope
    proofs: list[Proof] = []
    patch_of = np.full(len(points), -1, dtype=np.int64)
    eligible = np.flatnonzero(status == "left")
    left = eligible
    for turn in range(selection.rounds):
        if not len(left) or len(eligible) - len(left) >= selection.fraction * len(eligible):
            break
        if selection.budget and len(patches) >= selection.budget:
            break
        wanted = int(np.ceil(selection.fraction * len(eligible) - 1e-9)) - (len(eligible) - len(left))
        heads, cluster = choose_representatives(
            selection.representatives, points[left], bits[left], selection.clusters, seed=seed + turn
        )
        for c, head in enumerate(heads):
            at = left[head]
            flips = labels[left].numpy() != int(targets[at])
            members = left[(cluster == c) & flips]
            members = np.concatenate([[at], members[members != at]])
            taken = known | set(patches.keys())
            keys = [row.tobytes() for row in pack(bits[members])]
            fresh = [m for i, m in enumerate(members) if keys[i] not in taken and keys[i] not in keys[:i]]
            fresh = fresh[: max(0, wanted)]
            if selection.budget:
                fresh = fresh[: max(0, selection.budget - len(patches))]
            if not fresh:
                continue
            rows = torch.as_tensor(np.asarray(fresh, dtype=np.int64))
            one, proof = solve(network, bits[rows[:1]], labels[rows[:1]], targets[rows[:1]], box, selection.solve)
            if selection.gate == "soft" and not selection.slope and not selection.locality:
                slope = max(slope, _choose_local_slope(network, pack(bits[rows]), selection, retain))
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
        shown = _set_gate(network, patches, dataclasses.replace(selection, slope=slope), retain)
        if earlier is not None:
            shown = join_behind_gate(earlier, shown)
        answers = _predict(PatchedModel(model, network, shown), points[left])
        status[left[(answers != labels[left]).numpy()]] = "patched"
        left = left[(answers == labels[left]).numpy()]
    empty = Proof.compress(torch.zeros(0, network.classes, network.atoms))
    return patches, Proof.join(proofs) if proofs else empty, patch_of


def _predict(patched: PatchedModel, points: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([patched(part).argmax(1) for part in points.split(512)])


def _set_gate(
    network: Network, patches: PatchSet, selection: PointSelection, retain: tuple[Tensor, Tensor] | None
) -> PatchSet:
    if selection.gate == "exact" or not len(patches):
        return patches.with_gate(selection.gate, selection.slope or 1.0)
    return soften(patches, selection.slope or _choose_local_slope(network, patches.pattern, selection, retain))


def _choose_local_slope(
    network: Network, pattern: NDArray[np.uint8], selection: PointSelection, retain: tuple[Tensor, Tensor] | None
) -> float:
    if retain is None:
        raise RequestError(
            "a slope chosen for locality needs the retained records", where="slope", hint="give a slope above 0"
        )
    stored = unpack(pattern, network.atoms).float()
    with torch.no_grad():
        batches = (compute_atom_values(network, x, network.tensors)[1] for x in retain[0].split(512))
        return choose_local_slope(network, batches, stored, open_fraction=selection.locality)


def join_behind_gate(earlier: PatchSet, later: PatchSet) -> PatchSet:
    """The patches of an earlier and of a later request as one set, behind the earlier set's gate.

    Raises:
        RequestError: they are of different corrections or networks, or disagree on a pattern.
    """
    joined = earlier.join(later.with_gate(earlier.gate, earlier.slope))
    return soften(joined, earlier.slope) if earlier.gate == "soft" else joined


def _find_shared_retained(
    network: Network, patches: PatchSet, retain: tuple[Tensor, Tensor] | None
) -> NDArray[np.int64]:
    if retain is None or not len(patches):
        return np.zeros(0, dtype=np.int64)
    keys = set(patches.keys())
    packed = pack(compute_patterns(network, retain[0])[1])
    return np.asarray([i for i, row in enumerate(packed) if row.tobytes() in keys], dtype=np.int64)
