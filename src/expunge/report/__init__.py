"""The report: one self-contained HTML file with request, scores, figures, limits and provenance."""

from expunge.core.lazy import import_on_use

from .assemble import Measured, assemble_comparison, count_shared_subjects, list_copies
from .content import Comparison, InfluenceState, ModelResult, ReportContent, ReportWarning, RequestSummary, Scenario
from .html import render_report, write_report
from .read import average_over_seeds, read_class_accuracy, read_histograms, read_scores
from .values import Histogram, ReportScore

__all__ = [
    "Comparison",
    "Histogram",
    "InfluenceState",
    "Measured",
    "ModelResult",
    "ReportContent",
    "ReportScore",
    "ReportWarning",
    "RequestSummary",
    "Scenario",
    "assemble_comparison",
    "average_over_seeds",
    "count_shared_subjects",
    "list_copies",
    "read_class_accuracy",
    "read_histograms",
    "read_scores",
    "render_report",
    "write_report",
]

import_on_use(__name__)
