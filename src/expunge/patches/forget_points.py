"""Patches for many points: one certified patch per pattern, or patches of representatives with soft gates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.core.errors import ConfigError, RequestError
from expunge.core.show import repr_fields
from expunge.patches.bounds.proof import Proof
from expunge.patches.bounds.solve import SolveOptions, bound_logit_size, soften, solve
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
    """Which points are patched, and how.

    Attributes:
        mode: `points` (one patch per distinct pattern) or `representatives` ([Li2025]: patches of a few points whose
            soft gates also open for the other points of their cluster).
        target: rule for the target classes, see `choose_targets`.
        gate: `exact` or `soft`.
        slope: slope n of soft gates; 0 chooses the smallest power of two that satisfies `locality`.
        locality: largest fraction of retained records that may have an open soft gate; records with exactly a stored
            pattern do not count.
        representatives: `k-means` or `k-medoids`.
        clusters: number of representatives per round ([Li2025]: 2).
        rounds: maximum number of rounds ([Li2025]: 2).
        fraction: stop when this fraction of the points is forgotten.
        budget: maximum number of patterns; 0 for no limit.
        solve: how the patches are computed.
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

    __repr__ = repr_fields

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
        """Raise if an option is set that has no effect."""
        unused: dict[str, tuple[str, ...]] = {}
        if self.gate == "exact":
            unused["exact gates"] = ("slope", "locality")
        if self.slope:
            unused["a given slope"] = ("locality",)
        if self.mode == "points":
            unused["mode `points`"] = ("representatives", "clusters", "rounds")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for where, names in unused.items():
            for name in names:
                if getattr(self, name) != defaults[name]:
                    raise ConfigError(f"{name} has no effect with {where}", where=name, hint="leave it out")


@dataclasses.dataclass(frozen=True, eq=False)
class ForgetPointsResult:
    """Patches for a forget set, and the status of each point.

    Attributes:
        patches, proof: the patches and their proofs, in the same order. In the mode `representatives` all patches of a
            group have the proof of the representative, which proves only its own region.
        patch_of: `P` int64, the patch with the pattern of the point; -1: none, -2: a patch of an earlier request.
        status: `P` strings: `patched`, `shared` (covered by the patch of another point or of an earlier request),
            `already wrong` (the model does not predict the label), `outside the box`, `left` (not forgotten, because
            the budget, the fraction or the number of rounds was reached).
        shared_retained: indices of retained records that have exactly a stored pattern.
    """

    patches: PatchSet
    proof: Proof
    patch_of: NDArray[np.int64]
    status: NDArray[np.str_]
    shared_retained: NDArray[np.int64]

    __repr__ = repr_fields

    def counts(self) -> dict[str, int]:
        """Return the number of points per status."""
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
    """Compute patches after which a model no longer predicts the labels of the given points.

    Args:
        model: the base model.
        network: its traced operation list.
        points: inputs `P x ...`.
        labels: classes to forget, `P`.
        box: the input box to which the certificates are restricted.
        selection: see `PointSelection`.
        retain: inputs and labels of retained records, for the locality of soft gates, the target `neighbour`, and the
            count of retained records with the pattern of a forgotten point.
        retrained: maps inputs to logits of a retrained model, for the target `retrained`.
        earlier: patches of earlier requests; their patterns are not patched again.
        seed: seeds targets and clustering.
        progress: called with the number of solved points and their total.

    Raises:
        RequestError: all points lie outside the box, an argument that the selection needs is missing, or the patches of
            earlier requests have another correction or gate.

    Source:
        [Li2025], with the defects of its released code fixed; docs/patches.md.

    Example:
        >>> import torch
        >>> from expunge.patches import Box, PatchedModel, forget_points, trace
        >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU())
        >>> points, labels = torch.tensor([[0.75, 0.25], [0.5, -0.5], [0.25, 0.75]]), torch.tensor([0, 0, 0])
        >>> network = trace(model, (2,))
        >>> found = forget_points(model, network, points, labels, Box.of((2,), -1.0, 1.0))
        >>> found.status.tolist()
        ['patched', 'patched', 'already wrong']
        >>> PatchedModel(model, network, found.patches)(points).argmax(1).tolist()
        [1, 1, 1]
    """
    selection = selection or PointSelection()
    settings = (("correction", selection.solve.correction), ("gate", selection.gate))
    for name, expected in () if earlier is None else settings:
        if getattr(earlier, name) != expected:
            raise RequestError(
                f"the patches of earlier requests have {name} {getattr(earlier, name)}, not {expected}",
                where="patches",
                hint=f"a patch set has one correction and one gate: use {name}={getattr(earlier, name)}",
            )
    labels = labels.long()
    logits, bits = compute_patterns(network, points)
    status = np.full(len(points), "left", dtype="<U20")
    if earlier is not None and len(earlier) and selection.mode == "representatives":
        status[(_predict(PatchedModel(model, network, earlier), points) != labels).numpy()] = "shared"
    status[logits.argmax(1).numpy() != labels.numpy()] = "already wrong"
    status[~box.contains(points).numpy()] = "outside the box"
    if len(points) and (status == "outside the box").all():
        raise RequestError("no point lies in the input box", where="box", hint="give the actual range of the features")
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
    patches = _set_gate(network, patches, box, selection, retain)
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
    """Compute one patch per distinct pattern, up to the fraction and the budget."""
    candidates = np.flatnonzero(status == "left")
    wanted = int(np.ceil(selection.fraction * len(candidates) - 1e-9))
    rows: list[int] = []
    patch_of = np.full(len(packed), -1, dtype=np.int64)
    for done, row in enumerate(candidates):
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
    """Run rounds as in [Li2025]: cluster the remaining points, patch each representative, open its gate at its members.

    Corrections to the released code: every cluster uses its own representative and target; the gate is not opened at
    members whose label is the target; patches of one cluster form a group, of which only the largest gate acts. Only
    the patch of the representative is solved for its own region.
    """
    patches = PatchSet.empty(selection.solve.correction, network.atoms, network.classes)
    known = set() if earlier is None else set(earlier.keys())
    slope = selection.slope
    proofs: list[Proof] = []
    patch_of = np.full(len(points), -1, dtype=np.int64)
    eligible = np.flatnonzero(status == "left")
    left = eligible
    for round_number in range(selection.rounds):
        if not len(left) or len(eligible) - len(left) >= selection.fraction * len(eligible):
            break
        if selection.budget and len(patches) >= selection.budget:
            break
        wanted = int(np.ceil(selection.fraction * len(eligible) - 1e-9)) - (len(eligible) - len(left))
        representatives, cluster = choose_representatives(
            selection.representatives, points[left], bits[left], selection.clusters, seed=seed + round_number
        )
        for c, head in enumerate(representatives):
            at = left[head]
            can_flip = labels[left].numpy() != int(targets[at])
            members = left[(cluster == c) & can_flip]
            members = np.concatenate([[at], members[members != at]])
            taken = known | set(patches.keys())
            keys = [row.tobytes() for row in pack(bits[members])]
            new = [m for i, m in enumerate(members) if keys[i] not in taken and keys[i] not in keys[:i]]
            new = new[: max(0, wanted)]
            if selection.budget:
                new = new[: max(0, selection.budget - len(patches))]
            if not new:
                continue
            rows = torch.as_tensor(np.asarray(new, dtype=np.int64))
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
            patch_of[new] = len(patches) + np.arange(count)
            patches = patches.join(group)
            proofs.append(proof.take(np.zeros(count, dtype=np.int64)))
        current = _set_gate(network, patches, box, dataclasses.replace(selection, slope=slope), retain)
        if earlier is not None:
            current = join_requests(earlier, current, network, box)
        answers = _predict(PatchedModel(model, network, current), points[left])
        status[left[(answers != labels[left]).numpy()]] = "patched"
        left = left[(answers == labels[left]).numpy()]
    empty = Proof.compress(torch.zeros(0, network.classes, network.atoms))
    return patches, Proof.join(proofs) if proofs else empty, patch_of


def _predict(patched: PatchedModel, points: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([patched(part).argmax(1) for part in points.split(512)])


def _set_gate(
    network: Network, patches: PatchSet, box: Box, selection: PointSelection, retain: tuple[Tensor, Tensor] | None
) -> PatchSet:
    if selection.gate == "exact" or not len(patches):
        return patches.with_gate(selection.gate, selection.slope or 1.0)
    slope = selection.slope or _choose_local_slope(network, patches.pattern, selection, retain)
    return soften(patches, slope, logit_size=bound_logit_size(network, patches, box))


def _choose_local_slope(
    network: Network, pattern: NDArray[np.uint8], selection: PointSelection, retain: tuple[Tensor, Tensor] | None
) -> float:
    if retain is None:
        raise RequestError(
            "the choice of a slope by locality needs the retained records", where="slope", hint="give a slope above 0"
        )
    stored = unpack(pattern, network.atoms).float()
    with torch.no_grad():
        batches = (compute_atom_values(network, x, network.tensors)[1] for x in retain[0].split(512))
        return choose_local_slope(network, batches, stored, open_fraction=selection.locality)


def join_requests(earlier: PatchSet, later: PatchSet, network: Network, box: Box) -> PatchSet:
    """Join the patches of an earlier and a later request, with the gate of the earlier set.

    Raises:
        RequestError: the sets have different corrections or networks, or different targets for a pattern.
    """
    joined = earlier.join(later.with_gate(earlier.gate, earlier.slope))
    if earlier.gate != "soft":
        return joined
    return soften(joined, earlier.slope, logit_size=bound_logit_size(network, joined, box))


def _find_shared_retained(
    network: Network, patches: PatchSet, retain: tuple[Tensor, Tensor] | None
) -> NDArray[np.int64]:
    if retain is None or not len(patches):
        return np.zeros(0, dtype=np.int64)
    keys = set(patches.keys())
    packed = pack(compute_patterns(network, retain[0])[1])
    return np.asarray([i for i, row in enumerate(packed) if row.tobytes() in keys], dtype=np.int64)
