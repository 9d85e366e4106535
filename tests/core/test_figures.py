"""Figures as SVG text: what it contains, and what it must not contain."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from expunge.core.figures import ROLES, add_axes, canvas, colour, render_svg

HOSTILE = "<script>alert('&')</script>]]>--\x00\x1b$x^2$"


def drawn(identity: str = "x", text: str = "words", **options: Any) -> str:
    """Three dots at x = 1, 2, 4 of an axis from 0 to 4 that spans 20 to 180 pixels, a bar, a grid and a text."""
    with canvas(200, 100) as figure:
        axes = add_axes(figure, 20, 10, 160, 70, ["left", "bottom"])
        axes.set_xlim(0, 4)
        axes.set_ylim(0, 1)
        axes.set_xticks([0, 4], [text, "4"])
        axes.set_yticks([])
        axes.grid(axis="x", dashes=(2, 3))
        axes.plot([1, 2, 4], [0.5, 0.5, 0.5], "o", markersize=4, markeredgewidth=0, color=colour("mean"), gid="dots")
        axes.barh(0.2, 3, 0.1, color=colour("forget"), alpha=0.5, gid="bar:1")
        axes.set_title(text, loc="left", fontsize=9, gid="head")
        given = {"title": text, "description": text, **options}
        return render_svg(figure, identity=identity, **given)


def test_artists_lie_where_their_data_say() -> None:
    root = ET.fromstring(drawn())
    dots = next(g for g in root.iter("g") if g.get("class") == "dots")
    assert [(float(u.attrib["x"]), float(u.attrib["y"])) for u in dots.iter("use")] == [(60, 45), (100, 45), (180, 45)]
    (bar,) = [p for p in root.iter("path") if p.get("class") == "bar fill-forget"]
    assert bar.attrib == {"d": "M20 69.5L140 69.5L140 62.5L20 62.5z", "class": "bar fill-forget", "opacity": "0.5"}
    assert root.get("viewBox") == "0 0 200 100"
    assert [t.text for t in root.iter("text")] == ["words", "4", "words"]


def test_colours_are_classes_in_a_page_and_colours_in_a_file() -> None:
    page = drawn()
    assert "#0a0b" not in page
    assert "fill=" not in page
    assert "stroke=" not in page
    classes = {name for element in ET.fromstring(page).iter() for name in element.get("class", "").split()}
    assert classes == {"figure", "dots", "bar", "head", "fill-mean", "fill-forget", "fill-none", "fill-muted",
                       "fill-ink", "stroke-line", "stroke-muted"}  # fmt: skip
    file = drawn(colours={role: f"#00000{place}" for place, role in enumerate(ROLES)}, comment="a -- b -")
    root = ET.fromstring(file)
    paints = {element.get(part) for element in root.iter() for part in ("fill", "stroke")} - {None}
    assert paints == {"none", *(f"#00000{ROLES.index(role)}" for role in ("ink", "muted", "line", "forget", "mean"))}
    assert "<!-- a - - b -  -->" in file


@pytest.mark.parametrize("options", [{}, {"colours": dict.fromkeys(ROLES, "#123456"), "comment": "c"}])
def test_nothing_but_plain_attributes(options: dict[str, Any]) -> None:
    """No style, script, date, font or reference to another place: a strict policy lets all of it pass."""
    text = drawn(**options)
    for element in ET.fromstring(text).iter():
        tag = element.tag.removeprefix("{http://www.w3.org/2000/svg}")
        assert tag in {"svg", "g", "defs", "path", "use", "text", "title", "desc"}
        assert not {"style", "transform", "clip-path"} & set(element.attrib)
        assert not any(name.startswith("on") for name in element.attrib)
        assert element.get("href", "#x").startswith("#x")
    for word in ("url(", "DejaVu", "matplotlib", "font-face", "<?xml", "DOCTYPE"):
        assert word not in text


def test_ids_begin_with_the_identity_and_resolve() -> None:
    both = ET.fromstring(f"<div>{drawn('a1')}{drawn('b2')}</div>")
    ids = [element.get("id") for element in both.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids)) == 6
    for svg, identity in zip(both, ("a1", "b2"), strict=True):
        own = {element.get("id") for element in svg.iter()} - {None}
        assert all(str(one).startswith(f"{identity}-") for one in own)
        assert {use.attrib["href"][1:] for use in svg.iter("use")} <= own
        assert set(svg.attrib["aria-labelledby"].split()) <= own
        assert svg.get("role") == "img"


def test_strings_are_escaped_and_not_parsed_as_formulae() -> None:
    for options in ({}, {"colours": dict.fromkeys(ROLES, "#123456"), "comment": HOSTILE}):
        text = drawn(text=HOSTILE, tips={"bar:1": HOSTILE}, **options)
        root = ET.fromstring(text)
        shown = HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
        name = "{http://www.w3.org/2000/svg}" if options else ""
        assert [e.text for e in root.iter(f"{name}text")] == [shown, "4", shown]
        assert [e.text for e in root.iter(f"{name}title")] == [shown, shown]
        assert [e.text for e in root.iter(f"{name}desc")] == [shown]
        assert "<script" not in text.replace("<!-- <script", "")


def test_a_font_without_a_character_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert "\u6570" in drawn(text="\u6570")
    assert [str(one.message) for one in recwarn] == []


def test_an_artist_with_another_colour_is_refused() -> None:
    for kind in ("tab:blue", "black"):
        with canvas(50, 50) as figure:
            add_axes(figure, 0, 0, 50, 50, []).barh(0, 1, color=kind)
            with pytest.raises(ValueError, match="is not from"):
                render_svg(figure, title="t", description="d", identity="x")


def test_equal_figures_are_equal_bytes_whatever_the_user_set() -> None:
    import matplotlib

    before = drawn()
    with matplotlib.rc_context({"font.size": 30, "path.sketch": (1, 100, 2), "axes.titleweight": "bold"}):
        assert drawn() == before
        assert matplotlib.rcParams["font.size"] == 30


def test_importing_does_not_import_matplotlib() -> None:
    code = (
        "import sys, expunge.cli, expunge.core.figures, expunge.experiments, expunge.report, expunge.report.html, "
        "expunge.workflow; sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
