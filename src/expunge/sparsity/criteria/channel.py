"""Criteria that score channels: filter norms, the geometric median, BatchNorm scales."""

from __future__ import annotations

import torch
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.hashing import plain_name

from .registry import Scores, ScoringContext, register_criterion


def _rows(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().reshape(len(weight), -1).double()


@register_criterion(
    "filter-l2", level="channel", citation="Li et al., ICLR 2017; soft filter pruning: He et al., IJCAI 2018"
)
def filter_l2(context: ScoringContext) -> Scores:
    """||F_c||_2 of every filter (row of a weight)."""
    return {name: _rows(weight).norm(dim=1) for name, weight in context.weights.items()}


@register_criterion("filter-l1", level="channel", citation="Li et al.: Pruning filters, ICLR 2017")
def filter_l1(context: ScoringContext) -> Scores:
    """||F_c||_1 of every filter (row of a weight)."""
    return {name: _rows(weight).abs().sum(dim=1) for name, weight in context.weights.items()}


@register_criterion(
    "FPGM", level="channel", citation="He et al.: Filter pruning via geometric median, CVPR 2019, equation 5"
)
def geometric_median(context: ScoringContext) -> Scores:
    """sum_k ||F_c - F_k||_2 within a layer.

    A filter near the geometric median of its layer has a low score: the other filters can replace it.
    """
    return {
        name: torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
        for name, rows in ((name, _rows(weight)) for name, weight in context.weights.items())
    }


@register_criterion("batchnorm", level="channel", citation="Liu et al.: Network slimming, ICCV 2017")
def batchnorm_scale(context: ScoringContext) -> Scores:
    """|gamma| of the BatchNorm layer that follows the channel."""
    found = {
        plain_name(f"{name}.weight"): module.weight.detach().abs().double()
        for name, module in context.model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine
    }
    if not found:
        raise MaskError(
            "the network has no BatchNorm layer, so there are no scales to rank",
            where="criterion batchnorm",
            hint="use filter-l2 or FPGM",
        )
    return found
