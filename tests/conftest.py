"""What the tests share: small records, a split, a dense and a sparse model. Seconds to make, once a session."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.models import Architecture
from expunge.sparsity import Pruning, prune
from expunge.training import Context, Recipe, Runtime, train

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# The same examples on every run, so that a change is judged by what it changed; the profile `explore` draws new ones.
settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.register_profile("explore", derandomize=False, print_blob=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make test-fast` leaves out (.ci/fast_lane.py)."""
    lines = Path(__file__).with_name("slow.txt").read_text(encoding="utf-8").splitlines()
    slow = {line.split()[1] for line in lines if line and not line.startswith("#")}
    for item in items:
        if item.nodeid.partition("[")[0] in slow:
            item.add_marker(pytest.mark.slow)


DIGITS = 480
RECIPE = Recipe(name="test", epochs=12, batch_size=48, learning_rate=0.1, lr_schedule="cosine", rewind=0.17)


@pytest.fixture(scope="session")
def digits() -> Records:
    """480 of scikit-learn's digits: 1 x 8 x 8, uint8, 10 classes, ids `d0000`..."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images[:DIGITS] * 15).astype(np.uint8)[:, None]
    return Records(
        name="digits-480",
        record_ids=np.array([f"d{i:04d}" for i in range(DIGITS)]),
        labels=bunch.target[:DIGITS],
        class_names=tuple("0123456789"),
        features=np.ascontiguousarray(images),
    )


@pytest.fixture(scope="session")
def digits_split(digits: Records) -> Split:
    """290 to train on, 50 to validate, 90 to test, 50 non_members; drawn with numpy, not with the split maker."""
    order = np.random.default_rng(7).permutation(digits.record_ids)
    parts = np.split(order, [290, 340, 430])
    return Split(
        retain=parts[0], forget=(), validation=parts[1], test=parts[2], non_members=parts[3], origin={"kind": "test"}
    )


@pytest.fixture(scope="session")
def request_20(digits_split: Split) -> ForgetRequest:
    """Twenty records to forget."""
    return ForgetRequest(np.sort(digits_split.retain)[::14][:20])


@pytest.fixture(scope="session")
def cpu() -> Runtime:
    return Runtime(device="cpu")


@pytest.fixture(scope="session")
def dense(digits: Records, digits_split: Split, cpu: Runtime) -> Trained:
    """A small CNN with BatchNorm, trained for twelve epochs. Tests must not change it."""
    network = Architecture("small-cnn", {"widths": (8, 16)}, digits.input_shape, digits.classes)
    return train(digits, digits_split, network, recipe=RECIPE, seed=3, runtime=cpu)


@pytest.fixture(scope="session")
def sparse(dense: Trained, digits: Records, cpu: Runtime) -> Trained:
    """The dense model pruned to 60 % in convolutions and the classifier. Tests must not change it."""
    return prune(dense, Pruning(sparsity=0.6, layers=("conv", "linear")), Context(digits, cpu))


@pytest.fixture(scope="session")
def mlp(digits: Records, digits_split: Split, cpu: Runtime) -> Trained:
    """A small perceptron without BatchNorm, two epochs."""
    network = Architecture("mlp", {"widths": (12,)}, digits.input_shape, digits.classes)
    return train(digits, digits_split, network, recipe=dataclasses.replace(RECIPE, epochs=2), seed=5, runtime=cpu)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory of the real data sets; skips, and says so, where EXPUNGE_DATA is not set."""
    place = os.environ.get("EXPUNGE_DATA")
    if not place:
        pytest.skip("EXPUNGE_DATA is not set: it should name the directory of the real data sets")
    if not Path(place).is_dir():
        pytest.fail(f"EXPUNGE_DATA={place} is not a directory")
    return Path(place)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory to work in, where Python finds modules; no data directory from outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    yield tmp_path
    sys.modules.pop("my_network", None)
