"""The registries: one for each kind of entry. The packages that define the kinds register the entries.

| kind | decorator | entry |
|---|---|---|
| methods | `expunge.methods.register_method` | a subclass of `Method` |
| criteria | `expunge.sparsity.register_criterion` | `Criterion` |
| scopes | `expunge.sparsity.register_scope` | `Scope` |
| granularities | `expunge.sparsity.register_granularity` | `Granularity` |
| schedules | `expunge.sparsity.register_schedule` | `Schedule` |
| scores | `expunge.evaluation.register_score` | `ScoreDefinition` |
| sources | `expunge.data.register_source` | `Source` |
| models | `expunge.models.register_model` | a subclass of `torch.nn.Module` |
| un-pruning rules | `expunge.methods.unprune.register_rule` | a subclass of `UnpruneRule` |
| stages | `expunge.experiments.register_stage` | `Stage` |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from expunge.core.errors import MethodError, ModelError

from .registry import Registry, is_reference

METHODS: Registry[Any] = Registry(
    "method", "methods", package="expunge.methods", decorator="register_method", error=MethodError,
    also={
        "finetune": "FT", "finetuning": "FT", "gradientascent": "GA", "randomlabel": "RL", "randomlabels": "RL",
        "retraining": "Retrain", "unpruning": "Un-prune",
    },
)  # fmt: skip
CRITERIA: Registry[Any] = Registry(
    "criterion", "criteria", package="expunge.sparsity.criteria", decorator="register_criterion"
)
SCOPES: Registry[Any] = Registry("scope", "scopes", package="expunge.sparsity.masks", decorator="register_scope")
GRANULARITIES: Registry[Any] = Registry(
    "granularity", "granularities", package="expunge.sparsity.masks", decorator="register_granularity"
)
SCHEDULES: Registry[Any] = Registry(
    "schedule", "schedules", package="expunge.sparsity.schedules", decorator="register_schedule"
)
SCORES: Registry[Any] = Registry("score", "scores", package="expunge.evaluation.scores", decorator="register_score")
SOURCES: Registry[Any] = Registry("data source", "sources", package="expunge.data.sources", decorator="register_source")
MODELS: Registry[Any] = Registry(
    "model", "models", package="expunge.models.architectures", decorator="register_model", error=ModelError,
    hint="a custom network is given as package.module:factory",
)  # fmt: skip
UNPRUNING_RULES: Registry[Any] = Registry(
    "un-pruning rule", "unprune_rules", package="expunge.methods.unprune", decorator="register_rule", error=MethodError
)
STAGES: Registry[Any] = Registry("stage", "stages", package="expunge.experiments.stages", decorator="register_stage")

#: All registries, by their plural; an installed package adds entries in the group `expunge.<plural>`.
REGISTRIES: Mapping[str, Registry[Any]] = {
    registry.plural: registry
    for registry in (
        METHODS,
        CRITERIA,
        SCOPES,
        GRANULARITIES,
        SCHEDULES,
        SCORES,
        SOURCES,
        MODELS,
        UNPRUNING_RULES,
        STAGES,
    )
}


def find_named_modules(values: Any) -> set[str]:
    """The modules of everything that nested values name: references, and names of any kind. Nothing is imported.

    What a named dataclass names in the defaults of its fields counts too, such as the inner method of un-pruning.

    A string that is a name by coincidence adds a module too many to a key, which is harmless; a module that is missing
    would not be.
    """
    found: set[str] = set()
    todo, seen = set(find_strings(values)), set()
    while todo:
        text = todo.pop()
        seen.add(text)
        if is_reference(text):
            found.add(text.partition(":")[0])
        for registry in REGISTRIES.values():
            module = None if registry is STAGES else registry.find_module(text)  # no configuration names a stage
            if module is not None:
                found.add(module)
                todo |= set(find_strings(registry.read_defaults(text))) - seen
    return found


def find_strings(values: Any) -> Iterator[str]:
    """Find every string in nested mappings, lists and tuples; keys do not count."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from find_strings(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from find_strings(value)
