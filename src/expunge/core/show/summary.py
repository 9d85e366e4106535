"""The description of an object: a title, facts, and for notebooks a table or a bar for each layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .fields import VALUE, repr_fields, truncate

_TITLE, _FACT = 160, 120
#: Rows of a table in a notebook.
_ROWS = 60
#: Colours are those of the page, or of medium lightness, for light and dark pages.
_BOX = "color:inherit;background:transparent;text-align:left"
_TABLE = "border-collapse:collapse;margin:.4em 0;font-size:inherit;color:inherit;white-space:nowrap"
_ROW = "border-bottom:1px solid rgba(128,128,128,.35);background:transparent"
_CELLS = "padding:.15em .8em .15em 0;text-align:"
_NAME = f"{_CELLS}left;font-weight:normal;opacity:.75"
_TRACK = "width:10em;height:.7em;border:1px solid rgba(128,128,128,.7)"
_FILL = "height:100%;background:#5b8def"


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar in a notebook: a fraction in [0, 1], and its text."""

    name: str
    fraction: float
    text: str

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True)
class Summary:
    """The description of an object.

    Each part is a function, so that one that fails does not hide the others.

    Attributes:
        title: one line, without the name of the class.
        facts: name to fact; shown in `repr` if `lines`, and in a notebook.
        lines: whether `repr` has a line for each fact; otherwise it is the title alone.
        text: further lines of `repr`.
        table: rows with equal keys, for a notebook.
        bars: the density of each layer, for a notebook.
    """

    title: Callable[[], str]
    facts: Mapping[str, Callable[[], str]] = dataclasses.field(default_factory=dict)
    lines: bool = False
    text: Callable[[], Sequence[str]] | None = None
    table: Callable[[], Sequence[Mapping[str, str]]] | None = None
    bars: Callable[[], Sequence[Bar]] | None = None

    __repr__ = repr_fields


def _evaluate(make: Callable[[], str], limit: int) -> str:
    try:
        return truncate(make(), limit)
    except Exception as error:
        return f"not available ({type(error).__name__})"


def repr_text(self: Any) -> str:
    """The `repr` of an object with `_summarise`: its title in angle brackets, or its title and a line for each fact."""
    name = type(self).__name__
    try:
        summary: Summary = self._summarise()
        title = f"{name}: {_evaluate(summary.title, _TITLE)}"
        if not summary.lines:
            return f"<{title}>"
        width = max(map(len, summary.facts), default=0)
        facts = [f"  {key.ljust(width)}  {_evaluate(make, _FACT)}" for key, make in summary.facts.items()]
        return "\n".join([title, *facts, *_evaluate_lines(summary.text)])
    except Exception as error:
        return f"<{name}: not available ({type(error).__name__})>"


def _evaluate_lines(make: Callable[[], Sequence[str]] | None) -> list[str]:
    try:
        return [] if make is None else [f"  {truncate(line, 2 * VALUE)}" for line in make()]
    except Exception as error:
        return [f"  not available ({type(error).__name__})"]


def repr_html(self: Any) -> str:
    """The HTML of an object with `_summarise`: without scripts, style sheets or other resources."""
    name = type(self).__name__
    try:
        summary: Summary = self._summarise()
        head = _escape(f": {_evaluate(summary.title, _TITLE)}")
        body = _guard(lambda: summary.facts, _facts_table) + _guard(summary.table, _table)
        body += _guard(summary.bars, _bars_table)
    except Exception as error:
        head, body = f": not available ({type(error).__name__})", ""
    return f'<div style="{_BOX}"><div><strong>{_escape(name)}</strong>{head}</div>{body}</div>'


def _guard(make: Callable[[], Any] | None, render: Callable[[Any], str]) -> str:
    try:
        return "" if make is None else render(make())
    except Exception as error:
        return f"<div>not available ({type(error).__name__})</div>"


def _escape(text: object, limit: int = 2 * _FACT) -> str:
    import html

    return html.escape(truncate(str(text), limit))


def _facts_table(facts: Mapping[str, Callable[[], str]]) -> str:
    rows = [
        f'<th scope="row" style="{_NAME}">{_escape(name)}</th>{_cell(_evaluate(make, _FACT))}'
        for name, make in facts.items()
    ]
    return _wrap(rows) if rows else ""


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    keys = list(rows[0])
    align = {key: "left" if key in (keys[0], keys[-1]) else "right" for key in keys}
    head = "".join(f'<th scope="col" style="{_CELLS}{align[key]}">{_escape(key)}</th>' for key in keys)
    body = ["".join(_cell(row[key], align[key]) for key in keys) for row in rows[:_ROWS]]
    return _wrap([head, *body, *_more(len(rows))])


def _bars_table(bars: Sequence[Bar]) -> str:
    if not bars:
        return ""
    rows = [f'<th scope="col" colspan="3" style="{_CELLS}left">density by layer</th>']
    for bar in bars[:_ROWS]:
        percent = 100 * min(1.0, max(0.0, bar.fraction))
        drawn = f'<div style="{_TRACK}"><div style="{_FILL};width:{percent:.2f}%"></div></div>'
        rows.append(f'{_cell(bar.name)}<td style="{_CELLS}left">{drawn}</td>{_cell(bar.text, "right")}')
    return _wrap([*rows, *_more(len(bars))])


def _cell(text: str, align: str = "left") -> str:
    return f'<td style="{_CELLS}{align}">{_escape(text, _FACT)}</td>'


def _more(count: int) -> list[str]:
    return [_cell(f"and {count - _ROWS:,} more")] if count > _ROWS else []


def _wrap(rows: Sequence[str]) -> str:
    body = "".join(f'<tr style="{_ROW}">{row}</tr>' for row in rows)
    return f'<table style="{_TABLE}"><tbody>{body}</tbody></table>'
