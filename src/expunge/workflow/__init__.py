"""Whole jobs, as Python functions: what each command of the command line calls. Importing this does not import torch.

This room stands between `cli` and `report`: it joins the stages of `experiments` with the page of `report`, so that the
command line has no logic of its own.
"""

from .certify import Certified, certify
from .check import Check, check_run
from .demo import demo_plan, run_demo
from .evaluate import rescore
from .export import Exported, export_model
from .forget import DEFAULT_STORE, ForgetResult, forget, original_model
from .inputs import check_inputs
from .output import RunPaths
from .report import report_of

__all__ = [
    "DEFAULT_STORE",
    "Certified",
    "Check",
    "Exported",
    "ForgetResult",
    "RunPaths",
    "certify",
    "check_inputs",
    "check_run",
    "demo_plan",
    "export_model",
    "forget",
    "original_model",
    "report_of",
    "rescore",
    "run_demo",
]
