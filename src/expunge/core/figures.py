"""Figures: drawn by matplotlib, returned as plain SVG text that a page can hold.

matplotlib is imported on first use. What it writes is reduced to what a figure needs: text stays text in the page's
font, there is no style sheet, style attribute, clip path or date, and equal figures give equal bytes. Every artist has
one of the colours of `colour`; it becomes a class, whose colour a style sheet sets, or a fixed colour.
"""

from __future__ import annotations

import collections
import contextlib
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

#: What a colour is for; the style sheet of a page has classes `fill-NAME` and `stroke-NAME`.
ROLES = ("ink", "muted", "line", "forget", "retain", "unseen", "mean", "reference")
_FIRST = 0x0A0B00
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
#: Properties that become attributes, in this order, and their values where they are not written.
_PROPERTIES = {
    "opacity": "1",
    "fill-opacity": "1",
    "stroke-opacity": "1",
    "stroke-width": "1",
    "stroke-dasharray": "none",
    "stroke-linecap": "butt",
    "font-size": "",
    "font-weight": "",
    "text-anchor": "start",
}


def colour(role: str) -> str:
    """The colour that stands for a role while a figure is drawn; `svg_text` puts the real one in its place."""
    return f"#{_FIRST + ROLES.index(role):06x}"


_BY_COLOUR = {colour(role): role for role in ROLES}


@contextlib.contextmanager
def canvas(width: float, height: float, font_size: float = 11) -> Iterator[Any]:
    """An empty matplotlib figure of `width x height` pixels, independent of the user's settings; use it and call
    `svg_text` inside of the `with` block."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the reader's font is used, not this one
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {"svg.fonttype": "none", "svg.hashsalt": "expunge", "text.parse_math": False, "font.size": font_size,
             "text.color": colour("muted"), "axes.edgecolor": colour("muted"), "axes.linewidth": 1.0,
             "axes.titlesize": font_size, "axes.titlecolor": colour("ink"), "axes.titlepad": 6,
             "axes.labelcolor": colour("ink"), "axes.labelsize": font_size,
             "xtick.color": colour("muted"), "ytick.color": colour("muted"), "xtick.labelsize": font_size,
             "ytick.labelsize": font_size, "xtick.major.size": 0, "ytick.major.size": 0, "xtick.major.pad": 5,
             "ytick.major.pad": 5, "grid.color": colour("line"), "grid.linewidth": 1.0, "axes.axisbelow": True,
             "lines.solid_capstyle": "butt"}
        )  # fmt: skip
        yield Figure(figsize=(width / 72, height / 72))


def add_axes(figure: Any, left: float, top: float, width: float, height: float, spines: Sequence[str]) -> Any:
    """Axes at a place in pixels from the upper left corner, with these spines only and no background."""
    whole_width, whole_height = (72 * length for length in figure.get_size_inches())
    bottom = whole_height - top - height
    axes = figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))
    axes.patch.set_visible(False)
    for name, spine in axes.spines.items():
        spine.set_visible(name in spines)
    return axes


def svg_text(
    figure: Any,
    *,
    title: str,
    description: str,
    identity: str,
    colours: Mapping[str, str] | None = None,
    comment: str = "",
    tips: Mapping[str, str] | None = None,
) -> str:
    """The figure as an `svg` element with a name and a description for screen readers.

    An artist's `gid` becomes its class, up to a colon. Nothing is clipped: artists have to lie within their axes.

    Args:
        figure: of `canvas`.
        title: what it shows, in a few words.
        description: what can be read from it, for those who do not see it.
        identity: beginning of every id, so that several figures can stand in one page.
        colours: role to colour, for a file of its own; without it colours are classes `fill-ROLE` and `stroke-ROLE`,
            for a page with a style sheet.
        comment: put into a file of its own.
        tips: `gid` to a text that is shown while the pointer rests on the artist.

    Raises:
        ValueError: an artist has a colour that `colour` did not give.
    """
    figure.patch.set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn = ET.fromstring(_printable(buffer.getvalue()))
    head = {"viewBox": drawn.get("viewBox", ""), "role": "img", "aria-labelledby": f"{identity}-t {identity}-d"}
    if colours is None:
        head["class"] = "figure"
    else:
        size = drawn.get("viewBox", "").split()
        head = {"xmlns": "http://www.w3.org/2000/svg", "width": size[2], "height": size[3], **head,
                "font-family": "system-ui, sans-serif"}  # fmt: skip
    root = ET.Element("svg", head)
    for tag, text in (("title", title), ("desc", description)):
        ET.SubElement(root, tag, {"id": f"{identity}-{tag[0]}"}).text = _printable(text)
    known = {
        use: f"{identity}-{place}"
        for place, use in enumerate(dict.fromkeys(_href(use) for use in drawn.iter() if _tag(use) == "use"))
    }
    writer = _Writer(colours, known, tips or {})
    inside = writer.children(drawn)
    if writer.markers:
        ET.SubElement(root, "defs").extend(writer.markers)
    root.extend(inside)
    _hoist_font_size(root)
    if colours is not None:
        ET.indent(root, "")
    text = ET.tostring(root, encoding="unicode")
    if comment:
        text = text.replace(">", f">\n<!-- {re.sub('-(?=-|$)', '- ', _printable(comment))} -->", 1)
    return text if colours is None else text + "\n"


def _hoist_font_size(root: ET.Element) -> None:
    """The commonest font size stands at the root alone."""
    sizes = collections.Counter(text.get("font-size", "") for text in root.iter("text"))
    if sizes:
        size = sizes.most_common(1)[0][0]
        for text in root.iter("text"):
            if text.get("font-size") == size:
                del text.attrib["font-size"]
        root.set("font-size", size)


def _printable(text: str) -> str:
    """The text without the characters that XML cannot hold."""
    return _CONTROLS.sub("\ufffd", text)


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _href(element: ET.Element) -> str:
    return element.get("{http://www.w3.org/1999/xlink}href", "").removeprefix("#")


def _short(text: str) -> str:
    """Numbers with at most two decimals; path data without needless spaces."""
    text = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), text)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", re.sub(r"\b-0\b", "0", text)).strip()


class _Writer:
    """Reduces the elements that matplotlib wrote."""

    def __init__(self, colours: Mapping[str, str] | None, ids: Mapping[str, str], tips: Mapping[str, str]) -> None:
        self.colours, self.ids, self.tips = colours, ids, tips
        self.markers: list[ET.Element] = []

    def children(self, parent: ET.Element) -> list[ET.Element]:
        return [reduced for child in parent for reduced in self.reduce(child)]

    def reduce(self, element: ET.Element) -> list[ET.Element]:
        tag = _tag(element)
        if tag == "g":
            return self.group(element)
        if tag == "defs":
            self.markers += self.children(element)
        if tag not in ("path", "use", "text"):
            return []  # style sheet, metadata, clip paths
        attributes: dict[str, str] = {
            name: _short(element.get(name, "")) for name in ("x", "y", "d") if name in element.attrib
        }
        turn = element.get("transform", "")
        if turn and not turn.startswith(("rotate(-0 ", "rotate(0 ")):
            attributes["transform"] = _short(turn)
        if tag == "use":
            attributes = {"href": f"#{self.ids[_href(element)]}", **attributes}
        elif element.get("id") in self.ids:
            attributes["id"] = self.ids[element.get("id", "")]
        marker = tag == "path" and "id" in element.attrib  # painted where it is used
        attributes.update(self.paint(element.get("style", ""), "" if marker else "#000000"))
        found = ET.Element(tag, attributes)
        found.text = element.text if tag == "text" else None
        return [found]

    def group(self, element: ET.Element) -> list[ET.Element]:
        """The group, or what is in it where the group itself says nothing."""
        inside = self.children(element)
        name = element.get("id", "")
        css = "" if re.fullmatch(r".*_\d+", name) else name.partition(":")[0]  # matplotlib's own: `patch_3`
        tip = self.tips.get(name)
        if not inside or (not css and tip is None):
            return inside
        if len(inside) == 1 and tip is None:
            inside[0].set("class", f"{css} {inside[0].get('class', '')}".strip())
            return inside
        found = ET.Element("g", {"class": css} if css else {})
        if tip is not None:
            ET.SubElement(found, "title").text = _printable(tip)
        found.extend(inside)
        return [found]

    def paint(self, style: str, fill: str) -> dict[str, str]:
        """Attributes for a style attribute; `fill` is what an element without one is filled with."""
        given = dict(item.split(": ", 1) for item in style.split("; ") if ": " in item)
        font = re.match(r"(?:(\w+) )?([\d.]+)px ", given.get("font", ""))  # up to matplotlib 3.8: weight, size, family
        if font:
            given |= {"font-weight": font[1] or "", "font-size": font[2]}
        classes, attributes = [], {}
        for part, value in (("fill", given.get("fill", fill)), ("stroke", given.get("stroke", "none"))):
            if value == "" or (part, value) == ("stroke", "none"):
                continue
            if value != "none" and value not in _BY_COLOUR:
                raise ValueError(f"the colour {value} is none of `expunge.core.figures.colour`")
            role = _BY_COLOUR.get(value, "none")
            if self.colours is None:
                classes.append(f"{part}-{role}")
            else:
                attributes[part] = self.colours.get(role, "none")
        for name, default in _PROPERTIES.items():
            value = _short(given.get(name, default)).removesuffix("px")
            if value != default:
                attributes[name] = value
        return {"class": " ".join(classes), **attributes} if classes else attributes
