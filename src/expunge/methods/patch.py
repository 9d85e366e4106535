"""patch: certified patches on the linear regions of forgotten points."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.errors import ConfigError, MethodError, ModelError, unknown_name_hint
from expunge.core.reading.limits import CLUSTERS, EFFORT, ROUNDS
from expunge.core.show import plural
from expunge.core.trained import Trained, clone_model
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.models import load_trained
from expunge.patches.bounds.dual_ascent import AscentOptions
from expunge.patches.bounds.proof import Proof
from expunge.patches.bounds.solve import SolveOptions
from expunge.patches.forget_points import ForgetPointsResult, PointSelection, forget_points, join_requests
from expunge.patches.model.compaction import select_needed_patches
from expunge.patches.model.patch_set import PatchSet
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import Box, measure_regions
from expunge.patches.network.trace import load_tracer, trace
from expunge.patches.targets import TARGETS
from expunge.patches.trained_state import from_state, get_base_architecture, make_patched_architecture, to_state

from .base import Method
from .options import require_range
from .reads import Reads, Sizes
from .registry import register_method
from .retrain import Retrain
from .task import Task


@register_method("patch", guarantee="behavioural", citation="[Li2025] (arXiv 2505.06520), corrected; docs/patches.md")
@dataclasses.dataclass(frozen=True)
class Patch(Method):
    """For each forgotten record, change the network's output on the linear region around it so that another class is
    provably predicted there.

    The proof is the certificate of the patch. It is about outputs on a region, hence the guarantee `behavioural`; it is
    not the guarantee `certified`, which is about being indistinguishable from a retrained model.

    No information is removed: the patched model contains the base weights, and also the activation patterns of the
    forgotten points. An accuracy of 0 % on D_f is over-forgetting. The proof covers the executed float32 outputs on the
    regions.

    Attributes:
        correction: how a patch changes the logits: `constant`, `minimal` or `li2025` (never certified with soft gates).
        target: the class to predict: `runner-up`, `common` (for all points the most frequent runner-up, so that soft
            patches agree), `random`, `neighbour` (the label of the nearest retained record of another class), or
            `retrained` (the prediction of a retrained model; if that is the label itself, its runner-up).
        retrained: directory of a saved retrained model for the target `retrained`; without it the method retrains,
            which is included in the cost.
        mode: `points` (one patch per activation pattern) or `representatives` (the rounds of [Li2025], for soft gates).
        gate: `exact` or `soft`.
        slope: slope of soft gates; 0 selects the smallest power of two that reaches the locality target.
        locality: the locality target: fraction of retained records that may have an open gate, not counting records
            with the same pattern as a forgotten point.
        epsilon: margin of the target class.
        box: the input box: `auto` (the unit box if all features are in [0, 1], else the range of each feature over the
            training records), or two numbers as `low,high`.
        claim: arithmetic of the proof: `float32` or `real`.
        solver: solver of the bounds: `ascent` or `highs`.
        effort: maximum number of refinements of the bounds that determine a shift, each twice as long as the one before
            (`ascent`); fewer are faster and give larger shifts.
        representatives, clusters, rounds, fraction, budget: see `expunge.patches.PointSelection`.
        compact: remove patches, of this and of earlier requests, that no forgotten record needs. With soft gates, a
            record whose own patch is removed is still forgotten, but its region is no longer certified.
    """

    correction: str = "constant"
    target: str = "runner-up"
    retrained: str = ""
    mode: str = "points"
    gate: str = "exact"
    slope: float = 0.0
    locality: float = 0.0
    epsilon: float = 1e-3
    box: str = "auto"
    claim: str = "float32"
    solver: str = "ascent"
    effort: int = 4
    representatives: str = "k-medoids"
    clusters: int = 2
    rounds: int = 10
    fraction: float = 1.0
    budget: int = 0
    compact: bool = False

    def __post_init__(self) -> None:
        require_range(
            "patch",
            effort=(self.effort, 0 <= self.effort <= EFFORT),
            clusters=(self.clusters, self.clusters <= CLUSTERS),
            rounds=(self.rounds, self.rounds <= ROUNDS),
        )
        if self.solver == "highs" and self.effort != Patch.effort:
            raise MethodError("effort has no effect with the solver `highs`", where="patch.effort", hint="leave it out")
        if self.target not in TARGETS:
            hint = unknown_name_hint(self.target, TARGETS)
            raise MethodError(f"unknown target {self.target!r}", where="patch.target", hint=hint)
        self.make_selection()
        _parse_box(self.box)
        if self.retrained and self.target != "retrained":
            raise MethodError("only target=retrained uses a retrained model", where="patch.retrained")

    def make_selection(self) -> PointSelection:
        """Return the options as the package `patches` expects them."""
        solve = SolveOptions(
            correction=self.correction, solver=self.solver, claim=self.claim, epsilon=self.epsilon,
            ascent=AscentOptions(rounds=self.effort),
        )  # fmt: skip
        names = ("mode", "target", "gate", "slope", "locality", "representatives", "clusters", "rounds", "fraction")
        return PointSelection(budget=self.budget, **{name: getattr(self, name) for name in names}, solve=solve)

    def unsupported_reason(self, model: nn.Module, records: Records) -> tuple[str, str] | None:
        """See `Method.unsupported_reason`: the first operation that is not piecewise linear."""
        try:
            trace(model, records.input_shape)
        except ModelError as error:
            return f"this network cannot be patched: {error.what}", error.hint or ""
        return None

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        if self.target == "retrained" and not self.retrained:
            return None
        return Reads(retain_forward=sizes.retain, forget_forward=sizes.forget)

    def unlearn(self, task: Task) -> Trained:
        """See `Method.unlearn`.

        Raises:
            ModelError: the network is not piecewise linear.
            MethodError: the retrained model was trained on records of the request.
        """
        with task.untimed():
            load_tracer()
        trained, request, split, records = task.trained, task.request, task.split, task.context.records
        patched = trained.model if isinstance(trained.model, PatchedModel) else None
        base: nn.Module = clone_model(trained.model if patched is None else patched.module).to("cpu").eval()
        network = trace(base, records.input_shape, where="patch")
        points, labels = _read_inputs(records, request.record_ids)
        retain = _read_inputs(records, split.retain)
        task.forward_records += len(points) + len(retain[0])
        box = _make_box(self.box, records, np.concatenate([split.retain, split.forget]))
        earlier, claim, epsilon = None, self.claim, self.epsilon
        if patched is not None:
            stored = trained.state["patches"]
            earlier = from_state(patched, stored)
            box = earlier[2]  # the earlier proofs hold on it
            claim, epsilon = ("real" if not bool(stored["float32"]) else claim), min(epsilon, float(stored["epsilon"]))
        retrained = self._get_retrained(task, base) if self.target == "retrained" else None
        found = forget_points(
            base, network, points, labels, box, self.make_selection(), retain=retain, retrained=retrained,
            earlier=None if earlier is None else earlier[0], seed=task.context.seed,
        )  # fmt: skip
        patches, proof = _join(earlier, found, network, box)
        if self.compact:
            forgotten = points, labels
            if earlier is not None:
                forgotten = _read_inputs(records, split.forget)
            rows = select_needed_patches(base, network, patches, *forgotten)
            patches, proof = patches.take(rows), proof.take(rows)
        model = PatchedModel(base, network, patches)
        for name, parameter in model.module.named_parameters():
            parameter.requires_grad_(dict(_base_of(trained).named_parameters())[name].requires_grad)
        task.line = f"patch: {plural(len(request.record_ids), 'record')}, {len(found.patches)} new patches"
        with task.untimed():
            task.history.append(_summarise(model, found, points, box))
        architecture = make_patched_architecture(get_base_architecture(trained.provenance.architecture), patches)
        return dataclasses.replace(
            trained,
            model=model,
            state={**task.state, "patches": to_state(patches, proof, box, claim=claim, epsilon=epsilon)},
            provenance=dataclasses.replace(trained.provenance, architecture=architecture),
        )

    def _get_retrained(self, task: Task, base: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return the retrained model: a saved one, or a new one, whose cost counts."""
        trained = task.trained
        if self.retrained:
            saved = load_trained(self.retrained)
            if np.isin(task.request.record_ids, saved.split.retain).any():
                raise MethodError(
                    "the retrained model was trained on records that are to be forgotten", where="patch.retrained"
                )
            return saved.model.to("cpu").eval()
        architecture = get_base_architecture(trained.provenance.architecture)
        provenance = dataclasses.replace(trained.provenance, architecture=architecture)
        state = {k: v for k, v in trained.state.items() if k != "patches"}
        plain = dataclasses.replace(trained, model=base, provenance=provenance, state=state)
        return task.run(Retrain(), plain).trained.model.to("cpu").eval()


def _base_of(trained: Trained) -> nn.Module:
    return trained.model.module if isinstance(trained.model, PatchedModel) else trained.model


def _read_inputs(records: Records, ids: Any) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of records, as the model gets them."""
    parts = list(Batches(records, records.rows(ids), batch_size=1024).in_order())
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def _parse_box(text: str) -> tuple[float, float] | None:
    if text == "auto":
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"box must be `auto` or two numbers as low,high, not {text!r}", where="patch.box") from error
    if not low < high:
        raise ConfigError(f"the box {text} is empty", where="patch.box")
    return low, high


def _make_box(text: str, records: Records, ids: Any) -> Box:
    bounds = _parse_box(text)
    if bounds is not None:
        return Box.of(records.input_shape, *bounds)
    x, _ = _read_inputs(records, ids)
    if float(x.min()) >= 0 and float(x.max()) <= 1:
        return Box.of(records.input_shape)
    return Box(x.amin(0).double(), x.amax(0).double())


def _join(
    earlier: tuple[PatchSet, Proof, Box] | None, found: ForgetPointsResult, network: Network, box: Box
) -> tuple[PatchSet, Proof]:
    if earlier is None:
        return found.patches, found.proof
    if not len(found.patches):
        return earlier[0], earlier[1]
    return join_requests(earlier[0], found.patches, network, box), Proof.join([earlier[1], found.proof])


def _summarise(model: PatchedModel, found: ForgetPointsResult, points: Tensor, box: Box) -> dict[str, Any]:
    """Return the entry of the run in `outcome.json`: counts, bytes, and the sizes of a few regions."""
    with torch.no_grad():
        sizes = measure_regions(model.network, points[:8], box)
    nearby = float(np.mean([size.nearby for size in sizes]))
    radii = [size.radius for size in sizes if size.radius is not None and np.isfinite(size.radius)]
    return {
        "patches": len(model.patches.target),
        "points": found.counts(),
        "retained_records_with_a_patched_pattern": len(found.shared_retained),
        "bytes_per_patch": found.patches.bytes_per_patch(),
        "proof_bytes_per_point": found.proof.bytes_per_point,
        "largest_shift": float(found.patches.shift.max()) if len(found.patches) else 0.0,
        "slope": found.patches.slope if found.patches.gate == "soft" else None,
        "region_radius_median": float(np.median(radii)) if radii else None,
        "region_share_nearby": nearby,
        "region_point_only": sum(size.point_only for size in sizes) / len(sizes),
    }
