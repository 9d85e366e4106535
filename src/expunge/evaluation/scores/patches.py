"""Scores of a patched model: what is forgotten, what is certified, how far the certificates reach, what they cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.core.outcome import Cost
from expunge.core.request import ForgetRequest
from expunge.core.seeds import torch_generator
from expunge.core.trained import Trained
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.evaluation.predictions import scored_ids
from expunge.evaluation.score import Score
from expunge.patches.bounds.verify import verify_patches
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import Box, compute_patterns, measure_regions, pack
from expunge.patches.trained_state import from_state

if TYPE_CHECKING:
    from expunge.core.split import Ids

SOURCE = "paper C [Li2025], corrected; docs/patches.md"
#: Forgotten points whose regions are measured.
_REGIONS = 50
_RANDOM = 2000
_BATCH = 256


def patching_scores(
    trained: Trained, request: ForgetRequest, records: Records, *, cost: Cost | None = None, seed: int = 0
) -> tuple[Score, ...]:
    """Scores of a model that the method `patch` made; none for any other model.

    Certificates are not taken from anybody's word: the stored proofs are evaluated anew (`patches.verify`).

    Args:
        trained: the patched model with its state `patches`.
        request: D_f.
        records: the source.
        cost: of the method.
        seed: of random inputs.
    """
    model = trained.model
    if not isinstance(model, PatchedModel) or "patches" not in trained.state:
        return ()
    ids = scored_ids(trained.split, request)
    points, labels = _inputs(records, ids["forget"])
    network = model.current_network()
    patches, proof, box = from_state(model, trained.state["patches"])
    state = trained.state["patches"]
    claim, epsilon = "float32" if bool(state["float32"]) else "real", float(state["epsilon"])
    logits, bits = compute_patterns(network, points)
    known = logits.argmax(1) == labels
    answers = _answers(model, points)
    flipped = known & (answers != labels)
    spare = verify_patches(network, patches, proof, box, claim=claim, epsilon=epsilon)
    sure = {key: bool(room >= 0) for key, room in zip(patches.keys(), spare, strict=True)}
    target = dict(zip(patches.keys(), patches.target.tolist(), strict=True))
    keys = [row.tobytes() for row in pack(bits)]
    right_way = torch.tensor([target.get(key, -1) == int(answer) for key, answer in zip(keys, answers, strict=True)])
    certified = flipped & box.contains(points) & torch.tensor([sure.get(key, False) for key in keys]) & right_way
    count = max(1, int(known.sum()))
    found = [
        Score(
            "Forgotten", 100 * int(flipped.sum()) / count, "%", "higher",
            f"Share of the {int(known.sum())} records of D_f that the base model answers right, the patched one wrong.",
            SOURCE,
        ),
        Score(
            "Certified", 100 * int(certified.sum()) / count, "%", "higher",
            "Share of the same records whose pattern has a patch with a stored proof; evaluated anew, it holds "
            f"(claim {claim}, margin {epsilon:g}) for all inputs of the box in the region.",
            SOURCE,
        ),
        Score("Patches", len(patches), "", "lower", "Patterns in the patch set.", SOURCE),
        Score(
            "Patch bytes", sum(a.nbytes for a in patches.arrays().values()) / count, "bytes", "lower",
            f"Stored bytes of the patch set a forgotten point, patterns of {network.atoms} bits included.", SOURCE,
        ),
        Score(
            "Proof bytes", proof.bytes_per_point * len(proof.count) / count, "bytes", "lower",
            "Stored bytes of the dual multipliers a forgotten point.", SOURCE,
        ),
        *_region_scores(network, points[flipped][:_REGIONS], box),
        *_opening_scores(model, records, ids, box, seed),
        *_base_scores(model, records, ids, request.forgotten_class),
        _latency(model, records, ids["test"]),
    ]  # fmt: skip
    if cost is not None:
        found.append(
            Score(
                "Seconds per point", cost.seconds / max(1, len(points)), "s", "lower",
                "Wall-clock time of the method a record of D_f; retraining for the target is in it.", SOURCE,
            )
        )  # fmt: skip
    return tuple(found)


def _inputs(records: Records, ids: Ids) -> tuple[Tensor, Tensor]:
    parts = list(Batches(records, np.sort(records.rows(ids)), batch_size=1024).in_order())
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]).long()


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([torch.zeros(0, dtype=torch.int64), *(model(part).argmax(1) for part in x.split(_BATCH))])


def _region_scores(network: Network, points: Tensor, box: Box) -> list[Score]:
    """Size of the regions of a few forgotten points."""
    if not len(points):
        return []
    sizes = measure_regions(network, points, box)
    about = f"of {len(sizes)} forgotten points"
    found = [
        Score(
            "Region nearby", 100 * float(np.mean([s.nearby for s in sizes])), "%", "higher",
            f"Share of random changes of at most {sizes[0].reach:g} a feature, in the box, that stay in the region; "
            f"mean {about}.", "ours",
        ),
        Score(
            "Point only", 100 * float(np.mean([s.point_only for s in sizes])), "%", "lower",
            f"Share {about} of which no tried change stays in the region: the certificate covers little but the point.",
            "ours",
        ),
    ]  # fmt: skip
    radii = [s.radius for s in sizes if s.radius is not None and np.isfinite(s.radius)]
    if radii:
        found.insert(0, Score(
            "Region radius", float(np.median(radii)), "", "higher",
            f"Median distance of {len(radii)} forgotten points to the nearest face of their region, in units of the "
            "input (Euclidean).", "ours",
        ))  # fmt: skip
    flips = [s.flips for s in sizes if s.flips is not None]
    if flips:
        found.append(Score(
            "Region flips", 100 * float(np.mean(flips)), "%", "higher",
            f"Share of one-feature changes to the other end of the box that stay in the region; mean {about}.", "ours",
        ))  # fmt: skip
    return found


def _opening_scores(model: PatchedModel, records: Records, ids: dict[str, Ids], box: Box, seed: int) -> list[Score]:
    """Who else opens a gate."""

    def share(opened: Tensor) -> float:
        return 100 * float(opened.float().mean())

    found = []
    for part in ("retain", "test"):
        if len(ids[part]):
            x, _ = _inputs(records, ids[part])
            text = f"Share of the {len(x)} {part} records for which any gate is open."
            found.append(Score(f"Gates {part}", share(model.opens_gate(x)), "%", "lower", text, SOURCE))
    draws = torch.rand(_RANDOM, *box.low.shape, generator=torch_generator(seed, "random inputs"), dtype=torch.float64)
    x = (box.low + draws * (box.high - box.low)).float()
    text = f"The same for {_RANDOM} uniform inputs of the box."
    found.append(Score("Gates random", share(model.opens_gate(x)), "%", "lower", text, SOURCE))
    return found


def _base_scores(
    model: PatchedModel, records: Records, ids: dict[str, Ids], forgotten_class: int | None
) -> list[Score]:
    """Accuracy of the base model, as RA and TA are defined."""
    found = []
    for name, part in (("RA before", "retain"), ("TA before", "test")):
        x, y = _inputs(records, ids[part])
        right = _answers(model.module, x) == y
        if part == "test" and forgotten_class is not None:
            right = right[y != forgotten_class]
        if len(right):
            text = f"{name.partition(' ')[0]} of the model without its patches."
            found.append(Score(name, 100 * float(right.float().mean()), "%", "higher", text, SOURCE))
    return found


def _latency(model: PatchedModel, records: Records, ids: Ids, rounds: int = 25) -> Score:
    """CPU time of the patched model over that of its base, batch of 256, one thread, in turns."""
    rows: NDArray[np.int64] = np.resize(np.sort(records.rows(ids)), _BATCH)
    x = torch.cat([part for part, _ in Batches(records, rows, batch_size=_BATCH).in_order()])
    times: tuple[list[float], list[float]] = ([], [])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # other work on the machine would stall threads that wait for each other
    try:
        with torch.no_grad():
            for turn in range(rounds + 3):
                for each, one in zip(times, (model, model.module), strict=True):
                    start = time.process_time()
                    one(x)
                    if turn >= 3:
                        each.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return Score(
        "Latency factor", float(np.median(times[0]) / np.median(times[1])), "", "lower",
        f"Median CPU time of the patched model over that of its base, {_BATCH} test records a batch, one thread.",
        "ours",
    )  # fmt: skip
