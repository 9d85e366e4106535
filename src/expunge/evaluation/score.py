"""A score: a measured number with its direction, its interval and its reference value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from expunge.core.errors import ConfigError, FileError, unknown_name_hint
from expunge.core.files import PathLike, read_json, write_json
from expunge.core.reading.file_names import check_format
from expunge.core.reading.run_files import SCORES, check_file
from expunge.core.show import Summary, plural, repr_fields, repr_html, repr_text, truncate

from .facts import DIRECTIONS, order_names, score_facts, score_title

SCHEMA = "expunge.scores"
SCHEMA_VERSION = 2

#: The note of scores without a reference, such as those of the reference itself.
NO_REFERENCE = "no retrained reference was given: there are no gaps and no disparity average"

#: The parts of the split whose confidences are drawn in the report (`non_members` is the non-member pool).
HISTOGRAM_PARTS = ("forget", "retain", "non_members")

#: A warning of earlier versions, which is a fact: `about.imported`.
_IMPORTED = "declared-training"

#: Scores that `repr` shows.
_SHOWN = 12

#: Printed decimals, by unit.
_DECIMALS: dict[str, int] = {"%": 2, "points": 2, "s": 2, "passes": 2}


def format_number(value: float | None, unit: str, *, signed: bool = False) -> str:
    """Format a number for the tables: the decimals depend on the unit; `-` for None."""
    return "-" if value is None else f"{value:{'+' if signed else ''}.{_DECIMALS.get(unit, 4)}f}"


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval: `low <= high` in the unit of the score, at confidence `level` (0.95 is 95 %)."""

    low: float
    high: float
    level: float = 0.95

    def text(self, unit: str = "") -> str:
        """`[low, high]`; `unit` decides the decimals."""
        return f"[{format_number(self.low, unit)}, {format_number(self.high, unit)}]"


@dataclasses.dataclass(frozen=True)
class Score:
    """A measured number with its unit, direction, reference value and confidence interval.

    Attributes:
        name: name in the tables.
        value: the number; finite.
        unit: `%`, `points` (percentage points), `s`, `passes`, `bytes`, `MiB`, `bits`, `nats`, or empty for a
            plain number.
        direction: a key of `DIRECTIONS`.
        definition: how it was computed, including options and record counts.
        citation: of the definition: paper and section.
        reference: the same score of the retrained model, or None.
        interval: confidence interval for the sampling of records, or None. It does not cover the training seed.

    Raises:
        ConfigError: the direction is unknown or the value is not finite.
    """

    name: str
    value: float
    unit: str
    direction: str
    definition: str
    citation: str = ""
    reference: float | None = None
    interval: Interval | None = None

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ConfigError(
                f"unknown direction {self.direction!r}",
                where=f"score {self.name}",
                hint=unknown_name_hint(self.direction, DIRECTIONS),
            )
        if not math.isfinite(self.value):
            raise ConfigError(f"the value is {self.value}, not a finite number", where=f"score {self.name}")

    @property
    def gap(self) -> float | None:
        """value - reference, signed; None without a reference."""
        return None if self.reference is None else self.value - self.reference

    def to_json(self) -> dict[str, Any]:
        """The fields and the gap as JSON values."""
        return {**dataclasses.asdict(self), "gap": self.gap}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Score:
        """Read a score from JSON values; unknown keys are ignored."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = {key: value for key, value in body.items() if key in known}
        if values.get("interval") is not None:
            values["interval"] = Interval(**values["interval"])
        return cls(**values)

    def row(self) -> dict[str, str]:
        """The formatted cells: score, value, interval of the value, reference, gap, direction."""
        unit = f" {self.unit}" if self.unit else ""
        return {
            "score": score_title(self.name),
            "value": format_number(self.value, self.unit) + unit,
            "interval": "-"
            if self.interval is None
            else f"{self.interval.text(self.unit)} ({100 * self.interval.level:g} %)",
            "reference": "-" if self.reference is None else format_number(self.reference, self.unit) + unit,
            "gap": format_number(self.gap, self.unit, signed=True),
            "direction": DIRECTIONS[self.direction],
        }

    def _summarise(self) -> Summary:
        return Summary(self._describe, table=lambda: [self.row()])

    def _describe(self) -> str:
        row = self.row()
        gap = "" if self.reference is None else f", reference {row['reference']}, gap {row['gap']}"
        interval = "" if self.interval is None else f", interval {row['interval']}"
        return f"{self.name:.40} {row['value']}{interval}{gap}; {row['direction']}"

    __repr__ = repr_text
    _repr_html_ = repr_html


@dataclasses.dataclass(frozen=True)
class ScoreWarning:
    """A reason to distrust scores as a whole, which a reader has to see first.

    Attributes:
        code: `nothing-changed`, `reference-not-retrained`, `reference-collapsed`,
            `recipe-assumed`, `near-chance` or `classes-reordered`.
        message: a sentence for the reader.
        values: the numbers by which it was decided; JSON values.
    """

    code: str
    message: str
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of one model, in order and accessible by name.

    Attributes:
        scores: in the order of the tables; names are distinct.
        about: what was scored, as JSON values: hashes of request, split, weights and data; sparsity, seed, options.
        notes: scores that were not computed, with the reason, and cautions for the reader.
        warnings: reasons to distrust the scores as a whole.
        missing: scores that the table shows as not measured, by name, with the reason in a few words.

    Raises:
        ConfigError: two scores have the same name.
    """

    scores: tuple[Score, ...]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[ScoreWarning, ...] = ()
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        duplicates = {name for name in self.names if self.names.count(name) > 1}
        if duplicates:
            raise ConfigError("duplicate score", where=sorted(duplicates)[0], hint="give each score a distinct name")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scores, in order."""
        return tuple(score.name for score in self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Score]:
        return iter(self.scores)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Score:
        for score in self.scores:
            if score.name == name:
                return score
        raise ConfigError(f"no score {name!r}", hint=unknown_name_hint(name, self.names))

    def value(self, name: str) -> float | None:
        """The value of a score, or None if it was not computed."""
        return self[name].value if name in self else None

    def with_reference(self, reference: Scores) -> Scores:
        """The same scores with the values of `reference` as their reference values."""
        scores = tuple(dataclasses.replace(score, reference=reference.value(score.name)) for score in self.scores)
        return dataclasses.replace(self, scores=scores)

    def with_scores(self, further: Sequence[Score]) -> Scores:
        """These scores together with further ones, in the order of the tables."""
        scores = sorted((*self.scores, *further), key=lambda score: score_facts(score.name).order)
        missing = {name: reason for name, reason in self.missing.items() if name not in {s.name for s in scores}}
        return dataclasses.replace(self, scores=tuple(scores), missing=missing)

    def table(self) -> list[dict[str, str]]:
        """The formatted cells of each score (`Score.row`), and of those that were not measured.

        With noise floors (`about["noise_floors"]`), there is a column of them before the direction.
        """
        rows = {score.name: score.row() for score in self.scores}
        for name, reason in self.missing.items():
            value, direction = f"not measured ({reason})", DIRECTIONS[score_facts(name).direction]
            rows[name] = {"score": score_title(name), "value": value, "interval": "-", "reference": "-", "gap": "-",
                          "direction": direction}  # fmt: skip
        floors = self.about.get("noise_floors", {})
        if floors:
            units = {score.name: score.unit for score in self.scores}
            for name, row in rows.items():
                floor = format_number(floors.get(name), units.get(name, ""))
                direction = row.pop("direction")
                row.update({"noise floor": floor, "direction": direction})
        return [rows[name] for name in (order_names(rows) if self.missing else rows)]

    def text(self) -> str:
        """The scores as an aligned plain-text table, between the warnings and the notes."""
        warnings = [f"WARNING: {warning.message}" for warning in self.warnings]
        return "\n".join([*warnings, format_table(self.table()), *(f"note: {note}" for note in self.notes)])

    def _summarise(self) -> Summary:
        def title() -> str:
            compared = sum(score.reference is not None for score in self.scores)
            notes = f", {plural(len(self.notes), 'note')}" if self.notes else ""
            return f"{plural(len(self), 'score')}, {compared} with a reference{notes}"

        return Summary(title, lines=True, text=self._first_lines, table=self.table)

    def _first_lines(self) -> list[str]:
        """The first lines of the table, without the directions."""
        first = [{**row, "direction": ""} for row in self.table()[:_SHOWN]]
        rows = [{key.replace("direction", ""): truncate(cell, 30) for key, cell in row.items()} for row in first]
        more = [f"... {len(self) - _SHOWN} more: see text()"] if len(self) > _SHOWN else []
        return [*(format_table(rows).split("\n") if rows else []), *more]

    __repr__ = repr_text
    _repr_html_ = repr_html

    def to_json(self) -> dict[str, Any]:
        """The body of `scores.json` (docs/formats/scores.md)."""
        return {
            "scores": [score.to_json() for score in self.scores],
            "about": dict(self.about),
            "notes": list(self.notes),
            "warnings": [dataclasses.asdict(warning) for warning in self.warnings],
            **({"missing": dict(self.missing)} if self.missing else {}),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Scores:
        """Read scores from the JSON values of `to_json`.

        Raises:
            FileError: a key is missing or has the wrong type.
        """
        check_file(body, SCORES, "scores", "scores")
        try:
            scores = tuple(Score.from_json(score) for score in body["scores"])
            warnings = tuple(
                ScoreWarning(found["code"], found["message"], dict(found.get("values", {})))
                for found in body.get("warnings", ())
            )
            missing, about = dict(body.get("missing", {})), dict(body.get("about", {}))
            for fact in (found for found in warnings if found.code == _IMPORTED):
                about.setdefault("imported", fact.values.get("weights", ""))
            warnings = tuple(found for found in warnings if found.code != _IMPORTED)
            return cls(scores, about, tuple(body.get("notes", ())), warnings, missing)
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            raise FileError(f"these are not scores ({error})", hint="see docs/formats/scores.md") from error

    def save(self, path: PathLike) -> None:
        """Write `scores.json`, atomically."""
        write_json(check_format(path, "JSON"), SCHEMA, SCHEMA_VERSION, self.to_json())

    @classmethod
    def load(cls, path: PathLike) -> Scores:
        """Read `scores.json`.

        Raises:
            FileError: the file is missing, damaged, or of another kind or version.
        """
        try:
            return cls.from_json(read_json(path, SCHEMA, SCHEMA_VERSION))
        except FileError as error:
            inner = str(error.where or "").removeprefix("scores").removeprefix(": ")
            named = error.where if str(path) in inner else f"{path}: {inner}" if inner else path
            raise FileError(error.what, where=named, hint=error.hint) from error


def describe_shared_subjects(shared: Mapping[str, int]) -> str:
    """The records of the subjects of D_f that are in other parts of the split, in words.

    Args:
        shared: `about["shared_subjects"]` of scores.

    Example:
        >>> describe_shared_subjects({"test": 1, "non_members": 2})
        '2 non-members and 1 test record'
    """
    names = (("non_members", "non-member"), ("test", "test record"))
    return " and ".join(plural(shared[key], name) for key, name in names if shared.get(key))


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Format rows with equal keys as plain text: the first and last columns left-aligned, the others right-aligned."""
    if not rows:
        return ""
    keys = list(rows[0])
    lines = [{key: key for key in keys}, *rows]
    width = {key: max(len(line[key]) for line in lines) for key in keys}
    outer = (keys[0], keys[-1])
    cells = [
        [line[key].ljust(width[key]) if key in outer else line[key].rjust(width[key]) for key in keys] for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in cells)
