"""Several retrained references: the first is the reference, and all together give the noise floor."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from expunge.core.errors import ConfigError, RequestError
from expunge.evaluation import Scores
from expunge.evaluation.registry.reference_checks import SAME_RECORDS
from expunge.evaluation.seeds import noise_floors

_SEVERAL = "reference=[model.forget(rows, method='Retrain', seed=seed) for seed in (0, 1, 2)]"
#: What the scores of two references have to share.
_SAME = ("request", "base_split", "retain", "svc_records", "svc_ratios", "seed")


def list_references(reference: Any) -> list[Any]:
    """The references in a list: none, one, or several.

    Args:
        reference: None, one reference, or a list or tuple of them.

    Raises:
        ConfigError: the list is empty.

    Example:
        >>> list_references(None), list_references("one"), list_references(["one", "two"])
        ([], ['one'], ['one', 'two'])
    """
    if isinstance(reference, list | tuple):
        if not reference:
            raise ConfigError("the list is empty", where="reference", hint=_SEVERAL)
        return list(reference)
    return [] if reference is None else [reference]


def find_floors(references: Sequence[Scores]) -> dict[str, float]:
    """The noise floor of each score (`expunge.evaluation.noise_floors`); empty for fewer than two references.

    Args:
        references: the scores of the retrained models of one request, which differ in their seed.

    Raises:
        ConfigError: all references are one model.
        RequestError: one was scored for another request or retain set, or with other options.
    """
    if len(references) < 2:
        return {}
    for place, scores in enumerate(references):
        differing = [key for key in _SAME if scores.about.get(key) != references[0].about.get(key)]
        if differing:
            what = f"was scored for another request or with other options: {', '.join(differing)}"
            raise RequestError(what, where=f"reference[{place}]", hint=SAME_RECORDS)
    models = [scores.about.get("weights") for scores in references]
    if len(set(models)) == 1 and models[0] is not None:
        raise ConfigError(
            f"the {len(models)} references are one model: equal weights give no noise floor",
            where="reference",
            hint=_SEVERAL,
        )
    return noise_floors([{score.name: score.value for score in scores} for scores in references], models)


def add_floors(scores: Scores, references: Sequence[Scores]) -> Scores:
    """Add the noise floors of several references to scores, with the warnings about the further references.

    Args:
        scores: of a model.
        references: the scores of its references, the first of which the gaps are measured against.
    """
    floors = find_floors(references)
    if not floors:
        return scores
    about = {**scores.about, "noise_floors": floors, "references": len(references)}
    further = (warning for one in references[1:] for warning in one.warnings)
    warnings = {warning.message: warning for warning in (*scores.warnings, *further)}
    note = f"gaps are those to the first of {len(references)} references; the others give the noise floors"
    return dataclasses.replace(scores, about=about, warnings=tuple(warnings.values()), notes=(*scores.notes, note))
