"""The two products of CUTLASS's 2:4 tensors on a CPU: they unpack with PyTorch's own layout code and multiply."""

from __future__ import annotations

import torch
from torch.sparse import _semi_structured_conversions as layout


def stand_ins(ran: list[str]) -> torch.library.Library:
    """Register both for CPU tensors; `ran` says which were called. They go with the library (`_destroy`)."""

    def mm(packed, meta, dense, *, out_dtype=None):
        ran.append("mm")
        return (layout.sparse_semi_structured_to_dense_cutlass(packed, meta).float() @ dense.float()).half()

    def addmm(bias, packed, meta, dense, *, alpha=1, beta=1, out_dtype=None):
        ran.append("addmm")
        product = layout.sparse_semi_structured_to_dense_cutlass(packed, meta).float() @ dense.float()
        return (beta * bias.float()[:, None] + alpha * product).half()

    library = torch.library.Library("aten", "IMPL", "CPU")
    library.impl("_sparse_semi_structured_mm", mm)
    library.impl("_sparse_semi_structured_addmm", addmm)
    return library
