"""The report: one self-contained HTML file that an auditor and an engineer can both read."""

from .content import Comparison, Histogram, ModelResult, ReportContent, Request, Scenario, Score, State
from .html import render_report, write_report
from .read import average_over_seeds, read_class_accuracy, read_histograms, read_scores

__all__ = [
    "Comparison",
    "Histogram",
    "ModelResult",
    "ReportContent",
    "Request",
    "Scenario",
    "Score",
    "State",
    "average_over_seeds",
    "read_class_accuracy",
    "read_histograms",
    "read_scores",
    "render_report",
    "write_report",
]
