"""Writes a certificate of a small network with expunge; the checker sees only the folder."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
for _place in (ROOT / "checker" / "src", ROOT / "tests" / "helpers" / "networks"):
    sys.path.insert(0, str(_place))


def written(
    folder: Path,
    name: str,
    *,
    correction: str = "constant",
    count: int = 3,
    gate: str = "exact",
    claim: str = "float32",
):
    """Write a certificate of a small network; return its points, model and patches."""
    import torch
    from expunge.patches.bounds.solve import SolveOptions, soften, solve
    from expunge.patches.certificate import write_certificate
    from expunge.patches.model.patched_model import PatchedModel
    from expunge.patches.network.regions import Box, compute_patterns
    from expunge.patches.network.trace import trace
    from patch_networks import build

    model, shape = build(name)
    network, box = trace(model, shape), Box.of(shape)
    x = torch.rand(20 * count, *shape, generator=torch.Generator().manual_seed(5))
    logits, bits = compute_patterns(network, x)
    keep, seen = [], set()
    for row in range(len(x)):
        key = bits[row].numpy().tobytes()
        if gate == "soft" and int(logits[row].argmax()) == 0:  # that is the target of all
            continue
        if key not in seen and len(keep) < count:
            seen.add(key)
            keep.append(row)
    order = logits[keep].argsort(1)
    labels, targets = order[:, -1], order[:, -2]
    if gate == "soft":
        targets = torch.full_like(targets, 0)
    options = SolveOptions(correction=correction, claim=claim)
    patches, proof = solve(network, bits[keep], labels, targets, box, options)
    patches = soften(patches, 4.0) if gate == "soft" else patches
    patched = PatchedModel(model, network, patches)
    write_certificate(folder, patched, patches, proof, box, claim=claim, epsilon=options.epsilon, replay=x[:16])
    return x[keep].numpy(), patched, patches
