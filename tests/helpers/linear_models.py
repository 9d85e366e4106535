"""Linear models at a known optimum, as `Trained`, on small drawn tables."""

from __future__ import annotations

import numpy as np
import torch

from expunge.core.mask import Mask, MaskProvenance
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained
from expunge.data.records import Records
from expunge.models import Architecture

DECAY = 0.1


def draw_records(count: int = 60, features: int = 5, classes: int = 3, seed: int = 0) -> tuple[Records, Split]:
    """Standard normal features, and labels that depend on them; 40 % of the records are test and validation."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(count, features)).astype(np.float32)
    labels = (x @ draw.normal(size=(features, classes)) + draw.normal(size=(count, classes))).argmax(1)
    ids = np.array([f"r{i:03d}" for i in range(count)])
    names = tuple(f"class {i}" for i in range(classes))
    records = Records("drawn", ids, labels, names, features=x)
    train = int(0.6 * count)
    rest = np.array_split(ids[train:], 3)
    return records, Split(retain=ids[:train], forget=(), validation=rest[0], test=rest[1], non_members=rest[2])


def with_ones(x: np.ndarray) -> np.ndarray:
    return np.hstack([x.astype(np.float64), np.ones((len(x), 1))])


def softmax(z: np.ndarray) -> np.ndarray:
    z = np.exp(z - z.max(1, keepdims=True))
    return z / z.sum(1, keepdims=True)


def fit_softmax(x: np.ndarray, y: np.ndarray, classes: int, decay: float = DECAY) -> np.ndarray:
    """`K x (F + 1)`: the minimum of the mean cross-entropy plus decay / 2 |theta|^2, by Newton's method."""
    ones, theta = with_ones(x), np.zeros((classes, x.shape[1] + 1))
    for _ in range(30):
        gradient = (softmax(ones @ theta.T) - np.eye(classes)[y]).T @ ones / len(x) + decay * theta
        step = np.linalg.solve(softmax_hessian(ones, theta) / len(x) + decay * np.eye(theta.size), gradient.ravel())
        theta = theta - step.reshape(theta.shape)
    assert np.abs(gradient).max() < 1e-12
    return theta


def softmax_hessian(ones: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """The Hessian of the summed cross-entropy, for theta in rows of classes."""
    p = softmax(ones @ theta.T)
    total = np.zeros((theta.size, theta.size))
    for row, probability in zip(ones, p, strict=True):
        total += np.kron(np.diag(probability) - np.outer(probability, probability), np.outer(row, row))
    return total


def fit_ridge(x: np.ndarray, y: np.ndarray, classes: int, decay: float = DECAY, kept: np.ndarray | None = None):
    """`K x (F + 1)`: the minimum of mean |theta x - e_y|^2 / 2 + decay / 2 |theta|^2, on the kept weights."""
    ones, theta = with_ones(x), np.zeros((classes, x.shape[1] + 1))
    hot = np.eye(classes)[y]
    for k in range(classes):
        free = np.ones(ones.shape[1], bool) if kept is None else np.append(kept[k], True)
        inner = ones[:, free]
        matrix = inner.T @ inner / len(x) + decay * np.eye(free.sum())
        theta[k, free] = np.linalg.solve(matrix, inner.T @ hot[:, k] / len(x))
    return theta


def make_trained(
    records: Records, split: Split, theta: np.ndarray, kept: np.ndarray | None = None, decay: float = DECAY
) -> Trained:
    """A linear network with these weights, as if it had been trained with this weight decay."""
    network = Architecture("mlp", {"widths": ()}, records.input_shape, records.classes)
    model = network.build(4)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(theta[:, :-1]))
        model.classifier.bias.copy_(torch.from_numpy(theta[:, -1]))
    mask = None
    if kept is not None:
        mask = Mask({"classifier.weight": torch.from_numpy(kept)}, MaskProvenance("drawn"))
    provenance = Provenance(
        network.to_json(), {"name": records.name, "hash": records.hash}, {"weight_decay": decay, "name": "exact"},
        {"initial": 4, "order": 5, "training": 4}, history=("solved",),
    )  # fmt: skip
    return Trained(model, mask, split, provenance)


def get_theta(trained: Trained) -> np.ndarray:
    layer = trained.model.classifier
    return np.hstack([layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()[:, None]])


def arrays(records: Records, ids) -> tuple[np.ndarray, np.ndarray]:
    rows = records.rows(ids)
    return records.features[rows], records.labels[rows]
