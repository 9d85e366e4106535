"""expunge: machine unlearning for PyTorch classifiers, with first-class support for pruned models.

The names below are what most programs need. Each is imported on first use, so `import expunge` is cheap and does not
import torch. From a trained model to an unlearned, scored one:

    import expunge

    records = expunge.load_records("digits")
    trained = expunge.load_trained("runs/digits/trained")
    request = expunge.forget_ids(records, trained.split, "ids.txt")
    context = expunge.Context(records, seed=0)
    unlearned = expunge.get_method("FT", epochs=3).forget(trained, request, context)
    retrained = expunge.get_method("Retrain").forget(trained, request, context)
    scores = expunge.evaluate(unlearned.trained, request, records, reference=retrained.trained, cost=unlearned.cost)
    print(scores.text())
    expunge.save_trained(unlearned.trained, "runs/digits/unlearned-ft")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .core.lazy import import_on_use

if TYPE_CHECKING:
    from .api import adopt
    from .core.errors import ExpungeError, ExpungeWarning
    from .core.mask import Mask
    from .core.outcome import Cost, Outcome
    from .core.request import ForgetRequest
    from .core.split import Split
    from .core.trained import Provenance, Trained
    from .data import (
        Records,
        blank_columns,
        correct_labels,
        forget_class,
        forget_column,
        forget_ids,
        forget_memorised,
        forget_random,
        forget_subjects,
        load_records,
        make_split,
        select_forget,
        source_names,
    )
    from .evaluation import Scores, evaluate, summarise
    from .experiments import RunConfig, load_config, load_plan, run_plan
    from .methods import Method, get_method, method_names, method_table
    from .models import Architecture, architecture, load_trained, model_names, save_trained
    from .report import ReportContent, write_report
    from .sparsity import Pruning, adopt_weights, prune
    from .training import Context, Recipe, Runtime, get_recipe, predict_logits, train
    from .workflow import check_run

__version__ = "0.1.0"

_HOME: dict[str, tuple[str, ...]] = {
    "api": ("adopt",),
    "core.errors": ("ExpungeError", "ExpungeWarning"),
    "core.mask": ("Mask",),
    "core.outcome": ("Cost", "Outcome"),
    "core.request": ("ForgetRequest",),
    "core.split": ("Split",),
    "core.trained": ("Provenance", "Trained"),
    "data": (
        "Records",
        "blank_columns",
        "correct_labels",
        "forget_class",
        "forget_column",
        "forget_ids",
        "forget_memorised",
        "forget_random",
        "forget_subjects",
        "load_records",
        "make_split",
        "select_forget",
        "source_names",
    ),
    "evaluation": ("Scores", "evaluate", "summarise"),
    "experiments": ("RunConfig", "load_config", "load_plan", "run_plan"),
    "methods": ("Method", "get_method", "method_names", "method_table"),
    "models": ("Architecture", "architecture", "load_trained", "model_names", "save_trained"),
    "report": ("ReportContent", "write_report"),
    "sparsity": ("Pruning", "adopt_weights", "prune"),
    "training": ("Context", "Recipe", "Runtime", "get_recipe", "predict_logits", "train"),
    "workflow": ("check_run",),
}

__all__ = [
    "Architecture",
    "Context",
    "Cost",
    "ExpungeError",
    "ExpungeWarning",
    "ForgetRequest",
    "Mask",
    "Method",
    "Outcome",
    "Provenance",
    "Pruning",
    "Recipe",
    "Records",
    "ReportContent",
    "RunConfig",
    "Runtime",
    "Scores",
    "Split",
    "Trained",
    "__version__",
    "adopt",
    "adopt_weights",
    "architecture",
    "blank_columns",
    "check_run",
    "correct_labels",
    "evaluate",
    "forget_class",
    "forget_column",
    "forget_ids",
    "forget_memorised",
    "forget_random",
    "forget_subjects",
    "get_method",
    "get_recipe",
    "load_config",
    "load_plan",
    "load_records",
    "load_trained",
    "make_split",
    "method_names",
    "method_table",
    "model_names",
    "predict_logits",
    "prune",
    "run_plan",
    "save_trained",
    "select_forget",
    "source_names",
    "summarise",
    "train",
    "write_report",
]

import_on_use(__name__, _HOME)
