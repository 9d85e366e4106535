"""Scores of a patched model: forgotten and certified records, size of the certified regions, cost of the patches."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.core.seeds import torch_generator
from expunge.core.show import plural
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.evaluation.predictions import select_scored_ids
from expunge.evaluation.registry.definition import Measurement, register_score
from expunge.evaluation.registry.inputs import ScoreInputs
from expunge.patches.bounds.verify import verify_patches
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import Box, RegionSize, compute_patterns, measure_regions, pack
from expunge.patches.trained_state import from_state

if TYPE_CHECKING:
    from expunge.core.split import Ids

#: Most forgotten points whose regions are measured.
_REGIONS = 50
_RANDOM = 2000
_BATCH = 256


@dataclasses.dataclass(frozen=True, eq=False)
class _Patched:
    """A patched model, its records by part of the split, and which of D_f it forgets and certifies."""

    model: PatchedModel
    network: Network
    box: Box
    ids: dict[str, Ids]
    points: Tensor
    known: int
    flipped: Tensor
    certified: int
    patches: int
    patch_bytes: int
    proof_bytes: float
    claim: str
    epsilon: float

    @property
    def count(self) -> int:
        """The number of records of D_f that the base model classifies correctly, at least 1."""
        return max(1, self.known)


def _patched(inputs: ScoreInputs) -> _Patched | None:
    """Evaluate the patched model on D_f, and the stored proofs again (`patches.bounds.verify`)."""
    trained, model = inputs.trained, inputs.trained.model
    if not isinstance(model, PatchedModel):
        return None
    ids = select_scored_ids(trained.split, inputs.request)
    points, labels = _load_inputs(inputs.records, ids["forget"])
    network = model.current_network()
    state = trained.state["patches"]
    patches, proof, box = from_state(model, state)
    claim, epsilon = "float32" if bool(state["float32"]) else "real", float(state["epsilon"])
    logits, bits = compute_patterns(network, points)
    known = logits.argmax(1) == labels
    predicted = _predict_classes(model, points)
    flipped = known & (predicted != labels)
    margins = verify_patches(network, patches, proof, box, claim=claim, epsilon=epsilon)
    proved = {key: bool(margin >= 0) for key, margin in zip(patches.keys(), margins, strict=True)}
    target = dict(zip(patches.keys(), patches.target.tolist(), strict=True))
    keys = [row.tobytes() for row in pack(bits)]
    on_target = torch.tensor([target.get(key, -1) == int(label) for key, label in zip(keys, predicted, strict=True)])
    certified = flipped & box.contains(points) & torch.tensor([proved.get(key, False) for key in keys]) & on_target
    return _Patched(
        model, network, box, ids, points, int(known.sum()), flipped, int(certified.sum()), len(patches),
        sum(a.nbytes for a in patches.arrays().values()), proof.bytes_per_point * len(proof.count), claim, epsilon,
    )  # fmt: skip


def _regions(inputs: ScoreInputs) -> list[RegionSize]:
    """The sizes of the regions of a few forgotten points."""
    found = inputs.once(_patched)
    if found is None:
        return []
    points = found.points[found.flipped][:_REGIONS]
    return measure_regions(found.network, points, found.box) if len(points) else []


def _load_inputs(records: Records, ids: Ids) -> tuple[Tensor, Tensor]:
    parts = list(Batches(records, np.sort(records.rows(ids)), batch_size=1024).in_order())
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]).long()


def _predict_classes(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([torch.zeros(0, dtype=torch.int64), *(model(part).argmax(1) for part in x.split(_BATCH))])


@register_score(
    "Forgotten", unit="%", direction="higher", needs=("patches",),
    citation="[Li2025], corrected; docs/patches.md", position=600,
)  # fmt: skip
def measure_forgotten(inputs: ScoreInputs) -> Measurement | None:
    """Fraction of the records of D_f, of those that the base model classifies correctly, that are misclassified."""
    found = inputs.once(_patched)
    if found is None:
        return None
    return Measurement(
        100 * int(found.flipped.sum()) / found.count,
        f"Fraction of the {plural(found.known, 'record')} of D_f classified correctly by the base model that the "
        "patched model misclassifies.",
    )


@register_score(
    "Certified", unit="%", direction="higher", needs=("patches",),
    citation="[Li2025], corrected; docs/patches.md", position=610,
)  # fmt: skip
def measure_certified(inputs: ScoreInputs) -> Measurement | None:
    """Fraction of the same records whose activation pattern has a patch with a proof for its region in the box."""
    found = inputs.once(_patched)
    if found is None:
        return None
    return Measurement(
        100 * found.certified / found.count,
        "Fraction of the same records whose activation pattern has a patch with a stored proof that holds when "
        f"evaluated again (claim {found.claim}, margin {found.epsilon:g}) for all inputs of the box in the region.",
    )


@register_score(
    "Patches", direction="lower", needs=("patches",),
    citation="[Li2025], corrected; docs/patches.md", position=620,
)  # fmt: skip
def measure_patches(inputs: ScoreInputs) -> float | None:
    """Activation patterns in the patch set."""
    found = inputs.once(_patched)
    return None if found is None else found.patches


@register_score(
    "Region radius", direction="higher", needs=("patches",),
    citation="this project; docs/patches.md", position=630, decimals=6,
)  # fmt: skip
def measure_region_radius(inputs: ScoreInputs) -> Measurement | None:
    """Median distance of patched records to the nearest face of their region, in units of the input."""
    radii = [s.radius for s in inputs.once(_regions) if s.radius is not None and np.isfinite(s.radius)]
    if not radii:
        return None
    return Measurement(
        float(np.median(radii)),
        f"Median distance of {len(radii)} forgotten points to the nearest face of their region, in units of the "
        "input (Euclidean).",
    )


@register_score(
    "Region nearby", unit="%", direction="higher", needs=("patches",),
    citation="this project; docs/patches.md", position=640,
)  # fmt: skip
def measure_region_nearby(inputs: ScoreInputs) -> Measurement | None:
    """Fraction of random changes of a patched record, of at most 0.01 in every feature, that stay in its region."""
    sizes = inputs.once(_regions)
    if not sizes:
        return None
    return Measurement(
        100 * float(np.mean([s.nearby for s in sizes])),
        f"Fraction of random changes of at most {sizes[0].reach:g} a feature, in the box, that stay in the region; "
        f"mean of {len(sizes)} forgotten points.",
    )


@register_score(
    "Region flips", unit="%", direction="higher", needs=("patches",),
    citation="this project; docs/patches.md", position=650,
)  # fmt: skip
def measure_region_flips(inputs: ScoreInputs) -> Measurement | None:
    """Fraction of changes of one feature to the other end of the box that stay in the region of a patched record."""
    sizes = inputs.once(_regions)
    flips = [s.flips for s in sizes if s.flips is not None]
    if not flips:
        return None
    return Measurement(
        100 * float(np.mean(flips)),
        "Fraction of one-feature changes to the other end of the box that stay in the region; mean of "
        f"{len(sizes)} forgotten points.",
    )


@register_score(
    "Point only", unit="%", direction="lower", needs=("patches",),
    citation="this project; docs/patches.md", position=660,
)  # fmt: skip
def measure_point_only(inputs: ScoreInputs) -> Measurement | None:
    """Patched records for which none of these two kinds of changes stays in the region."""
    sizes = inputs.once(_regions)
    if not sizes:
        return None
    return Measurement(
        100 * float(np.mean([s.point_only for s in sizes])),
        f"Fraction of {len(sizes)} forgotten points for which no tried change stays in the region: the certificate "
        "covers little but the point.",
    )


def _measure_gates(inputs: ScoreInputs, part: str) -> Measurement | None:
    found = inputs.once(_patched)
    if found is None or not len(found.ids[part]):
        return None
    x, _ = _load_inputs(inputs.records, found.ids[part])
    return Measurement(
        100 * float(found.model.opens_gate(x).float().mean()),
        f"Fraction of the {plural(len(x), f'{part} record')} for which any gate is open.",
    )


@register_score(
    "Gates retain", unit="%", direction="lower", needs=("patches",),
    citation="[Li2025], corrected; docs/patches.md", position=670,
)  # fmt: skip
def measure_gates_retain(inputs: ScoreInputs) -> Measurement | None:
    """Fraction of the retained records for which at least one gate of the patch set is open."""
    return _measure_gates(inputs, "retain")


@register_score(
    "Gates test", unit="%", direction="lower", needs=("patches",),
    citation="[Li2025], corrected; docs/patches.md", position=680,
)  # fmt: skip
def measure_gates_test(inputs: ScoreInputs) -> Measurement | None:
    """The same for the test records."""
    return _measure_gates(inputs, "test")


@register_score(
    "Gates random", unit="%", direction="lower", needs=("patches",),
    citation="[Li2025], corrected; docs/patches.md", position=690,
)  # fmt: skip
def measure_gates_random(inputs: ScoreInputs) -> Measurement | None:
    """The same for random inputs in the box."""
    found = inputs.once(_patched)
    if found is None:
        return None
    low, high = found.box.low, found.box.high
    generator = torch_generator(inputs.seed, "random inputs")
    draws = torch.rand(_RANDOM, *low.shape, generator=generator, dtype=torch.float64)
    opened = found.model.opens_gate((low + draws * (high - low)).float())
    return Measurement(100 * float(opened.float().mean()), f"The same for {_RANDOM} uniform inputs of the box.")


def _measure_base(inputs: ScoreInputs, name: str, part: str) -> Measurement | None:
    found, forgotten_class = inputs.once(_patched), inputs.request.forgotten_class
    if found is None or not len(found.ids[part]):
        return None
    x, y = _load_inputs(inputs.records, found.ids[part])
    right = _predict_classes(found.model.module, x) == y
    if part == "test" and forgotten_class is not None:
        right = right[y != forgotten_class]
    if not len(right):
        return None
    return Measurement(100 * float(right.float().mean()), f"{name} of the model without its patches.")


@register_score(
    "RA before", unit="%", direction="higher", needs=("patches",),
    citation="[Li2025], corrected; docs/patches.md", position=700,
)  # fmt: skip
def measure_ra_before(inputs: ScoreInputs) -> Measurement | None:
    """RA of the model without its patches."""
    return _measure_base(inputs, "RA", "retain")


@register_score(
    "TA before", unit="%", direction="higher", needs=("patches",),
    citation="[Li2025], corrected; docs/patches.md", position=710,
)  # fmt: skip
def measure_ta_before(inputs: ScoreInputs) -> Measurement | None:
    """TA of the model without its patches."""
    return _measure_base(inputs, "TA", "test")


@register_score(
    "Seconds per point", unit="s", direction="lower", needs=("patches", "cost"),
    citation="[Li2025], corrected; docs/patches.md", position=720, machine_dependent=True,
)  # fmt: skip
def measure_seconds_per_point(inputs: ScoreInputs) -> Measurement | None:
    """Time of the method for each record of D_f, including retraining for the targets."""
    found = inputs.once(_patched)
    if found is None:
        return None
    text = "Wall-clock time of the method for each record of D_f, including retraining for the targets."
    return Measurement(inputs.cost.seconds / max(1, len(found.points)), text)


@register_score(
    "Patch bytes", unit="bytes", direction="lower", needs=("patches",),
    citation="[Li2025], corrected; docs/patches.md", position=730,
)  # fmt: skip
def measure_patch_bytes(inputs: ScoreInputs) -> Measurement | None:
    """Stored bytes of the patch set for each patched record."""
    found = inputs.once(_patched)
    if found is None:
        return None
    return Measurement(
        found.patch_bytes / found.count,
        f"Stored bytes of the patch set for each forgotten point, including patterns of {found.network.atoms} bits.",
    )


@register_score(
    "Proof bytes", unit="bytes", direction="lower", needs=("patches",),
    citation="[Li2025], corrected; docs/patches.md", position=740,
)  # fmt: skip
def measure_proof_bytes(inputs: ScoreInputs) -> Measurement | None:
    """Stored bytes of the proofs for each patched record."""
    found = inputs.once(_patched)
    if found is None:
        return None
    text = "Stored bytes of the dual multipliers for each forgotten point."
    return Measurement(found.proof_bytes / found.count, text)


@register_score(
    "Latency factor", direction="lower", needs=("patches",), citation="this project; docs/patches.md",
    position=750, machine_dependent=True,
)  # fmt: skip
def measure_latency(inputs: ScoreInputs) -> Measurement | None:
    """CPU time of the patched model over that of its base, 256 records a batch, one thread.

    Both models are measured in turn; the score is the ratio of the medians.
    """
    found = inputs.once(_patched)
    if found is None:
        return None
    rows: NDArray[np.int64] = np.resize(np.sort(inputs.records.rows(found.ids["test"])), _BATCH)
    x = torch.cat([part for part, _ in Batches(inputs.records, rows, batch_size=_BATCH).in_order()])
    patched, base = _measure_seconds(x, found.model, found.model.module)
    return Measurement(
        float(np.median(patched) / np.median(base)),
        f"Median CPU time of the patched model over that of its base, {_BATCH} test records a batch, one thread.",
    )


def _measure_seconds(x: Tensor, *models: Callable[[Tensor], Tensor], rounds: int = 25) -> list[list[float]]:
    """CPU seconds of each model for each round, measured in turn with one thread."""
    times: list[list[float]] = [[] for _ in models]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with other load on the machine, threads would wait for each other
    try:
        with torch.no_grad():
            for turn in range(rounds + 3):
                for each, one in zip(times, models, strict=True):
                    start = time.process_time()
                    one(x)
                    if turn >= 3:
                        each.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return times
