"""The shapes of the JSON files of a run: trained.json, outcome.json, scores.json, details.json (docs/formats)."""

from __future__ import annotations

from typing import Any

from expunge.core.errors import FileError

from .shape import (
    Check,
    check_shape,
    integer,
    mapping,
    maybe,
    number,
    record,
    sequence,
    text,
)

_NAME, _LINE = text(1_000), text(20_000)
_SEED = integer(-(2**64), 2**64)
_NUMBERS = sequence(number())
_FIELD = record({"name": text(1_000), "shape": sequence(integer(1), longest=16), "dtype": _NAME})
_FIELDS = record({"fields": sequence(_FIELD, shortest=1, longest=1_000), "padding": text(1_000)})
#: The keys of an architecture; a file of another tool may leave most of them out.
ARCHITECTURE = record(
    {},
    {
        "name": maybe(_NAME),
        "factory": maybe(_NAME),
        "options": mapping(),
        "input_shape": sequence(integer(1), shortest=1, longest=16),
        "classes": integer(1),
        "normalisation": maybe(record({"mean": _NUMBERS, "std": _NUMBERS, "origin": _NAME})),
        "normalisation_from": maybe(_NAME),
        "initial": maybe(record({"file": _NAME, "hash": _NAME})),
        "call": maybe(record({"fields": maybe(_FIELDS), "output": text(1_000)})),
    },
)


def _check_checkpoints(value: Any, key: str) -> None:
    mapping(record({"records": _NAME, "count": integer(0), "run": _NAME}, {"mask": _NAME}), longest=100_000)(value, key)
    for epoch in value:
        text(pattern="[1-9][0-9]{0,8}")(epoch, f"{key}: a number of epochs")


_PROVENANCE = record(
    {"architecture": ARCHITECTURE},
    {
        "data": record({}, {"name": maybe(_NAME), "hash": maybe(_NAME)}),
        "recipe": mapping(keys=100),
        "seeds": mapping(_SEED),
        "weights_from": _NAME,
        "history": sequence(_LINE, longest=100_000),
        "initial_weights": _NAME,
        "checkpoints": _check_checkpoints,
        "assumed": sequence(_NAME, longest=100),
        "recorded": sequence(_NAME, longest=100),
        "weight_prefix": _NAME,
    },
)
TRAINED = record(
    {
        "hashes": record(
            {"weights": _NAME, "mask": maybe(_NAME), "split": _NAME, "state": mapping(_NAME)},
            {"base_split": _NAME},
        ),
        "provenance": _PROVENANCE,
    },
    {
        "influence_state": sequence(_NAME),
        "frozen": sequence(_NAME, longest=100_000),
        "versions": mapping(_NAME),
    },
)
_COUNT = integer(0)
_COST = record(
    {"trained_records": _COUNT, "forward_records": _COUNT, "retain_records": _COUNT, "seconds": number(low=0)},
    {"memory_mib": maybe(number()), "passes": number(low=0), "optimiser_steps": maybe(_COUNT)},
)
_REQUEST = record(
    {"record_ids": sequence(text(), longest=2**31), "selection": mapping(), "forgotten_class": maybe(integer(0))},
    {
        "hash": _NAME,
        "records": _COUNT,
        "hold": sequence(text(), longest=2**31),
        "correction": maybe(
            record(
                {"record_ids": sequence(text(), longest=2**31)},
                {"labels": sequence(_COUNT, longest=2**31), "blank": sequence(_COUNT), "fill": number()},
            )
        ),
    },
)
_CHANGE = record({"name": _NAME, "kind": _NAME, "total": _COUNT, "changed": _COUNT, "status": _NAME})
_MASK_CHANGE = record(
    {"name": _NAME, "weights": _COUNT, "before": _COUNT, "after": _COUNT, "newly_kept": _COUNT, "newly_pruned": _COUNT}
)
_TENSORS = sequence(_NAME, longest=100_000)
_EXTENT = record(
    {
        "status": text(known=("unchanged", "partly rewritten", "rewritten")),
        "tensors": _COUNT, "changed_tensors": _COUNT, "entries": _COUNT, "changed_entries": _COUNT,
    },
    {"unchanged_names": _TENSORS, "names": _TENSORS, "from_forget": maybe(number(low=0, high=1))},
)  # fmt: skip
_BOUND = record(
    {"epsilon": number(low=0), "delta": number(low=0, high=1), "noise": number(low=0)},
    {
        "distance": number(low=0), "steps": _COUNT, "smoothness": number(low=0), "gradient_bound": number(low=0),
        "assumptions": sequence(_LINE, longest=100),
    },
)  # fmt: skip
OUTCOME = record(
    {"request": _REQUEST, "cost": _COST},
    {
        "method": record(
            {"name": _NAME, "options": mapping(), "guarantee": _NAME},
            {"relative_to": maybe(record({"file": _NAME, "hash": _NAME})), "bound": _BOUND},
        ),
        "state": record(
            {},
            {
                "rewrote": sequence(_NAME), "dropped": sequence(_NAME), "carried": sequence(_NAME),
                "recomputed": sequence(_NAME), "meaning": mapping(_LINE), "extent": mapping(_EXTENT),
                "changes": sequence(_CHANGE, longest=100_000), "mask": sequence(_MASK_CHANGE, longest=100_000),
            },
        ),
        "hashes": mapping(maybe(_NAME)),
        "seeds": mapping(_SEED),
        "provenance": _PROVENANCE,
        "history": sequence(mapping()),
        "versions": mapping(_NAME),
    },
)  # fmt: skip


def _check_order(value: Any, key: str) -> None:
    record({"low": number(), "high": number()}, {"level": number(low=0, high=1)})(value, key)
    if value["low"] > value["high"]:
        raise FileError("low is above high", where=key)


_SCORE = record(
    {"name": text(200), "value": number(), "unit": text(50), "direction": text(known=("higher", "lower", "reference"))},
    {
        "definition": _LINE, "citation": _LINE, "reference": maybe(number()), "gap": maybe(number()),
        "interval": maybe(_check_order),
    },
)  # fmt: skip
_WARNING = record({"code": text(200), "message": _LINE}, {"values": mapping()})
SCORES = record(
    {"scores": sequence(_SCORE, longest=10_000)},
    {
        "about": mapping(), "notes": sequence(_LINE, longest=10_000), "warnings": sequence(_WARNING, longest=1_000),
        "missing": mapping(_LINE),
    },
)  # fmt: skip
_PART = maybe(record({}, {"records": _COUNT, "accuracy": maybe(number())}))
DETAILS = record(
    {},
    {
        "density": maybe(mapping()),
        "confidence": maybe(
            record({"edges": _NUMBERS, "parts": mapping(record({"counts": sequence(integer(0, 2**53))}))})
        ),
        "classes": maybe(sequence(record({}, {"class": _NAME, "forget": _PART, "retain": _PART, "test": _PART}))),
    },
)


def check_file(body: Any, shape: Check, where: object, page: str) -> None:
    """Raise FileError, naming the key, unless a file has the shape that `docs/formats/<page>.md` describes."""
    check_shape(body, shape, where=where, hint=f"see docs/formats/{page}.md")


#: Kind of a file to its shape and its page in docs/formats.
RUN_FILES = {
    "expunge.trained": (TRAINED, "trained"),
    "expunge.outcome": (OUTCOME, "outcome"),
    "expunge.scores": (SCORES, "scores"),
    "expunge.details": (DETAILS, "details"),
}
