"""Criteria for channels: filter norms, the geometric median, BatchNorm scales."""

from __future__ import annotations

import torch
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.hashing import plain_name

from .registry import Material, Scores, register_criterion


def _rows(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().reshape(len(weight), -1).double()


@register_criterion(
    "filter-l2", kind="channel", source="Li et al., ICLR 2017; soft filter pruning: He et al., IJCAI 2018"
)
def filter_l2(material: Material) -> Scores:
    """||F_c||_2 of every filter (row of a weight)."""
    return {name: _rows(weight).norm(dim=1) for name, weight in material.weights.items()}


@register_criterion("filter-l1", kind="channel", source="Li et al.: Pruning filters, ICLR 2017")
def filter_l1(material: Material) -> Scores:
    """||F_c||_1 of every filter (row of a weight)."""
    return {name: _rows(weight).abs().sum(dim=1) for name, weight in material.weights.items()}


@register_criterion(
    "FPGM", kind="channel", source="He et al.: Filter pruning via geometric median, CVPR 2019, equation 5"
)
def geometric_median(material: Material) -> Scores:
    """sum_k ||F_c - F_k||_2 within a layer: a filter near the others' geometric median can be replaced by them."""
    return {
        name: torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
        for name, rows in ((name, _rows(weight)) for name, weight in material.weights.items())
    }


@register_criterion("batchnorm", kind="channel", source="Liu et al.: Network slimming, ICCV 2017")
def batchnorm_scale(material: Material) -> Scores:
    """|gamma| of the BatchNorm layer behind the channel."""
    found = {
        plain_name(f"{name}.weight"): module.weight.detach().abs().double()
        for name, module in material.model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine
    }
    if not found:
        raise MaskError(
            "the network has no BatchNorm layer, so there are no scales to rank",
            where="criterion batchnorm",
            hint="use filter-l2 or FPGM",
        )
    return found
