"""The roles of the columns of a table, by their names and the first of their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.show import repr_fields

#: Names of columns by role; case, spaces and signs do not matter.
LABELS = ("label", "labels", "target", "class", "y", "category", "outcome", "diagnosis", "sentiment")
IDS = ("recordid", "id", "ids", "uid", "uuid", "rowid", "recordids", "filename")
SUBJECTS = ("subjectid", "subject", "subjects", "patientid", "patient", "userid", "user", "personid", "person")
PARTITIONS = ("partition", "split", "part", "subset")
TEXTS = ("text", "texts", "message", "messages", "sentence", "review", "comment", "content", "body", "document")
#: A column of strings with at most so many values is categorical; with longer values and spaces it is text.
MOST_CATEGORIES, TEXT_LENGTH = 50, 24


@dataclasses.dataclass(frozen=True)
class Roles:
    """What was inferred of the columns.

    Attributes:
        label: column of the class, or None.
        options: the other options of the source, by name.
        doubts: what the user should look at: a line each.
        unread_text: the column of text that would be the feature if there were a tokenizer; None if others are.
    """

    label: str | None
    options: Mapping[str, Any]
    doubts: tuple[str, ...]
    unread_text: str | None = None

    __repr__ = repr_fields


def infer_roles(columns: Mapping[str, Sequence[Any]], *, reads_text: bool) -> Roles:
    """Infer the roles of columns.

    Args:
        columns: the first values of each column by name.
        reads_text: whether there is a tokenizer, so that text can be a feature.

    Example:
        >>> roles = infer_roles({"id": ["a", "b"], "age": [3, 4], "label": ["no", "yes"]}, reads_text=False)
        >>> roles.label, roles.options, roles.doubts
        ('label', {'id': 'id', 'numeric': ['age']}, ())
    """
    left = list(columns)
    options: dict[str, Any] = {}
    doubts: list[str] = []
    label = _take(left, LABELS)
    for role, names in (("id", IDS), ("subject", SUBJECTS)):
        found = _take(left, names)
        if found is not None:
            options[role] = found
    if "id" in options and len(set(map(str, columns[options["id"]]))) < len(columns[options["id"]]):
        doubts.append(f"the column {options['id']!r} repeats values, so it is no record id: it is ignored")
        options.setdefault("ignore", []).append(options.pop("id"))
    partition = next((name for name in left if _normal(name) in PARTITIONS), None)
    if partition is not None and {str(value) for value in columns[partition]} <= {"train", "test"}:
        options["partition"] = partition
        left.remove(partition)
    if label is None and left and _is_class(columns[left[-1]]):
        label = left.pop()
        doubts.append(f"no column is called label: the last one, {label!r}, is taken for the class")
    for name in left:
        role = _find_role(name, columns[name], reads_text)
        if role == "ignore":
            doubts.append(f"the column {name!r} is ignored: it is text, nested, or has many values")
        options.setdefault(role, []).append(name)
    if len(options.get("text", ())) > 2:
        doubts.append("only one text column, or two, can be read: the others are ignored")
        options.setdefault("ignore", []).extend(options["text"][2:])
        options["text"] = options["text"][:2]
    if options.get("text"):  # tokens are the only features then
        for role in ("numeric", "categorical"):
            if role in options:
                doubts.append(f"beside text, the columns {', '.join(options[role])} are no features: they are ignored")
                options.setdefault("ignore", []).extend(options.pop(role))
    unread = None if reads_text else next((name for name in left if _is_text(name, columns[name])), None)
    if unread is not None and any(options.get(role) for role in ("numeric", "categorical")):
        doubts.append(f"the column {unread!r} is text: with a folder that has a tokenizer, it would be the feature")
        unread = None
    return Roles(label, options, tuple(doubts), unread)


def _normal(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _take(left: list[str], names: Sequence[str]) -> str | None:
    """Take the column with the first of the names out of the list."""
    for wanted in names:
        for name in left:
            if _normal(name) == wanted:
                left.remove(name)
                return name
    return None


def _is_class(values: Sequence[Any]) -> bool:
    present = {str(value) for value in values if value not in (None, "")}
    return 1 < len(present) <= min(MOST_CATEGORIES, max(2, len(values) // 2)) and not _is_fraction(values)


def _is_fraction(values: Sequence[Any]) -> bool:
    return any(isinstance(value, float) and value != int(value) for value in values if _is_number(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _is_text(name: str, values: Sequence[Any]) -> bool:
    """Whether a column of strings is text: by its name and words, or by long values with words."""
    texts = [value for value in values if isinstance(value, str) and value]
    if not texts or not any(" " in text for text in texts):
        return False
    return _normal(name) in TEXTS or sum(map(len, texts)) / len(texts) >= TEXT_LENGTH


def _find_role(name: str, values: Sequence[Any], reads_text: bool) -> str:
    present = [value for value in values if value is not None and value != ""]
    if not present:
        return "ignore"
    if any(isinstance(value, (Mapping, list, bytes)) for value in present):
        return "ignore"
    if all(isinstance(value, bool) for value in present):
        return "boolean"
    if all(_is_number(value) for value in present):
        return "numeric"
    if _is_text(name, present):
        if reads_text:
            return "text"
        if _normal(name) in TEXTS:
            return "ignore"
    return "categorical" if len({str(value) for value in present}) <= MOST_CATEGORIES else "ignore"
