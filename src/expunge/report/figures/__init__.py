"""Figures of the report as inline SVG; colours are classes of the style sheet, so they follow light, dark and print."""

from .gaps import choose_gap_axis_end, draw_gap_panel, draw_gap_panels
from .masks import draw_masks
from .panels import choose_axis_end, draw_confidence_panel, draw_density_bars

__all__ = [
    "choose_axis_end",
    "choose_gap_axis_end",
    "draw_confidence_panel",
    "draw_density_bars",
    "draw_gap_panel",
    "draw_gap_panels",
    "draw_masks",
]
