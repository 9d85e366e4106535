"""What the library does not write, because the checker would not accept it: no patches, slopes beyond float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from patch_networks import build

from expunge.core.errors import ConfigError, ModelError, RequestError
from expunge.patches.bounds.solve import SolveOptions, solve
from expunge.patches.certificate import write_certificate
from expunge.patches.forget_points import PointSelection
from expunge.patches.model.patch_set import PatchSet
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.regions import Box, compute_patterns, pack
from expunge.patches.network.trace import trace


def test_a_certificate_has_a_patch_and_replays_inside_its_box(tmp_path: Path) -> None:
    model, shape = build("mlp")
    network, box = trace(model, shape), Box.of(shape)
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(2))
    logits, bits = compute_patterns(network, x)
    order = logits.argsort(1)
    patches, proof = solve(network, bits, order[:, -1], order[:, -2], box, SolveOptions())
    settings = {"claim": "float32", "epsilon": 1e-3}
    none = np.zeros(0, np.int64)
    empty = patches.take(none)
    bare = PatchedModel(model, network, empty)
    with pytest.raises(ModelError, match="nothing to certify"):
        write_certificate(tmp_path / "c", bare, empty, proof.take(none), box, **settings, replay=x)
    patched = PatchedModel(model, network, patches)
    for wrong in (x + 1, x * torch.nan):
        with pytest.raises(RequestError, match="outside the box") as found:
            write_certificate(tmp_path / "c", patched, patches, proof, box, **settings, replay=torch.cat([x, wrong]))
        assert found.value.where == "replay input 1"
    assert not (tmp_path / "c").exists()
    write_certificate(tmp_path / "c", patched, patches, proof, box, **settings, replay=x)
    assert pack(bits).tobytes() == patches.pattern.tobytes()


@pytest.mark.parametrize("slope", [1e300, 1e-60, -1.0, float("nan"), float("inf")])
def test_slopes_are_numbers_of_float32(slope: float) -> None:
    with pytest.raises(ConfigError, match="slope"):
        PatchSet.empty("constant", 8, 3, gate="soft", slope=slope)
    with pytest.raises(ConfigError, match="slope"):
        PointSelection(gate="soft", slope=slope)
    assert PatchSet.empty("constant", 8, 3, gate="soft", slope=2.0**64).slope == 2.0**64
