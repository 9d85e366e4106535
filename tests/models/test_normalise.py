"""Input normalisation: closed forms, and constants against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core.errors import ModelError
from expunge.data.records import Normalisation, Records
from expunge.models import Architecture, Normalise, measure_normalisation
from expunge.models import normalise as module


def made(features: np.ndarray | None, stream: object = None) -> Records:
    count = len(features) if features is not None else len(stream)  # type: ignore[arg-type]
    ids = [f"r{i:03d}" for i in range(count)]
    return Records("made", ids, np.zeros(count), ("a",), features=features, stream=stream)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3,), (3, 7), (3, 4, 5)])
def test_constants_are_broadcast_over_axis_1(shape: tuple[int, ...]) -> None:
    layer = Normalise(Normalisation((1.0, 2.0, 3.0), (2.0, 4.0, 0.5)), 3)
    x = torch.rand(2, *shape)
    for channel, (mean, std) in enumerate([(1.0, 2.0), (2.0, 4.0), (3.0, 0.5)]):
        torch.testing.assert_close(layer(x)[:, channel], (x[:, channel] - mean) / std)


@pytest.mark.parametrize("name", ["mlp", "small-cnn", "lenet5", "resnet18", "resnet20", "vgg16-bn", "alexnet"])
def test_every_network_normalises_first_and_carries_its_constants(name: str) -> None:
    shape = (3, 32, 32)
    constants = Normalisation((0.1, 0.2, 0.3), (2.0, 3.0, 4.0))
    options = {"width": 4} if name == "resnet18" else {}
    with_constants = Architecture(name, options, shape, 4, constants).build(1).eval()
    without = Architecture(name, options, shape, 4).build(1).eval()
    x = torch.rand(2, *shape)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (constants.mean, constants.std))
    with torch.no_grad():
        torch.testing.assert_close(with_constants(x), without((x - mean) / std))
    state = with_constants.state_dict()
    assert state["normalise.mean"].tolist() == pytest.approx(constants.mean)
    assert state["normalise.deviation"].tolist() == list(constants.std)
    assert not any(name.startswith("normalise") for name, _ in with_constants.named_parameters())


def test_the_one_dimensional_network_normalises_too() -> None:
    model = Architecture("cnn1d", {}, (2, 16), 3, Normalisation((5.0, 5.0), (1.0, 1.0))).build(1).eval()
    plain = Architecture("cnn1d", {}, (2, 16), 3).build(1).eval()
    x = torch.rand(2, 2, 16)
    torch.testing.assert_close(model(x), plain(x - 5.0))


@pytest.mark.parametrize("shape", [(5,), (3, 8), (3, 4, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_measured_constants_equal_numpys(shape: tuple[int, ...], dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 7)
    features = (np.random.default_rng(1).random((50, *shape)) * 200).astype(dtype)
    records = made(features)
    some = records.record_ids[5:40]
    constants = measure_normalisation(records, some[::-1])
    values = features[5:40].astype(np.float64) / (255 if dtype is np.uint8 else 1)
    axes = tuple(a for a in range(values.ndim) if a != 1)
    np.testing.assert_allclose(constants.mean, values.mean(axis=axes), rtol=1e-6)
    np.testing.assert_allclose(constants.std, values.std(axis=axes), rtol=1e-6)
    assert constants.origin == "training records"


def test_a_stream_gives_the_same_constants_as_memory() -> None:
    features = np.random.default_rng(2).integers(0, 256, (30, 3, 4, 4), dtype=np.uint8)
    stream = [(torch.from_numpy(image), 0) for image in features]
    in_memory = made(features)
    assert measure_normalisation(made(None, stream), in_memory.record_ids) == measure_normalisation(
        in_memory, in_memory.record_ids
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=30), st.floats(-1e4, 1e4, width=32))
def test_measured_features_come_out_with_mean_0_and_std_1(values: list[float], constant: float) -> None:
    features = np.stack([values, [constant] * len(values)], axis=1).astype(np.float32)
    records = made(features)
    constants = measure_normalisation(records, records.record_ids)
    assert constants.std[1] == 1.0
    assert constants.mean[1] == pytest.approx(constant, rel=1e-6, abs=1e-30)
    spread = features[:, 0].astype(np.float64).std()
    if features[:, 0].min() == features[:, 0].max():
        assert constants.std[0] == 1.0
    elif spread > 1e-3 * (1 + np.abs(features[:, 0]).max()):
        out = Normalise(constants, 2)(torch.from_numpy(features))[:, 0].double()
        assert abs(float(out.mean())) < 1e-2
        assert float(out.std(correction=0)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("mean", "std", "says"),
    [
        ((0.0,), (1.0, 1.0), "1 numbers"),
        ((0.0, 0.0), (1.0, 0.0), "std"),
        ((0.0, 0.0), (1.0, -1.0), "std"),
        ((0.0, float("nan")), (1.0, 1.0), "mean"),
        ((0.0, 0.0), (1.0, float("inf")), "std"),
    ],
)
def test_statistics_that_cannot_be_used(mean: tuple, std: tuple, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        Architecture("mlp", {}, (2,), 3, Normalisation(mean, std)).build()
