"""Transfer to a target task: a linear probe on frozen features, and fine-tuning of the whole network."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import DataError
from expunge.core.mask import Mask
from expunge.core.seeds import torch_generator
from expunge.core.show import repr_fields
from expunge.core.split import Ids, Split
from expunge.core.trained import clone_model
from expunge.data.records import Records
from expunge.training.context import Context
from expunge.training.loop import fit, order_seed
from expunge.training.predict import predict_logits
from expunge.training.recipes import Recipe, get_recipe
from expunge.training.runtime import Runtime

from .features import compute_features, require_output_layer


@dataclasses.dataclass(frozen=True, eq=False)
class Transfer:
    """The result of a transfer.

    Attributes:
        accuracy: on the evaluated records of the target task, in %.
        probability: mean probability of the true label there, in [0, 1].
        seconds: wall-clock time, features and training included, evaluation excluded.
        records: number of evaluated records.
    """

    accuracy: float
    probability: float
    seconds: float
    records: int

    __repr__ = repr_fields


def linear_probe(
    model: nn.Module,
    source: Records,
    target: Records,
    split: Split,
    *,
    on: str = "test",
    strength: float = 1.0,
    runtime: Runtime | None = None,
) -> Transfer:
    """Fit a multinomial logistic regression on the features of the target's training records, which stay as they are.

    Features are divided by their standard deviation over these records; the penalty is ||w||^2 / (2 strength).

    Args:
        model: the network; not modified.
        source: records of the task that it was trained on.
        target: records of the target task.
        split: of the target: its training records, and those of the part `on`.
        on: the part that is evaluated: `test`, or `validation` to choose something by the result.
        strength: inverse strength of the penalty, scikit-learn's C.
        runtime: device and precision of the features.

    Raises:
        ModelError: see `compute_features`.
        DataError: a part is empty, or the training records have one class only.

    >>> import expunge
    >>> from expunge.training.transfer import linear_probe
    >>> records = expunge.load_records("digits")
    >>> split = expunge.make_split(records, seed=0, limit=200)
    >>> model = expunge.architecture("mlp", records, widths=(64,), normalise="none").build(seed=0)  # random features
    >>> found = linear_probe(model, records, records, split)
    >>> found.accuracy > 50, found.records == len(split.test)
    (True, True)
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train, test = _find_rows(target, split.train, "train"), _find_rows(target, getattr(split, on), on)
    if len(np.unique(target.labels[train])) < 2:
        raise DataError("the training records of the target have one class only", where=target.name)
    start = time.perf_counter()
    features = compute_features(model, source, target, train, runtime=runtime).astype(np.float64)
    mean, std = features.mean(axis=0), features.std(axis=0)
    std[std == 0] = 1.0
    probe = LogisticRegression(C=strength, max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 steps are enough to compare features
        probe.fit((features - mean) / std, target.labels[train])
    seconds = time.perf_counter() - start
    features = (compute_features(model, source, target, test, runtime=runtime).astype(np.float64) - mean) / std
    labels = target.labels[test]
    place = {int(label): column for column, label in enumerate(probe.classes_)}
    found = probe.predict_proba(features)
    known = np.asarray([place.get(int(label), -1) for label in labels])
    probability = np.where(known >= 0, found[np.arange(len(labels)), known], 0.0)
    return Transfer(
        100.0 * float((probe.classes_[found.argmax(axis=1)] == labels).mean()), float(probability.mean()), seconds,
        len(labels),
    )  # fmt: skip


def fine_tune(
    model: nn.Module,
    source: Records,
    target: Records,
    split: Split,
    *,
    recipe: str | Recipe,
    seed: int = 0,
    mask: Mask | None = None,
    on: str = "test",
    runtime: Runtime | None = None,
) -> Transfer:
    """Replace the output layer by one for the target's classes, and train the whole network on the target.

    Args:
        model: the network; not modified.
        source: records of the task that it was trained on.
        target: records of the target task.
        split: of the target: its training records, and those of the part `on`.
        recipe: a registered name or a `Recipe`; the last epoch is used.
        seed: seeds the new layer, the order and the augmentation.
        mask: weights that stay +0.0; the new output layer is dense.
        on: the part that is evaluated: `test`, or `validation` to choose something by the result.
        runtime: device and precision.

    Raises:
        ModelError: the logits are not the output of a linear layer, or the records have another shape.
        DataError: a part is empty.
        TrainingError: the loss is not finite.

    >>> import expunge
    >>> from expunge.training.transfer import fine_tune
    >>> records = expunge.load_records("digits")
    >>> split = expunge.make_split(records, seed=0, limit=200)
    >>> model = expunge.architecture("mlp", records, widths=(64,), normalise="none").build(seed=0)
    >>> fine_tune(model, records, records, split, recipe=expunge.Recipe(epochs=5, batch_size=32)).accuracy > 50
    True
    """
    recipe, runtime = get_recipe(recipe), runtime or Runtime()
    train, test = _find_rows(target, split.train, "train"), _find_rows(target, getattr(split, on), on)
    start = time.perf_counter()
    copied, mask = replace_output_layer(model, source, target, seed=seed, mask=mask)
    copied = runtime.place(copied)
    fit(copied, train, recipe, Context(target, runtime, order_seed(seed)), mask=mask, label="fine-tuning on the target")
    seconds = time.perf_counter() - start
    logits = predict_logits(copied, target, test, runtime=runtime).double()
    probabilities = torch.softmax(logits, dim=1).numpy()[np.arange(len(test)), target.labels[test]]
    correct = logits.argmax(dim=1).numpy() == target.labels[test]
    return Transfer(100.0 * float(correct.mean()), float(probabilities.mean()), seconds, len(test))


def replace_output_layer(
    model: nn.Module, source: Records, target: Records, *, seed: int, mask: Mask | None = None
) -> tuple[nn.Module, Mask | None]:
    """A copy of a network with an output layer for the target's classes; weights and bias are U(-1/sqrt(d), 1/sqrt(d)).

    Args:
        model: the network; not modified.
        source: records of the task that it was trained on.
        target: records of the target task.
        seed: of the new layer.
        mask: of the network; that of the output layer is left out.

    Raises:
        ModelError: the logits are not the output of a linear layer.
    """
    path = require_output_layer(model, source)
    copied = clone_model(model)
    parent, _, name = path.rpartition(".")
    old = copied.get_submodule(path)
    assert isinstance(old, nn.Linear)
    layer = nn.Linear(old.in_features, target.classes, bias=old.bias is not None).to(old.weight)
    generator, bound = torch_generator(seed, "transfer"), 1 / math.sqrt(old.in_features)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    setattr(copied.get_submodule(parent), name, layer)
    if mask is not None:
        kept = {key: value for key, value in mask.kept.items() if key != f"{path}.weight"}
        mask = dataclasses.replace(mask, kept=kept) if kept else None
    return copied, mask


def _find_rows(target: Records, ids: Ids, part: str) -> NDArray[np.int64]:
    rows = np.sort(target.rows(ids))
    if len(rows) == 0:
        raise DataError(f"the {part} part of the target's split is empty", where=target.name)
    return rows
