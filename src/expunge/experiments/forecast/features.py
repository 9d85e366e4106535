"""What the cost of a stage depends on: its configuration and those of the stages before it, without seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from expunge.core.hashing import hash_json
from expunge.core.show import repr_fields

#: Inputs whose configuration a stage continues, the closest first; other inputs (the reference) are only compared with.
CONTINUED = ("outcome", "trained", "shadow_replay", "shadow_models", "data")
#: Keys that change what is computed and not how much.
_SEEDS = ("seed", "seeds", "files", "file", "dir")


@dataclasses.dataclass(frozen=True)
class Features:
    """What the cost of a stage depends on.

    Attributes:
        stage: name of the stage.
        alike: equal for stages whose configurations differ in seeds and files only.
        similar: equal for stages of one kind with the same data source, model, recipe, pruning schedule and method.
        work: what the duration of similar stages is about proportional to: records times epochs; None: not known.
        what: names the similar stages in messages.
    """

    stage: str
    alike: str
    similar: str
    work: float | None
    what: str

    __repr__ = repr_fields


def join_sections(config: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """The configuration of a stage together with those of the stages that it continues.

    Args:
        config: of the stage.
        inputs: input name to what this function returned for that stage; None: not known.

    Example:
        >>> join_sections({"method": {"name": "FT"}}, {"trained": {"model": {"name": "mlp"}, "records": 100}})
        {'model': {'name': 'mlp'}, 'records': 100, 'method': {'name': 'FT'}}
    """
    found: dict[str, Any] = {}
    for name in reversed(CONTINUED):
        found |= inputs.get(name) or {}
    return {**found, **config}


def describe_cost(stage: str, sections: Mapping[str, Any], inputs: tuple[str, ...] = ()) -> Features:
    """What the cost of a stage depends on.

    Args:
        stage: name of the stage.
        sections: see `join_sections`; `records` is the number of records of the data, if it is known.
        inputs: names of its inputs: a score without a reference costs less.

    Example:
        >>> sections = {"data": {"source": "digits"}, "model": {"name": "mlp"}, "records": 1000,
        ...             "training": {"recipe": "one-cycle", "epochs": 5}, "split": {"test": 0.2}, "seed": 3}
        >>> found = describe_cost("train", sections)
        >>> found.work, found.what
        (4000.0, 'train of mlp on digits')
        >>> found.alike == describe_cost("train", {**sections, "seed": 4}).alike
        True
    """
    bare = {name: value for name, value in sections.items() if name != "records"}
    alike = hash_json([stage, sorted(inputs), _drop_seeds(bare)])
    source, model, method = (_name(sections, *path) for path in (("data", "source"), ("model",), ("method",)))
    options = (sections.get("model") or {}).get("options")
    kind = [stage, source, model, options, _name(sections, "training", "recipe"), method]
    kind += [_name(sections, "sparsity", "schedule"), _name(sections, "leakage", "game")]
    kind += [epochs is None for epochs in _find_epochs(stage, sections)]  # the default is not known here
    what = stage
    if method and stage not in ("data", "train", "prune"):
        what += f" of {method}"
    if model and stage != "data":
        what += f" {'of' if what == stage else 'with'} {model}"
    return Features(
        stage, alike, hash_json(kind), _count_work(stage, sections), what + (f" on {source}" if source else "")
    )


def _name(sections: Mapping[str, Any], section: str, key: str = "name") -> str:
    found = sections.get(section)
    return str(found.get(key) or "") if isinstance(found, Mapping) else ""


def _drop_seeds(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _drop_seeds(below) for key, below in value.items() if key not in _SEEDS}
    return value


def _count_work(stage: str, sections: Mapping[str, Any]) -> float | None:
    """Records times epochs, as far as the configuration says so."""
    split, records = sections.get("split") or {}, sections.get("records")
    limit = split.get("limit")
    if limit is not None:
        records = limit if records is None else min(limit, records)
    if records is None:
        return None
    if stage == "data":
        return float(records)
    trained = records * (1 - sum(split.get(part) or 0.0 for part in ("validation", "non_members", "test")))
    if stage in ("score", "score_original"):
        return float(trained)
    own, repeated = _find_epochs(stage, sections)
    models = next((sections[name].get("models") for name in ("memorised", "shadow_models") if name in sections), None)
    return float(trained) * float(own or repeated or 1) * float(models or 1)


def _find_epochs(stage: str, sections: Mapping[str, Any]) -> tuple[Any, Any]:
    """The epochs that the options of the method say, and those of the training that the stage does or repeats."""
    training, method = (sections.get(name) or {} for name in ("training", "method"))
    own = (method.get("options") or {}).get("epochs") if stage == "forget" else None
    return own, training.get("epochs") if stage != "forget" or method.get("name") == "Retrain" else None
