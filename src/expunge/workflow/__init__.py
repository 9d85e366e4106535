"""The commands of the command line as Python functions. Importing this package does not import torch.

This package is the layer between `cli` and `report`: it runs the stages of `experiments` and writes the page of
`report`, so that the command line only parses and prints.
"""

from expunge.core.lazy import import_on_use

from .certify import CertificateFiles, certify
from .check import Check, check_plan_cells, check_run
from .costs import MethodCost, Probe, estimate_methods, measure_speed, render_costs
from .costs.stages import probe_plan
from .demo import load_demo_plan, run_demo
from .evaluate import rescore
from .export import FORMATS, Exported, export_model
from .forget import DEFAULT_STORE, ForgetResult, forget, make_original_model
from .infer import Draft, Question, draft_configuration, write_configuration
from .inputs import check_inputs
from .output import RunPaths
from .purge import Artefact, Purge, find_artefacts, purge, read_purge_ids
from .report import make_report_content

__all__ = [
    "DEFAULT_STORE",
    "FORMATS",
    "Artefact",
    "CertificateFiles",
    "Check",
    "Draft",
    "Exported",
    "ForgetResult",
    "MethodCost",
    "Probe",
    "Purge",
    "Question",
    "RunPaths",
    "certify",
    "check_inputs",
    "check_plan_cells",
    "check_run",
    "draft_configuration",
    "estimate_methods",
    "export_model",
    "find_artefacts",
    "forget",
    "load_demo_plan",
    "make_original_model",
    "make_report_content",
    "measure_speed",
    "probe_plan",
    "purge",
    "read_purge_ids",
    "render_costs",
    "rescore",
    "run_demo",
    "write_configuration",
]

import_on_use(__name__)
