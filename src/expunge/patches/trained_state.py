"""Storage of a patched model in `Trained`: its architecture, and its patches and proofs as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.errors import ModelError
from expunge.core.files import PathLike
from expunge.core.reading.limits import BYTES
from expunge.models import Architecture
from expunge.patches.bounds.proof import Proof, count_dtype
from expunge.patches.model.patch_set import CORRECTIONS, GATES, PatchSet
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.regions import Box
from expunge.patches.network.trace import trace

from .certificate import write_certificate

FACTORY = "expunge.patches.trained_state:build"
_PATCH = ("pattern", "target", "label", "shift", "group", "alpha", "beta")
_PROOF = ("count", "scale", "gap", "level")


def make_patched_architecture(base: Mapping[str, Any], patches: PatchSet) -> dict[str, Any]:
    """Return the architecture of a patched model: the architecture of the base, and the shapes of the patch set."""
    options = {"base": dict(base), "correction": patches.correction, "gate": patches.gate, "count": len(patches)}
    options["groups"] = len(np.unique(patches.group))
    shape, classes = tuple(base["input_shape"]), int(base["classes"])
    body = Architecture(FACTORY, options, shape, classes).to_json()
    return {**body, "normalisation_from": base.get("normalisation_from")}


def get_base_architecture(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture of the base of a patched model, or any other architecture unchanged."""
    patched = body.get("name") == FACTORY or body.get("factory") == FACTORY
    return dict(body["options"]["base"]) if patched else dict(body)


def build(
    input_shape: tuple[int, ...],
    classes: int,
    base: Mapping[str, Any],
    correction: str,
    gate: str,
    count: int,
    groups: int,
) -> nn.Module:
    """Build a patched model of the given shapes with placeholder patches, into which weights and buffers are loaded.

    Args:
        input_shape: shape of one record.
        classes: K.
        base: architecture of the base model.
        correction: of the patches.
        gate: of the patches.
        count: number of patches.
        groups: number of groups of patches.

    Raises:
        ModelError: the values are not those of a patched model, the base is patched, or has too few atoms for that many
            patches, or the patches are above the limits.
    """
    _check_shapes(base, correction, gate, count, groups, classes)
    model = Architecture.from_json(base).build_blank().eval()
    network = trace(model, input_shape)
    BYTES.check(count * network.atoms, "the patterns of the patches have", where="patches", error=ModelError)
    if count > 2 ** min(network.atoms, 62):
        raise ModelError(f"{count} patches on a network of {network.atoms} atoms", where="patches")
    numbers = np.arange(count, dtype=np.uint64).view(np.uint8).reshape(count, 8)
    pattern = np.zeros((count, (network.atoms + 7) // 8), np.uint8)
    width = min(8, pattern.shape[1])
    pattern[:, :width] = numbers[:, :width]
    wide = classes if correction == "li2025" else 0
    group = np.minimum(np.arange(count, dtype=np.int32), groups - 1)
    patches = PatchSet(
        correction, network.atoms, classes, pattern, np.zeros(count, np.int16), np.ones(count, np.int16),
        np.zeros(count, np.float32), group, np.ones((count, wide), np.float32),
        np.zeros((count, wide), np.float32), gate,
    )  # fmt: skip
    return PatchedModel(model, network, patches)


def _check_shapes(base: object, correction: object, gate: object, count: object, groups: object, classes: int) -> None:
    """Raise ModelError unless the options are those of a patched model; nothing is built before."""
    if not isinstance(base, Mapping) or FACTORY in (base.get("name"), base.get("factory")):
        raise ModelError("the base of a patched model is the architecture of a model without patches", where="base")
    for name, value, known in (("correction", correction, CORRECTIONS), ("gate", gate, GATES)):
        if value not in known:
            raise ModelError(f"is {str(value)[:60]!r}", where=name, hint=f"known: {', '.join(known)}")
    for name, value in (("count", count), ("groups", groups)):
        if type(value) is not int or not 0 <= value < 2**31:
            raise ModelError(f"is not a number of patches: {str(value)[:60]}", where=name)
    assert isinstance(count, int)
    assert isinstance(groups, int)
    if groups > count or (count and not groups):
        raise ModelError(f"{groups} groups of {count} patches", where="groups")
    cost = 64 + 4 * classes * (3 if correction == "li2025" else 1)
    BYTES.check(count * cost, "the patches have", where="patches", error=ModelError)


def to_state(patches: PatchSet, proof: Proof, box: Box, *, claim: str, epsilon: float) -> dict[str, Tensor]:
    """Return patches and proofs as the state `patches` of a trained model."""
    arrays = {**{n: getattr(patches, n) for n in _PATCH}, **{f"proof.{n}": getattr(proof, n) for n in _PROOF}}
    arrays["proof.count"] = arrays["proof.count"].astype(np.int64)
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    state |= {"box.low": box.low.clone(), "box.high": box.high.clone()}
    state["epsilon"] = torch.tensor(epsilon, dtype=torch.float64)
    state["slope"] = torch.tensor(patches.slope, dtype=torch.float64)
    state["float32"] = torch.tensor(claim == "float32")
    return state


def from_state(model: PatchedModel, state: Mapping[str, Tensor]) -> tuple[PatchSet, Proof, Box]:
    """Return the patches, proofs and box that `to_state` stored.

    Raises:
        ModelError: the proofs are in the format of an earlier version.
    """
    arrays: dict[str, Any] = {name: state[name].numpy() for name in _PATCH}
    settings = model.settings
    patches = PatchSet(
        settings["correction"], model.network.atoms, model.network.classes, **arrays, gate=settings["gate"],
        slope=float(state["slope"]),
    )  # fmt: skip
    if "proof.gap" not in state:
        raise ModelError(
            "the proofs of this model are in the format of an earlier version", where="patches", hint="patch it again"
        )
    stored: dict[str, Any] = {name: state[f"proof.{name}"].numpy() for name in _PROOF}
    stored["count"] = stored["count"].astype(count_dtype(model.network.atoms))
    return patches, Proof(**stored), Box(state["box.low"], state["box.high"])


def certify(
    model: nn.Module, state: Mapping[str, Tensor], directory: PathLike, *, replay: Tensor | None = None
) -> None:
    """Write the certificate folder of a patched model from the state `patches` of its `Trained`.

    Args:
        model: the patched model.
        state: `trained.state["patches"]`.
        directory: the folder; replaced if it exists.
        replay: inputs to record, see `write_certificate`.

    Raises:
        ModelError: the model has no patches.
        RequestError: a replay input lies outside the box.

    Example:
        >>> import os, torch
        >>> from expunge.patches import Box, PatchedModel, certify, compute_patterns, solve, trace
        >>> from expunge.patches.trained_state import to_state
        >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU())
        >>> network, box = trace(model, (2,)), Box.of((2,))
        >>> bits = compute_patterns(network, torch.tensor([[0.75, 0.25]]))[1]
        >>> patches, proof = solve(network, bits, torch.tensor([0]), torch.tensor([1]), box)
        >>> state = to_state(patches, proof, box, claim="float32", epsilon=1e-3)
        >>> certify(PatchedModel(model, network, patches), state, "certificate")
        >>> sorted(os.listdir("certificate"))[:2]
        ['certificate.json', 'network.json']
    """
    if not isinstance(model, PatchedModel) or not state:
        raise ModelError("the model has no patches, so there is nothing to certify", where="certificate")
    current = PatchedModel(model.module, model.current_network(), model.patch_set())
    patches, proof, box = from_state(current, state)
    claim = "float32" if bool(state["float32"]) else "real"
    write_certificate(
        directory, current, patches, proof, box, claim=claim, epsilon=float(state["epsilon"]), replay=replay
    )
