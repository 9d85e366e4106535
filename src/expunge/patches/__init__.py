"""Certified patches: a classifier stops predicting the labels of given points, with proofs. See docs/patches.md.

The usual order of calls: `trace` a model; compute patches with `forget_points`, or with `compute_patterns` and `solve`;
wrap the model in a `PatchedModel`; write a certificate with `write_certificate`. The separate program `expunge-check`
verifies the certificate.
"""

from expunge.core.lazy import import_on_use

from .bounds.dual_ascent import AscentOptions
from .bounds.falsify import SearchResult, falsify
from .bounds.proof import Proof
from .bounds.solve import SolveOptions, bound_logit_size, soften, solve
from .bounds.verify import verify_patches
from .certificate import load_network, load_patches, save_network, save_patches, write_certificate
from .forget_points import ForgetPointsResult, PointSelection, forget_points
from .model.compaction import select_needed_patches
from .model.gates import choose_local_slope
from .model.patch_set import PatchSet
from .model.patched_model import PatchedModel
from .network.operations import Network, Operation
from .network.regions import (
    AffineForms,
    Box,
    RegionSize,
    compute_affine_forms,
    compute_patterns,
    matches_pattern,
    measure_region,
    measure_regions,
)
from .network.trace import explain_unsupported, trace
from .targets import choose_targets
from .trained_state import certify

__all__ = [
    "AffineForms",
    "AscentOptions",
    "Box",
    "ForgetPointsResult",
    "Network",
    "Operation",
    "PatchSet",
    "PatchedModel",
    "PointSelection",
    "Proof",
    "RegionSize",
    "SearchResult",
    "SolveOptions",
    "bound_logit_size",
    "certify",
    "choose_local_slope",
    "choose_targets",
    "compute_affine_forms",
    "compute_patterns",
    "explain_unsupported",
    "falsify",
    "forget_points",
    "load_network",
    "load_patches",
    "matches_pattern",
    "measure_region",
    "measure_regions",
    "save_network",
    "save_patches",
    "select_needed_patches",
    "soften",
    "solve",
    "trace",
    "verify_patches",
    "write_certificate",
]

import_on_use(__name__)
