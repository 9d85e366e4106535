"""Figures as inline SVG, written by hand: text stays text, colours are CSS variables (so they follow light, dark and
print), no font or library version changes a byte. Every figure has a title and a description for screen readers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from .content import PARTS, Histogram

_STRIP, _GAP, _TOP, _LEFT, _RIGHT, _WIDTH = 50, 26, 20, 34, 6, 200


def _n(value: float) -> str:
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _svg(width: float, height: float, title: str, description: str, parts: Sequence[str], identity: str) -> Markup:
    head = (
        f'<svg viewBox="0 0 {_n(width)} {_n(height)}" role="img" '
        f'aria-labelledby="{escape(identity)}-t {escape(identity)}-d" class="figure">'
        f'<title id="{escape(identity)}-t">{escape(title)}</title>'
        f'<desc id="{escape(identity)}-d">{escape(description)}</desc>'
    )
    return Markup(head + "".join(parts) + "</svg>")


def _text(x: float, y: float, text: str, css: str, anchor: str = "start") -> str:
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{css}"{where}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{css}"/>'


def _steps(histogram: Histogram, base: float) -> list[tuple[float, float]]:
    """Corners of the outline; the height of a bin is the square root of its share."""
    span = _WIDTH - _LEFT - _RIGHT
    low, high = histogram.edges[0], histogram.edges[-1]
    points = []
    for index, share in enumerate(histogram.shares):
        y = base - _STRIP * math.sqrt(share)
        ends = histogram.edges[index : index + 2]
        points += [(_LEFT + span * (edge - low) / (high - low), y) for edge in ends]
    return points


def confidence_panel(
    label: str, confidence: Mapping[str, Histogram], reference: Mapping[str, Histogram] | None, identity: str
) -> Markup:
    """Histograms of one model, a strip for each part, with the reference's outline drawn over them.

    The vertical scale is the square root of the share of records: most records sit in the last bin, and the tail,
    which is what is looked for, would vanish on a linear one.
    """
    out: list[str] = []
    words = []
    y = _TOP
    present = [part for part in (*PARTS, *(p for p in confidence if p not in PARTS)) if part in confidence]
    for part in present:
        histogram, base = confidence[part], y + _STRIP
        out.append(_text(_LEFT, y - 6, part, "f-name"))
        out.append(_text(_WIDTH - _RIGHT, y - 6, f"n = {histogram.total}", "f-note", "end"))
        for share in (0.1, 0.5):
            level = base - _STRIP * math.sqrt(share)
            out.append(_line(_LEFT, level, _WIDTH - _RIGHT, level, "f-grid"))
            out.append(_text(_LEFT - 5, level + 3.5, f"{share:.0%}".replace("%", " %"), "f-note", "end"))
        if histogram.total:
            corners = _steps(histogram, base)
            path = f"M{_n(_LEFT)} {_n(base)}" + "".join(f"L{_n(px)} {_n(py)}" for px, py in corners)
            css = f"f-{part}" if part in PARTS else "f-retain"
            out.append(f'<path d="{path}L{_n(_WIDTH - _RIGHT)} {_n(base)}Z" class="f-area {css}"/>')
        other = reference.get(part) if reference else None
        if other is not None and other.total:
            path = "M" + "L".join(f"{_n(px)} {_n(py)}" for px, py in _steps(other, base))
            out.append(f'<path d="{path}" class="f-reference"/>')
        out.append(_line(_LEFT, base, _WIDTH - _RIGHT, base, "f-axis"))
        words.append(f"{part}: {_in_words(histogram)}")
        y += _STRIP + _GAP
    bottom = y - _GAP
    first = confidence[present[0]] if present else None
    if first is not None:
        low, high = first.edges[0], first.edges[-1]
        for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
            x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * share
            out.append(_text(x, bottom + 14, _n(low + (high - low) * share), "f-note", anchor))
    title = f"{label}: confidence in the true label"
    return _svg(_WIDTH, bottom + 20, title, "; ".join(words) + ".", out, identity)


def _in_words(histogram: Histogram) -> str:
    if not histogram.total:
        return "no records"
    tail = sum(c for c, edge in zip(histogram.counts, histogram.edges[1:], strict=True) if edge <= 0.5 + 1e-9)
    last = histogram.counts[-1] / histogram.total
    return (
        f"{histogram.total} records, {last:.0%} in the last bin (from {_n(histogram.edges[-2])} on), "
        f"{tail / histogram.total:.0%} at 0.5 or less"
    )


def axis_end(highest: float) -> float:
    """The end of a density axis: the smallest round share that holds the highest one."""
    return next(end for end in (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0) if highest <= end or end == 1.0)


def _shortened(name: str, most: int = 16) -> str:
    name = name.removesuffix(".weight")
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def density_bars(density: Mapping[str, float], label: str, identity: str) -> Markup:
    """A bar for each masked tensor, in the model's order: its density in per cent."""
    width, left, right, row, top = 340, 116, 48, 22, 6
    end = axis_end(max(density.values(), default=1.0))
    span = width - left - right
    bottom = top + row * len(density)
    out = []
    for share in (0.0, 0.5, 1.0):
        x = left + span * share
        out.append(_line(x, top, x, bottom, "f-grid"))
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[share]
        out.append(_text(x, bottom + 15, f"{100 * end * share:g} %", "f-note", anchor))
    for index, (name, value) in enumerate(density.items()):
        y = top + row * index
        length = span * min(1.0, max(0.0, value / end))
        out.append(f"<g><title>{escape(name)}: {100 * value:.2f} %</title>")
        out.append(_text(left - 8, y + 14.5, _shortened(name), "f-mono", "end"))
        out.append(f'<rect x="{left}" y="{y + 5}" width="{_n(length)}" height="12" class="f-bar"/>')
        out.append(_text(left + length + 5, y + 15, f"{100 * value:.1f} %", "f-value"))
        out.append("</g>")
    out.append(_line(left, top, left, bottom, "f-axis"))
    words = "; ".join(f"{name} {100 * value:.1f} %" for name, value in density.items())
    return _svg(width, bottom + 22, f"Mask density by layer: {label}", words, out, identity)
