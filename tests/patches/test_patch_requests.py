"""The method `patch` around the proofs: its input box, its retrained model, and requests in sequence."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from sparse_toys import CPU, toy_records, toy_split

from expunge.core.errors import MethodError
from expunge.core.request import ForgetRequest
from expunge.methods import Context, get_method
from expunge.models import architecture
from expunge.models.saved_model import save_trained
from expunge.patches.forget_points import PointSelection
from expunge.patches.network.regions import Box, RegionSize, measure_regions
from expunge.patches.network.trace import trace
from expunge.training import get_recipe, train


@pytest.fixture(scope="module")
def world():
    """Records of six features, of which record 7 has the smallest and the largest value of all training records."""
    records = toy_records((6,))
    features = np.array(records.features)
    features[7, 0], features[7, 1] = 25.0, -25.0
    records = dataclasses.replace(records, features=features)
    blueprint = architecture("mlp", records, normalise="none", widths=(8,))
    recipe = get_recipe("one-cycle", epochs=6, batch_size=40)
    return train(records, toy_split(records), blueprint, recipe=recipe, runtime=CPU), records


def request_of(records, *rows):
    return ForgetRequest(records.record_ids[list(rows)])


def test_the_box_covers_the_forgotten_records_too(world):
    """Its bounds are the ranges over all training records: without D_f the forgotten record would lie outside."""
    trained, records = world
    outcome = get_method("patch").forget(trained, request_of(records, 7, 8), Context(records, CPU))
    state = outcome.trained.state["patches"]
    training = np.asarray(records.features)[records.rows(trained.split.retain)].astype(np.float64)
    np.testing.assert_array_equal(state["box.low"].numpy(), training.min(0))
    np.testing.assert_array_equal(state["box.high"].numpy(), training.max(0))
    assert float(state["box.high"][0]) == 25
    assert float(state["box.low"][1]) == -25
    assert outcome.history[0]["points"].get("outside the box", 0) == 0


@pytest.mark.parametrize(("rows", "refused"), [((3, 90), True), ((90, 3), True), ((3, 4), True), ((90, 91), False)])
def test_a_retrained_model_that_saw_one_of_the_records_is_refused(world, tmp_path, rows, refused):
    trained, records = world
    never = dataclasses.replace(trained, split=request_of(records, 90, 91).apply(trained.split))
    save_trained(never, tmp_path / "retrained")
    method = get_method("patch", target="retrained", retrained=str(tmp_path / "retrained"))
    if refused:
        with pytest.raises(MethodError, match="trained on records that are to be forgotten"):
            method.forget(trained, request_of(records, *rows), Context(records, CPU))
    else:
        assert method.forget(trained, request_of(records, *rows), Context(records, CPU)).rewrote == ("patches",)


@pytest.mark.parametrize(("first", "second"), [(1e-3, 1e-1), (1e-1, 1e-3)])
def test_after_two_requests_the_smaller_margin_is_recorded(world, first, second):
    """The certificate covers the patches of both requests, so it can claim the smaller margin only."""
    trained, records = world
    once = get_method("patch", epsilon=first).forget(trained, request_of(records, 10, 11), Context(records, CPU))
    assert float(once.trained.state["patches"]["epsilon"]) == first
    later = get_method("patch", epsilon=second)
    twice = later.forget(once.trained, request_of(records, 20, 21), Context(records, CPU))
    state = twice.trained.state["patches"]
    assert float(state["epsilon"]) == min(first, second)
    assert len(state["target"]) > len(once.trained.state["patches"]["target"])


def test_after_two_requests_the_weaker_arithmetic_is_recorded(world):
    trained, records = world
    for first, second in (("real", "float32"), ("float32", "float32")):
        once = get_method("patch", claim=first).forget(trained, request_of(records, 10), Context(records, CPU))
        twice = get_method("patch", claim=second).forget(once.trained, request_of(records, 20), Context(records, CPU))
        assert bool(twice.trained.state["patches"]["float32"]) is (first == "float32")
    assert torch.isfinite(twice.trained.state["patches"]["shift"]).all()


def test_the_history_of_a_run_describes_the_first_regions(world):
    """The median of the finite radii and the mean fraction nearby, of the first eight forgotten points."""
    trained, records = world
    request = request_of(records, *range(20, 40))
    outcome = get_method("patch").forget(trained, request, Context(records, CPU))
    (entry,) = [entry for entry in outcome.history if "region_radius_median" in entry]
    state = outcome.trained.state["patches"]
    network = trace(trained.model, records.input_shape)
    points = torch.from_numpy(np.asarray(records.features)[records.rows(request.record_ids)][:8])
    sizes = measure_regions(network, points, Box(state["box.low"], state["box.high"]))
    radii = [size.radius for size in sizes if size.radius is not None and np.isfinite(size.radius)]
    assert len(set(radii)) > 2
    assert entry["region_radius_median"] == pytest.approx(np.median(radii))
    assert entry["region_radius_median"] != pytest.approx(np.mean(radii), rel=1e-3)
    assert entry["region_share_nearby"] == pytest.approx(np.mean([size.nearby for size in sizes]))
    assert entry["region_point_only"] == np.mean([size.point_only for size in sizes])
    assert entry["patches"] == len(state["target"])
    assert entry["largest_shift"] == pytest.approx(float(state["shift"].max()))


def test_radii_that_were_not_computed_or_are_infinite_are_not_in_the_median(world, monkeypatch):
    trained, records = world
    sizes = [RegionSize(radius, None, 0.25, 0.01) for radius in (3.0, None, math.inf, 1.0, 1.5)]
    monkeypatch.setattr("expunge.methods.patch.measure_regions", lambda *_: sizes)
    outcome = get_method("patch").forget(trained, request_of(records, *range(20, 25)), Context(records, CPU))
    assert [entry["region_radius_median"] for entry in outcome.history if "region_radius_median" in entry] == [1.5]
    sizes[:] = sizes[1:2]
    outcome = get_method("patch").forget(trained, request_of(records, 20), Context(records, CPU))
    assert [entry["region_radius_median"] for entry in outcome.history if "region_radius_median" in entry] == [None]


def test_records_between_0_and_1_have_the_unit_box():
    """A record may hold the value 0 itself, as the background of an image does."""
    records = toy_records((6,))
    features = np.array(records.features)
    features = 0.1 + 0.8 * (features - features.min()) / (features.max() - features.min())
    features[7, 0] = 0.0
    records = dataclasses.replace(records, features=features.astype(np.float32))
    blueprint = architecture("mlp", records, normalise="none", widths=(8,))
    recipe = get_recipe("one-cycle", epochs=2, batch_size=40)
    trained = train(records, toy_split(records), blueprint, recipe=recipe, runtime=CPU)
    state = get_method("patch").forget(trained, request_of(records, 7), Context(records, CPU)).trained.state["patches"]
    assert torch.equal(state["box.low"], torch.zeros(6, dtype=torch.float64))
    assert torch.equal(state["box.high"], torch.ones(6, dtype=torch.float64))


def test_defaults_are_those_of_the_python_interface() -> None:
    """What docs/methods.md refers to: an option that `PointSelection` has too has its default."""
    defaults = {field.name: field.default for field in dataclasses.fields(PointSelection)}
    shared = {name: value for name, value in dataclasses.asdict(get_method("patch")).items() if name in defaults}
    assert {"rounds", "clusters", "fraction", "budget"} <= set(shared)
    assert shared == {name: defaults[name] for name in shared}
