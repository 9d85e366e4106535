"""Small networks that are pruned in several ways and un-pruned by replay."""

from __future__ import annotations

import dataclasses
from typing import Any

from expunge.core.mask import Mask
from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.models import Architecture
from expunge.sparsity import Pruning, prune
from expunge.training import Recipe, Runtime, train

CPU = Runtime("cpu")
T, K = 4, 2
RECIPE = Recipe(
    name="test", epochs=T, batch_size=48, learning_rate=0.1, lr_schedule="cosine", rewind=0.25, keep_epochs=(K,)
)
LAYERS = ("conv", "linear")
FILTERS = {"sparsity": 0.5, "layers": ("conv",), "granularity": "filter", "scope": "layer", "criterion": "filter-l2"}
HALVES = {"schedule": "imp", "options": {"rate": 0.5}}
#: Ways to make the mask of a trained network.
PRUNINGS: dict[str, dict[str, Any]] = {
    "omp": {"sparsity": 0.8},
    "one-shot": {"sparsity": 0.8, "schedule": "one-shot", "scope": "erk"},
    "filters": FILTERS,
    "2:4": {"granularity": "2:4"},
    "SynFlow": {"sparsity": 0.6, "criterion": "SynFlow", "scope": "layer"},
    "Taylor": {"sparsity": 0.7, "criterion": "Taylor", "schedule": "one-shot", "score_records": 100},
    "imp": {"sparsity": 0.8, **HALVES},
    "imp-filters": {**FILTERS, "schedule": "imp", "options": {"rate": 0.4}},
    "imp-full": {"sparsity": 0.7, **HALVES, "epochs": "full", "criterion": "SNIP", "score_records": 90},
}


def make_dense(digits: Records, split: Split, recipe: Recipe = RECIPE, **options: Any) -> Trained:
    network = Architecture("small-cnn", {"widths": (6, 8)}, digits.input_shape, digits.classes, **options)
    return train(digits, split, network, recipe=recipe, seed=5, runtime=CPU)


def shrink(dense: Trained, digits: Records, name: str = "omp", *, keep: bool = True, **changes: Any) -> Trained:
    chosen = {"layers": LAYERS, "keep_weights": keep, **PRUNINGS[name], **changes}
    return prune(dense, Pruning(**chosen), Context(digits, CPU, seed=2))


def replay(trained: Trained, request: ForgetRequest, context: Context, epochs: int = 0, **options: Any) -> Outcome:
    """Replay with an inner method that trains for `epochs` epochs."""
    method = get_method("Un-prune", rule="replay", method_options={"epochs": epochs}, **{"prefix_epochs": K, **options})
    return method.forget(trained, request, context)


def same(a: Trained, b: Trained) -> bool:
    assert a.mask is not None
    assert b.mask is not None
    return (a.hash, a.mask.hash()) == (b.hash, b.mask.hash())


def of_mask(trained: Trained) -> Mask:
    assert trained.mask is not None
    return trained.mask


def declare(trained: Trained, **changes: Any) -> Trained:
    return dataclasses.replace(trained, provenance=dataclasses.replace(trained.provenance, **changes))
