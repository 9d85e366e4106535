import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest

from expunge.report import Histogram
from expunge.report.figures import choose_axis_end, draw_confidence_panel, draw_density_bars


def _corners(svg: str, css: str) -> list[list[tuple[float, float]]]:
    """The corners of every path that has this class."""
    paths = [e.attrib["d"] for e in ET.fromstring(svg).iter("path") if css in e.get("class", "").split()]
    return [[(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)] for path in paths]


def _texts(svg: str) -> list[str | None]:
    return [element.text for element in ET.fromstring(svg).iter("text")]


def test_the_height_of_a_bin_is_the_square_root_of_its_fraction():
    histogram = Histogram((0.0, 0.25, 0.5, 1.0), (1, 3, 12))
    svg = str(draw_confidence_panel("FT", {"forget": histogram}, {"forget": Histogram((0.0, 1.0), (5,))}, "x"))
    (corners,) = _corners(svg, "fill-forget")
    base = corners[0][1]
    heights = [base - y for _, y in corners[1:-1:2]]
    full = base - _corners(svg, "f-reference")[0][1][1]
    assert heights == pytest.approx([full * math.sqrt(n / 16) for n in (1, 3, 12)], abs=0.02)
    left, right = corners[0][0], corners[-1][0]
    middles = [(x - left) / (right - left) for x, _ in corners[1:-1]]
    assert middles == pytest.approx([0, 0.25, 0.25, 0.5, 0.5, 1.0], abs=1e-3)
    grid = [base - line[0][1] for line in _corners(svg, "stroke-line")]
    assert grid == pytest.approx([full * math.sqrt(0.1), full * math.sqrt(0.5)], abs=0.02)
    assert _texts(svg) == ["0", "0.5", "1", "10 %", "50 %", "forget", "n = 16"]


def test_every_part_has_a_strip_in_its_colour_and_an_empty_part_only_a_title():
    histogram, none = Histogram((0.0, 0.5, 1.0), (1, 3)), Histogram((0.0, 1.0), (0,))
    parts = {"other": histogram, "non_members": none, "retain": histogram, "forget": histogram}
    svg = str(draw_confidence_panel("FT", parts, {"retain": histogram, "non_members": none}, "x"))
    labels = ["forget", "retain", "non-members", "other"]
    assert [text for text in _texts(svg) if text in labels] == labels
    assert [text for text in _texts(svg) if "n =" in text] == ["n = 4", "n = 4", "n = 0", "n = 4"]
    assert len(_corners(svg, "fill-forget")) == 1
    assert len(_corners(svg, "fill-retain")) == 2  # also the colour of a part without a separate colour
    assert len(_corners(svg, "fill-non_members")) == 0
    (area, _), (outline,) = _corners(svg, "fill-retain"), _corners(svg, "f-reference")
    assert area[1:-1] == outline[1:-1]
    tops = [min(y for _, y in corners) for css in ("fill-forget", "fill-retain") for corners in _corners(svg, css)]
    assert tops == sorted(tops)
    assert _texts(svg).count("0.5") == 1


def test_figures_are_complete_svg_with_a_title_and_a_description():
    histogram = Histogram((0.0, 0.5, 1.0), (1, 3))
    parts = {"forget": histogram, "other": histogram, "non_members": Histogram((0.0, 1.0), (0,))}
    for svg in (
        draw_confidence_panel("<b>&", parts, None, "x"),
        draw_density_bars({"a.weight": 0.5, 'b"<': 0.1}, "<b>&", "y"),
        draw_confidence_panel("none", {}, None, "z"),
        draw_density_bars({}, "none", "w"),
    ):  # fmt: skip
        tree = ET.fromstring(str(svg))
        assert tree.get("role") == "img"
        ids = {element.get("id") for element in tree.iter()}
        assert set(tree.get("aria-labelledby").split()) <= ids
        assert "nan" not in str(svg)


def test_the_description_has_the_tail():
    words = str(draw_confidence_panel("FT", {"forget": Histogram((0.0, 0.5, 0.9, 1.0), (1, 1, 2))}, None, "x"))
    assert "4 records, 50% in the last bin (from 0.9 on), 25% at 0.5 or less" in words


def test_bars_are_as_long_as_their_density():
    density = {"a": 0.2, "b": 0.1, "c": 0.0, "a.long.name.of.some.layer.weight": 0.15}
    svg = str(draw_density_bars(density, "FT", "x"))
    bars = _corners(svg, "fill-retain")
    assert [bar[1][0] - bar[0][0] for bar in bars] == pytest.approx([176, 88, 0, 132])  # the axis ends at 20 %
    assert [bar[0][0] for bar in bars] == [116.0] * 4
    middles = [(bar[0][1] + bar[2][1]) / 2 for bar in bars]
    assert [b - a for a, b in itertools.pairwise(middles)] == [22.0] * 3
    texts = _texts(svg)
    assert [text for text in texts if ".0 %" in text] == ["20.0 %", "10.0 %", "0.0 %", "15.0 %"]
    assert [text for text in texts if "%" not in text] == ["a", "b", "c", "a.long.…me.layer"]
    assert [text for text in texts if re.fullmatch(r"\d+ %", text)] == ["0 %", "10 %", "20 %"]
    tips = [e.text for e in ET.fromstring(svg).iter("title")][1:]
    assert tips == ["a: 20.00 %", "b: 10.00 %", "c: 0.00 %", "a.long.name.of.some.layer.weight: 15.00 %"]


@pytest.mark.parametrize(("highest", "end"), [(0.0, 0.05), (0.05, 0.05), (0.11, 0.2), (0.76, 1.0), (1.0, 1.0)])
def test_the_axis_ends_at_the_next_round_density(highest, end):
    assert choose_axis_end(highest) == end
