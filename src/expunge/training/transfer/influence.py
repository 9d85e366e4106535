"""The influence of each source class on a target task: what the target gains if the class is in the source data.

Models are trained on half of the source classes each, and transferred; the influence of a class is the mean result of
the models that had it, minus that of the others [Jain2022]_. [Jia2023] forgets the classes of the lowest influence.

.. [Jain2022] Jain et al.: A data-based perspective on transfer learning, arXiv 2207.05739.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError
from expunge.core.reading.limits import MODELS
from expunge.core.seeds import derive, numpy_generator
from expunge.core.show import repr_fields
from expunge.core.split import Split
from expunge.data.records import Records
from expunge.training.ensemble import Member, train_ensemble
from expunge.training.progress import Progress
from expunge.training.recipes import Recipe
from expunge.training.runtime import Runtime

from .target import linear_probe

if TYPE_CHECKING:
    from expunge.models import Architecture


@dataclasses.dataclass(frozen=True, eq=False)
class ClassInfluence:
    """The influence of source classes on a target task.

    Attributes:
        class_names: `K` names.
        influence: `K` differences of the mean probability of the true target label, with the class and without.
        standard_errors: `K` standard errors of these differences, over the models; NaN with two models.
        models: number of models.
    """

    class_names: tuple[str, ...]
    influence: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    models: int

    __repr__ = repr_fields

    def most_harmful_first(self) -> tuple[str, ...]:
        """The names of the classes by ascending influence; equal ones in their order."""
        order = np.argsort(self.influence, kind="stable")
        return tuple(self.class_names[index] for index in order)


def measure_class_influence(
    source: Records,
    split: Split,
    target: Records,
    target_split: Split,
    architecture: Architecture,
    *,
    recipe: str | Recipe,
    models: int = 16,
    seed: int = 0,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> ClassInfluence:
    """Train models on halves of the source classes, probe them on the target, and compare with and without each class.

    Models 2 i and 2 i + 1 get complementary halves of the classes, drawn from the seed, so every class is in half of
    the models. The result of a model is the mean probability of the true label on the target's validation records, by a
    linear probe (`linear_probe`) on its training records.

    Args:
        source: records of the source task.
        split: of the source; its retain set is trained on.
        target: records of the target task, of the same input shape.
        target_split: of the target.
        architecture: the network of all models, with as many outputs as the source has classes.
        recipe: the recipe of all models; it must select the last epoch.
        models: number of models, even and at least 2.
        seed: seeds halves, initial weights and orders.
        runtime: device and precision.
        progress: callback for progress in records.

    Raises:
        ConfigError: the number of models is odd or less than 2.
        DataError: the source has fewer than 2 classes, or the target no validation records.

    >>> import expunge
    >>> from expunge.training.transfer import measure_class_influence, take_classes
    >>> records = expunge.load_records("digits")
    >>> source, target = take_classes(records, ["0", "1", "2", "3"]), take_classes(records, ["8", "9"])
    >>> splits = [expunge.make_split(one, seed=0, limit=80) for one in (source, target)]
    >>> network = expunge.architecture("mlp", source, widths=(8,), normalise="none")
    >>> found = measure_class_influence(
    ...     source, splits[0], target, splits[1], network, recipe=expunge.Recipe(epochs=1), models=4
    ... )
    >>> sorted(found.most_harmful_first())
    ['0', '1', '2', '3']
    """
    if not 2 <= models <= MODELS or models % 2:
        raise ConfigError(f"the number of models must be even and at most {MODELS:,}, not {models}", where="models")
    if source.classes < 2:
        raise DataError("the influence of a class needs at least 2 source classes", where=source.name)
    inside = draw_halves(source.classes, models, seed)
    rows = source.rows(split.retain)
    members = []
    for number, classes in enumerate(inside):
        chosen = rows[classes[source.labels[rows]]]
        if len(chosen) == 0:
            raise DataError("half of the source classes have no training record", where=source.name)
        members.append(Member(np.sort(chosen), seed=derive(seed, "class influence", number) % 2**31))
    ensemble = train_ensemble(
        source, architecture, members, recipe=recipe, runtime=runtime, snapshots=(), progress=progress,
        label="class influence",
    )  # fmt: skip
    results = np.asarray(
        [
            linear_probe(
                ensemble.model(number), source, target, target_split, on="validation", runtime=runtime
            ).probability
            for number in range(models)
        ]
    )
    return compare_results(source.class_names, inside, results)


def draw_halves(classes: int, models: int, seed: int) -> NDArray[np.bool_]:
    """Assign classes to models, `models x K` bool: models 2 i and 2 i + 1 get complementary halves."""
    inside = np.zeros((models, classes), dtype=np.bool_)
    for pair in range(models // 2):
        order = numpy_generator(seed, "class halves", pair).permutation(classes)
        size = classes // 2 + (classes % 2) * (pair % 2)
        inside[2 * pair, order[:size]] = True
        inside[2 * pair + 1] = ~inside[2 * pair]
    return inside


def compare_results(
    class_names: tuple[str, ...], inside: NDArray[np.bool_], results: NDArray[np.float64]
) -> ClassInfluence:
    """The influence of each class from the results of models with it and without it.

    Args:
        class_names: `K` names.
        inside: `M x K`, whether a model had a class; each column has both values.
        results: `M` results.
    """
    influence, errors = np.empty(len(class_names)), np.empty(len(class_names))
    for index in range(len(class_names)):
        parts = results[inside[:, index]], results[~inside[:, index]]
        influence[index] = parts[0].mean() - parts[1].mean()
        variances = [part.var(ddof=1) / len(part) if len(part) > 1 else np.nan for part in parts]
        errors[index] = np.sqrt(sum(variances))
    return ClassInfluence(class_names, influence, errors, len(results))
