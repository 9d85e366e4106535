"""Figures: drawn with matplotlib and returned as plain SVG text that can be embedded in an HTML page.

matplotlib is imported on first use. Its output is reduced: text stays text in the font of the page; style sheets, style
attributes, clip paths and dates are removed; equal figures give equal bytes. Every artist has one of the colours of
`colour`, which becomes a CSS class or a fixed colour.
"""

from __future__ import annotations

import collections
import contextlib
import io
import os
import re
import sys
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

#: The roles of colours; the style sheet of a page has classes `fill-ROLE` and `stroke-ROLE`. `non_members` is the
#: non-member pool, under its name in the figures of a report; `curve_N` are the lines of a figure with several.
ROLES = (
    "ink", "muted", "line", "forget", "retain", "non_members", "mean", "reference",
    *(f"curve_{number}" for number in range(1, 9)),
)  # fmt: skip
_FIRST = 0x0A0B00
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
#: Properties that become attributes, in this order, and the default values that are omitted.
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
    """The placeholder colour of a role while a figure is drawn; `render_svg` replaces it."""
    return f"#{_FIRST + ROLES.index(role):06x}"


_BY_COLOUR = {colour(role): role for role in ROLES}


def _import_matplotlib() -> Any:
    """Import matplotlib from a directory without a `matplotlibrc`: it reads that of the current directory."""
    before = None
    with contextlib.suppress(OSError):  # a current directory that was removed has no such file
        before = os.open(".", os.O_RDONLY) if hasattr(os, "fchdir") and "matplotlib" not in sys.modules else None
    try:
        if before is not None:
            os.chdir(os.path.dirname(os.path.abspath(__file__)))
        import matplotlib
    finally:
        if before is not None:
            os.fchdir(before)
            os.close(before)
    return matplotlib


@contextlib.contextmanager
def canvas(width: float, height: float, font_size: float = 11) -> Iterator[Any]:
    """Yield an empty matplotlib figure of `width x height` pixels, independent of the user's settings.

    Draw, and call `render_svg`, within the `with` block.
    """
    matplotlib = _import_matplotlib()
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the font of the reader is used
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
    """Add axes at a position in pixels from the upper left corner, with these spines only and without background."""
    whole_width, whole_height = (72 * length for length in figure.get_size_inches())
    bottom = whole_height - top - height
    axes = figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))
    axes.patch.set_visible(False)
    for name, spine in axes.spines.items():
        spine.set_visible(name in spines)
    return axes


def render_svg(
    figure: Any,
    *,
    title: str,
    description: str,
    identity: str,
    colours: Mapping[str, str] | None = None,
    comment: str = "",
    tips: Mapping[str, str] | None = None,
) -> str:
    """Render a figure as an `svg` element with a name and a description for screen readers.

    The `gid` of an artist, up to a colon, becomes its class. Nothing is clipped: artists must be within their axes.

    Args:
        figure: a figure from `canvas`.
        title: what the figure shows, in a few words.
        description: text alternative for screen readers.
        identity: prefix of every id, so that one page can contain several figures.
        colours: role to colour, for a standalone file; without it, colours are the classes `fill-ROLE` and
            `stroke-ROLE`, for a page with a style sheet.
        comment: XML comment of a standalone file.
        tips: `gid` to the tooltip of the artist.

    Raises:
        ValueError: an artist has a colour that is not from `colour`.
    """
    figure.patch.set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn = ET.fromstring(_replace_invalid(buffer.getvalue()))
    head = {"viewBox": drawn.get("viewBox", ""), "role": "img", "aria-labelledby": f"{identity}-t {identity}-d"}
    if colours is None:
        head["class"] = "figure"
    else:
        size = drawn.get("viewBox", "").split()
        head = {"xmlns": "http://www.w3.org/2000/svg", "width": size[2], "height": size[3], **head,
                "font-family": "system-ui, sans-serif"}  # fmt: skip
    root = ET.Element("svg", head)
    for tag, text in (("title", title), ("desc", description)):
        ET.SubElement(root, tag, {"id": f"{identity}-{tag[0]}"}).text = _replace_invalid(text)
    known = {
        use: f"{identity}-{place}"
        for place, use in enumerate(dict.fromkeys(_href(use) for use in drawn.iter() if _tag(use) == "use"))
    }
    writer = _Writer(colours, known, tips or {})
    inside = writer.reduce_children(drawn)
    if writer.markers:
        ET.SubElement(root, "defs").extend(writer.markers)
    root.extend(inside)
    _hoist_font_size(root)
    if colours is not None:
        ET.indent(root, "")
    text = ET.tostring(root, encoding="unicode")
    if comment:
        text = text.replace(">", f">\n<!-- {re.sub('-(?=-|$)', '- ', _replace_invalid(comment))} -->", 1)
    return text if colours is None else text + "\n"


def _hoist_font_size(root: ET.Element) -> None:
    """Move the most common font size to the root element."""
    sizes = collections.Counter(text.get("font-size", "") for text in root.iter("text"))
    if sizes:
        size = sizes.most_common(1)[0][0]
        for text in root.iter("text"):
            if text.get("font-size") == size:
                del text.attrib["font-size"]
        root.set("font-size", size)


def _replace_invalid(text: str) -> str:
    """Replace the characters that XML cannot contain."""
    return _CONTROLS.sub("\ufffd", text)


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _href(element: ET.Element) -> str:
    return element.get("{http://www.w3.org/1999/xlink}href", "").removeprefix("#")


def _shorten(text: str) -> str:
    """Round numbers to two decimals; remove needless spaces from path data."""
    text = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), text)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", re.sub(r"\b-0\b", "0", text)).strip()


class _Writer:
    """Reduces the elements written by matplotlib."""

    def __init__(self, colours: Mapping[str, str] | None, ids: Mapping[str, str], tips: Mapping[str, str]) -> None:
        self.colours, self.ids, self.tips = colours, ids, tips
        self.markers: list[ET.Element] = []

    def reduce_children(self, parent: ET.Element) -> list[ET.Element]:
        return [reduced for child in parent for reduced in self.reduce(child)]

    def reduce(self, element: ET.Element) -> list[ET.Element]:
        tag = _tag(element)
        if tag == "g":
            return self.reduce_group(element)
        if tag == "defs":
            self.markers += self.reduce_children(element)
        if tag not in ("path", "use", "text"):
            return []  # style sheet, metadata, clip paths
        attributes: dict[str, str] = {
            name: _shorten(element.get(name, "")) for name in ("x", "y", "d") if name in element.attrib
        }
        turn = element.get("transform", "")
        if turn and not turn.startswith(("rotate(-0 ", "rotate(0 ")):
            attributes["transform"] = _shorten(turn)
        if tag == "use":
            attributes = {"href": f"#{self.ids[_href(element)]}", **attributes}
        elif element.get("id") in self.ids:
            attributes["id"] = self.ids[element.get("id", "")]
        marker = tag == "path" and "id" in element.attrib  # coloured where it is used
        attributes.update(self.convert_style(element.get("style", ""), "" if marker else "#000000"))
        found = ET.Element(tag, attributes)
        found.text = element.text if tag == "text" else None
        return [found]

    def reduce_group(self, element: ET.Element) -> list[ET.Element]:
        """Return the group, or its children if the group has neither a class nor a tooltip."""
        inside = self.reduce_children(element)
        name = element.get("id", "")
        css = "" if re.fullmatch(r".*_\d+", name) else name.partition(":")[0]  # a name from matplotlib: `patch_3`
        tip = self.tips.get(name)
        if not inside or (not css and tip is None):
            return inside
        if len(inside) == 1 and tip is None:
            inside[0].set("class", f"{css} {inside[0].get('class', '')}".strip())
            return inside
        found = ET.Element("g", {"class": css} if css else {})
        if tip is not None:
            ET.SubElement(found, "title").text = _replace_invalid(tip)
        found.extend(inside)
        return [found]

    def convert_style(self, style: str, fill: str) -> dict[str, str]:
        """Convert a style attribute to attributes; `fill` is the default fill."""
        given = dict(item.split(": ", 1) for item in style.split("; ") if ": " in item)
        font = re.match(r"(?:(\w+) )?([\d.]+)px ", given.get("font", ""))  # up to matplotlib 3.8: weight, size, family
        if font:
            given |= {"font-weight": font[1] or "", "font-size": font[2]}
        classes, attributes = [], {}
        for part, value in (("fill", given.get("fill", fill)), ("stroke", given.get("stroke", "none"))):
            if value == "" or (part, value) == ("stroke", "none"):
                continue
            if value != "none" and value not in _BY_COLOUR:
                raise ValueError(f"the colour {value} is not from `expunge.core.figures.colour`")
            role = _BY_COLOUR.get(value, "none")
            if self.colours is None:
                classes.append(f"{part}-{role}")
            else:
                attributes[part] = self.colours.get(role, "none")
        for name, default in _PROPERTIES.items():
            value = _shorten(given.get(name, default)).removesuffix("px")
            if value != default:
                attributes[name] = value
        return {"class": " ".join(classes), **attributes} if classes else attributes
