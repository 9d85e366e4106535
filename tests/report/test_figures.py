import math
import re
import xml.etree.ElementTree as ET

import pytest

from expunge.report import Histogram
from expunge.report.figures import axis_end, confidence_panel, density_bars


def _outline(svg: str, css: str) -> list[tuple[float, float]]:
    path = re.search(rf'<path d="([^"]*)" class="[^"]*{css}[^"]*"', svg).group(1)
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


def test_the_height_of_a_bin_is_the_square_root_of_its_share():
    histogram = Histogram((0.0, 0.25, 0.5, 1.0), (1, 3, 12))
    svg = str(confidence_panel("FT", {"forget": histogram}, {"forget": Histogram((0.0, 1.0), (5,))}, "x"))
    corners = _outline(svg, "f-forget")
    base = corners[0][1]
    heights = [base - y for _, y in corners[1:-1:2]]
    full = base - _outline(svg, "f-reference")[0][1]
    assert heights == pytest.approx([full * math.sqrt(n / 16) for n in (1, 3, 12)], abs=0.02)
    left, right = corners[0][0], corners[-1][0]
    middles = [(x - left) / (right - left) for x, _ in corners[1:-1]]
    assert middles == pytest.approx([0, 0.25, 0.25, 0.5, 0.5, 1.0], abs=1e-3)


def test_figures_are_whole_svg_with_a_name_and_a_description():
    histogram = Histogram((0.0, 0.5, 1.0), (1, 3))
    parts = {"forget": histogram, "other": histogram, "unseen": Histogram((0.0, 1.0), (0,))}
    for svg in (
        confidence_panel("<b>&", parts, None, "x"),
        density_bars({"a.weight": 0.5, 'b"<': 0.1}, "<b>&", "y"),
        confidence_panel("none", {}, None, "z"),
        density_bars({}, "none", "w"),
    ):  # fmt: skip
        tree = ET.fromstring(str(svg))
        assert tree.get("role") == "img"
        ids = {element.get("id") for element in tree.iter()}
        assert set(tree.get("aria-labelledby").split()) <= ids
        assert "nan" not in str(svg)


def test_the_description_tells_the_tail():
    words = str(confidence_panel("FT", {"forget": Histogram((0.0, 0.5, 0.9, 1.0), (1, 1, 2))}, None, "x"))
    assert "4 records, 50% in the last bin (from 0.9 on), 25% at 0.5 or less" in words


def test_bars_are_as_long_as_their_density():
    svg = str(density_bars({"a": 0.2, "b": 0.1, "c": 0.0}, "FT", "x"))
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', svg)]
    assert widths[0] == pytest.approx(2 * widths[1])
    assert widths[2] == 0
    assert all(text in svg for text in (">20.0 %<", ">10.0 %<", ">0.0 %<"))


@pytest.mark.parametrize(("highest", "end"), [(0.0, 0.05), (0.05, 0.05), (0.11, 0.2), (0.76, 1.0), (1.0, 1.0)])
def test_the_axis_ends_at_the_next_round_share(highest, end):
    assert axis_end(highest) == end
