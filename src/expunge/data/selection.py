"""Selection of the forget set from a configuration: the section `forget`, checked and turned into a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expunge.core.errors import ConfigError, RequestError, unknown_name_hint
from expunge.core.reading.limits import MODELS
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive, mix, numpy_generator
from expunge.core.split import PLANTINGS, Split

from .corrections.request import make_correction_request
from .forget_set import forget_class, forget_column, forget_ids, forget_memorised, forget_random, forget_subjects
from .planting.plant import check_planting, forget_planted
from .planting.strata import check_stratum
from .records import Records
from .requests import IdsOrFile, build_request, check_on_missing

#: The values of `by`, and the further keys of each.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "ids": ("ids", "file", "on_missing"),
    "subjects": ("subjects", "file", "on_missing"),
    "class": ("name", "index"),
    "random": ("fraction", "count", "seed"),
    "column": ("column", "value"),
    "memorised": ("count", "models", "seed"),
    "correct": ("labels", "ids", "file", "blank", "fill"),
    "proxy": ("of", "seed"),
    "memorisation-stratum": ("stratum", "fraction", "count", "seed"),
    "backdoor": ("fraction", "count", "seed", "target", "size", "row", "column", "fill"),
    "canaries": ("fraction", "count", "seed"),
    "look-alikes": ("fraction", "count", "seed", "copies", "change", "distance", "pixels"),
}

#: The keys of which exactly one is needed, if not all.
_NEEDED: dict[str, tuple[str, ...]] = {
    "ids": ("ids", "file"),
    "subjects": ("subjects", "file"),
    "column": ("column",),
    "random": ("fraction", "count"),
    "memorised": ("count",),
    "correct": ("labels", "ids", "file"),
    "proxy": ("of",),
    "memorisation-stratum": ("stratum",),
    **dict.fromkeys(PLANTINGS, ("fraction", "count")),
}


#: The selections that need a ranking of the records, which training gives: why, and what to call in Python.
RANKED: dict[str, tuple[str, str]] = {
    "memorised": (
        "which records are memorised is known only after training an ensemble",
        "pass the ranking from expunge.training.measure_held_out_losses to forget_memorised",
    ),
    "memorisation-stratum": (
        "the strata are known only after training a model",
        "pass the ranking from expunge.training.measure_training_confidences to forget_stratum",
    ),
}


def _check_strings(key: str, value: object) -> None:
    """Raise ConfigError for an id that YAML read as something else than a string or an integer."""
    for item in value if isinstance(value, (list, tuple)) else ():
        if isinstance(item, bool) or not isinstance(item, (str, int)):
            what = "a list" if isinstance(item, (list, dict)) else f"{item!r}, not a string"
            raise ConfigError(f"an id is {what}", where=key, hint="quote ids that look like numbers or words of YAML")


def check_selection(selection: Mapping[str, Any]) -> None:
    """Check the keys of a selection before there are records; see `select_forget`.

    Raises:
        ConfigError: `by` or a key is unknown, or a required key is missing.

    Example:
        >>> check_selection({"by": "random", "fraction": 0.1})
        >>> check_selection({"by": "random", "fractoin": 0.1})
        Traceback (most recent call last):
        ...
        expunge.core.errors.ConfigError: fractoin: a forget set by 'random' has no key 'fractoin'
          hint: did you mean 'fraction'? (known: count, fraction, hold, seed)
    """
    by = str(selection.get("by", ""))
    if by not in _OPTIONS:
        raise ConfigError(
            f"unknown selection of the forget set {by!r}", where="by", hint=unknown_name_hint(by, _OPTIONS)
        )
    given = {key: value for key, value in selection.items() if value is not None and key not in ("by", "hold")}
    for key in given:
        if key not in _OPTIONS[by]:
            hint = unknown_name_hint(key, [*_OPTIONS[by], "hold"])
            raise ConfigError(f"a forget set by {by!r} has no key {key!r}", where=key, hint=hint)
    _get_given_key(by, given, _NEEDED.get(by, _OPTIONS[by]))
    if by == "correct":
        _check_correction(given)
    if by == "proxy":
        _check_proxy(given["of"])
    for key in ("ids", "subjects", "hold"):
        _check_strings(key, selection.get(key))
    for key in ("index", "count", "seed"):
        value = given.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"the {key} of a forget set by {by!r} is {str(value)[:60]!r}, not an integer", where=key)
    if by in PLANTINGS:
        check_planting(by, given)
    if "stratum" in given:
        check_stratum(given["stratum"])
    if "on_missing" in given:
        check_on_missing(given["on_missing"])
    models = given.get("models", 2)
    if by == "memorised" and (type(models) is not int or not 2 <= models <= MODELS or models % 2):
        what = f"an ensemble has an even number of models from 2 to {MODELS:,}, not {str(models)[:40]}"
        raise ConfigError(what, where="models", hint="use 16 or 32")


def _check_correction(given: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the keys of a selection `by: correct` say what changes, in one way."""
    if "blank" not in given:
        if "ids" in given or "fill" in given:
            raise ConfigError(
                "a correction of listed ids needs `blank`, the columns to blank",
                where="ids" if "ids" in given else "fill",
                hint="new labels are given with their ids: labels: {id: class}",
            )
    elif "labels" in given:
        raise ConfigError("a correction has either `labels` or `blank`", where="blank", hint="make two requests")
    elif not isinstance(given["blank"], (list, tuple)):
        raise ConfigError("is not a list of columns", where="blank", hint="for example blank: [age, ward]")
    for key, kind, what in (("labels", Mapping, "a mapping from ids to classes"), ("fill", (int, float), "a number")):
        if key in given and (isinstance(given[key], bool) or not isinstance(given[key], kind)):
            raise ConfigError(f"is not {what}", where=key)
    _check_strings("labels", list(given.get("labels", ())))


def _check_proxy(real: object) -> None:
    """Raise ConfigError unless a selection can have a proxy."""
    if not isinstance(real, Mapping):
        raise ConfigError("is not a selection", where="of", hint="for example of: {by: random, fraction: 0.1}")
    if real.get("by") in ("proxy", "correct"):
        raise ConfigError(f"a selection by {real['by']!r} has no proxy", where="of")
    check_selection(real)


def select_forget(records: Records, split: Split, selection: Mapping[str, Any]) -> ForgetRequest:
    """Build the forget request that a selection (the section `forget` of a configuration) describes.

    The values of `by` and their keys:

    - `ids`: `ids` (a list) or `file` (a path), and `on_missing`: `refuse` (the default) or `skip`;
    - `subjects`: `subjects` (a list) or `file` (a path), and `on_missing`;
    - `class`: `name` (string) or `index` (integer);
    - `random`: `fraction` or `count`, and `seed` (default 0);
    - `column`: `column` (its name) and `value` (without it the column is boolean);
    - `correct`: the records stay, with new values: `labels` (a mapping from ids to classes) or `file` (a CSV file of
      them); or `blank` (a list of columns), `fill` (default 0), and `ids` or `file`;
    - `memorised`: `count`, and `models` and `seed` of the ensemble that ranks the records. Runs and plans train the
      ensemble (`expunge.training.ensemble.memorised`). This function refuses this value; see `forget_memorised`;
    - `proxy`: `of` (another selection) and `seed`; see `forget_proxy`.

    - `memorisation-stratum`: `stratum` (`low`, `middle` or `high`), and `fraction` or `count`, and `seed`, to draw from
      it. Runs and plans train one model that ranks the records; see `forget_stratum`.
    - `backdoor`, `canaries`, `look-alikes`: what was planted in the records (`forget_planted`). Runs and plans plant it
      before the original is trained, with the options of `plant_backdoor`, `plant_canaries` and `plant_look_alikes`.

    Each can have `hold`: a list of ids that must stay, or the path of a file of them.

    Raises:
        ConfigError: `by` or a key is unknown, or a required key is missing.
        RequestError: the records cannot be forgotten.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> request = select_forget(records, split, {"by": "class", "name": "3", "hold": [split.retain[0]]})
        >>> request.selection["by"], request.hold.tolist() == [split.retain[0]]
        ('class', True)
    """
    check_selection(selection)
    given = {key: value for key, value in selection.items() if value is not None and key not in ("by", "hold")}
    by, hold = str(selection["by"]), selection.get("hold") or ()
    try:
        return _select(records, split, by, given, hold)
    except (TypeError, ValueError) as error:  # for example a string in place of a number
        raise ConfigError(f"a forget set by {by!r} cannot be made from {given} ({error})", where="forget") from error


def _select(records: Records, split: Split, by: str, given: dict[str, Any], hold: IdsOrFile) -> ForgetRequest:
    if by == "random":
        return forget_random(records, split, hold=hold, **given)
    if by == "correct":
        return make_correction_request(records, split, given, hold)
    if by in RANKED:
        raise ConfigError(RANKED[by][0], where="forget.by", hint=RANKED[by][1])
    if by in PLANTINGS:
        _check_planted(records, by)
        return forget_planted(records, split, hold=hold)
    if by == "proxy":
        return forget_proxy(records, split, given["of"], seed=given.get("seed", 0))
    if by == "column":
        _get_given_key(by, given, ("column",))
        value = given.get("value")
        if isinstance(value, float) and np.asarray(records.columns.get(str(given["column"]), ())).dtype.kind == "U":
            hint = "the column has strings: quote the value as the file has it"
            raise ConfigError(f"is the number {value}", where="value", hint=hint)
        return forget_column(records, split, given["column"], value=value, hold=hold)
    value = given[_get_given_key(by, given, _NEEDED.get(by, _OPTIONS[by]))]
    on_missing = given.get("on_missing", "refuse")
    if by == "subjects":
        named = Path(value) if "file" in given else value
        return forget_subjects(records, split, named, hold=hold, on_missing=on_missing)
    if by == "class":
        return forget_class(records, split, str(value) if "name" in given else value, hold=hold)
    if "file" in given:
        return forget_ids(records, split, Path(value), hold=hold, on_missing=on_missing)
    named = [value] if isinstance(value, str) else list(map(str, value))
    return forget_ids(records, split, named, hold=hold, on_missing=on_missing)


def _check_planted(records: Records, by: str) -> None:
    """Raise ConfigError unless this kind was planted in the records."""
    found = None if records.planted is None else records.planted.by
    if found != by:
        planted = "nothing" if found is None else found
        raise ConfigError(
            f"the forget set is by {by!r}, and {planted} was planted in the records", where="forget.by",
            hint="plant first, with a function of expunge.data: plant_backdoor, plant_canaries, plant_look_alikes",
        )  # fmt: skip


def _get_given_key(by: str, given: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """Return the one key of `keys` that is given; raise ConfigError if there is not exactly one."""
    found = [key for key in keys if key in given]
    if len(found) != 1:
        raise ConfigError(f"a forget set by {by!r} needs {' or '.join(keys)}", where="forget")
    return found[0]


def forget_proxy(
    records: Records,
    split: Split,
    selection: Mapping[str, Any],
    *,
    seed: int = 0,
    ranking: Sequence[str] | None = None,
) -> ForgetRequest:
    """Forget other records than a selection does, of the same kind: what options of methods are tuned on.

    They are drawn from the retain set, without the records of the selection, here D_f, and without those on hold:

    - for a class, all records of another class; for subjects, as many other subjects;
    - for `memorised`, the next most memorised records, as many;
    - otherwise, as many records at random: those with the smallest hash(seed, record id).

    D_f is used for nothing but to leave it out. In the request for the proxy it is part of the retain set.

    Args:
        records: the records.
        split: their split, before either request.
        selection: what D_f is selected by (`select_forget`).
        seed: seed of the draw.
        ranking: record ids, most memorised first, for `memorised`.

    Raises:
        ConfigError: the selection is not valid, or has no proxy.
        RequestError: there is no other class, or there are too few other records or subjects.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> proxy = forget_proxy(records, split, {"by": "class", "index": 3})
        >>> proxy.selection["by"], proxy.forgotten_class == 3
        ('proxy', False)
    """
    _check_proxy(selection)
    by, hold = str(selection["by"]), selection.get("hold") or ()
    how: dict[str, Any] = {"by": "proxy", "kind": by, "seed": seed}
    if by == "memorised":
        order = split.retain.tolist() if ranking is None else list(ranking)
        real = forget_memorised(records, split, order, int(selection["count"]), hold=hold)
        taken = set(real.record_ids.tolist())
        rest = [name for name in order if name not in taken]
        found = forget_memorised(records, split, rest, len(taken), hold=hold).record_ids
        return build_request(records, split, found, how)
    real = select_forget(records, split, selection)
    pool = np.setdiff1d(np.setdiff1d(split.retain, real.record_ids), real.hold)
    rows = records.rows(pool)
    generator = numpy_generator(seed, "proxy")
    if by == "class":
        others = np.unique(records.labels[rows])
        others = others[~np.isin(others, records.labels[records.rows(real.record_ids)])]
        if not len(others):
            raise RequestError("there is no other class with records in the retain set", where="of")
        index = int(generator.choice(others))
        chosen = pool[records.labels[rows] == index]
        how |= {"index": index, "name": records.class_names[index]}
        return build_request(records, split, chosen, how, forgotten_class=index)
    if by == "subjects":
        assert records.subject_ids is not None
        own = np.unique(records.subject_ids[records.rows(real.record_ids)])
        names = np.setdiff1d(np.unique(records.subject_ids[rows]), own)
        if len(names) < len(own):
            raise RequestError(f"there are {len(names)} other subjects, not {len(own)}", where="of")
        subjects = sorted(generator.choice(names, len(own), replace=False).tolist())
        return build_request(records, split, pool[np.isin(records.subject_ids[rows], subjects)], how)
    count = len(real.record_ids)
    if count > len(pool):
        raise RequestError(f"{count} other records cannot be drawn from {len(pool)}", where="of")
    keys = records.keys[rows]
    order = np.lexsort((keys, mix(keys, derive(seed, "proxy"))))
    return build_request(records, split, pool[order[:count]], how)
