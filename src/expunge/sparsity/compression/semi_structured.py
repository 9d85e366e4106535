"""2:4 weights as CUDA's semi-structured sparse tensors, layer by layer, each compared with the masked layer.

PyTorch packs for one of two libraries. CUTLASS's kernels run on compute capability 8 only (Ampere, Ada); cuSPARSELt's
on 8 and above, where PyTorch was built with it and it knows the device. Which works is found by trying: a packing that
cannot be made, or whose layer differs, is passed over.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import nn

from expunge.core.errors import MaskError, unknown_name_hint
from expunge.core.hashing import plain_name
from expunge.core.mask import Mask
from expunge.core.trained import clone_model
from expunge.sparsity.masks.granularity import obeys_pattern

Pack = Callable[[torch.Tensor], torch.Tensor]

#: Rows and columns of half-precision weights come in multiples of these, for either library.
ROWS, COLUMNS = 32, 64
BACKENDS: dict[str, str] = {
    "cusparselt": "compute capability 8 and above, where PyTorch has cuSPARSELt",
    "cutlass": "compute capability 8",
}


def semi_structured(
    model: nn.Module, mask: Mask, *, backend: str = "auto", tolerance: float = 1e-2, device: str = "cuda"
) -> nn.Module:
    """A copy of the model on CUDA, in half precision, whose 2:4 linear layers use semi-structured sparse tensors.

    The outputs of every converted layer are compared with the masked layer's, in half precision, on random inputs.
    Layers whose shape the tensors do not take (rows in multiples of 32, columns of 64), and convolutions, stay dense.

    Args:
        model: not modified.
        mask: of granularity 2:4, or a finer one that implies it.
        backend: a key of `BACKENDS`, or `auto`: the first of them that works on this device.
        tolerance: largest difference allowed, relative to the layer's largest output where that exceeds 1.
        device: a CUDA device.

    Raises:
        MaskError: the mask is not 2:4, CUDA is absent, no layer has a shape that the tensors take, outputs differ, or
            no library works on the device (each one's reason is told).
    """
    if backend != "auto" and backend not in BACKENDS:
        hint = unknown_name_hint(str(backend), ("auto", *BACKENDS))
        raise MaskError(f"unknown backend {backend!r}", where="semi_structured.backend", hint=hint)
    wrong = [name for name, alive in mask.alive.items() if not obeys_pattern(alive, 2, 4)]
    if wrong:
        raise MaskError("the mask is not 2:4", where=wrong[0], hint="prune with granularity=2:4")
    if not fitting(model, mask):
        raise MaskError(
            "no linear layer of the mask has a shape that semi-structured tensors take",
            where="export 2:4",
            hint=f"rows must be a multiple of {ROWS} and columns of {COLUMNS}",
        )
    if not _usable(device):
        raise MaskError(
            f"semi-structured tensors need a CUDA device, and {device!r} is none, or is not there",
            where=f"export 2:4, device {device}",
            hint="export dense with zeros; the pattern is kept and can be converted where CUDA is",
        )
    masked = clone_model(model)
    mask.apply_(masked)
    masked = masked.half().to(device).eval()
    failed = []
    for name, pack in _packings().items():
        if backend not in ("auto", name):
            continue
        twin = clone_model(masked)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that PyTorch's interface is a prototype
                convert_layers(twin, mask, pack, tolerance=tolerance)
        except (RuntimeError, MaskError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            failed.append(f"{name}: {said[0]}")
        else:
            return twin
    raise MaskError(
        "; ".join(failed),
        where=f"export 2:4, device {device}",
        hint="export dense with zeros; the pattern is kept and can be converted where a library works",
    )


def _usable(device: str) -> bool:
    """Whether this names a CUDA device that is there."""
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):  # no device at all
        return False
    return place.type == "cuda" and torch.cuda.is_available() and (place.index or 0) < torch.cuda.device_count()


def _packings() -> Mapping[str, Pack]:
    """How PyTorch packs for each library."""
    sparse = torch.sparse
    return {
        "cusparselt": sparse.SparseSemiStructuredTensorCUSPARSELT.from_dense,
        "cutlass": sparse.SparseSemiStructuredTensorCUTLASS.from_dense,
    }


def fitting(model: nn.Module, mask: Mask) -> dict[str, nn.Linear]:
    """The linear layers of a mask, by name, whose shape semi-structured tensors take in half precision."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and plain_name(f"{name}.weight") in mask.alive
        and module.out_features % ROWS == 0
        and module.in_features % COLUMNS == 0
    }


def convert_layers(model: nn.Module, mask: Mask, pack: Pack, *, tolerance: float) -> list[str]:
    """Replace the weights of `fitting` layers by `pack(weight)`, in place; each layer's outputs are compared.

    Returns:
        The names of the layers.

    Raises:
        MaskError: a layer's outputs differ by more than `tolerance` of the largest.
    """
    found = fitting(model, mask)
    for name, module in found.items():
        weight = module.weight.detach()
        x = torch.randn(64, module.in_features, generator=torch.Generator().manual_seed(0)).to(weight)
        with torch.inference_mode():
            expected = module(x)
        module.weight = nn.Parameter(pack(weight), requires_grad=False)
        with torch.inference_mode():
            difference = float((module(x) - expected).abs().max())
        if not difference <= tolerance * max(1.0, float(expected.abs().max())):
            raise MaskError(f"the sparse layer differs from the masked one by {difference:.3g}", where=name)
    return list(found)
