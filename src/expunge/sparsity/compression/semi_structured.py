"""2:4 weights as CUDA's semi-structured sparse tensors, layer by layer, each compared with the masked layer.

PyTorch packs the weights for one of two libraries. The kernels of CUTLASS run on compute capability 8 only (Ampere,
Ada); those of cuSPARSELt on 8 and above, if PyTorch was built with it and it supports the device. Which library works
is found by trying: one that cannot pack a layer, or whose layer gives other outputs, is skipped.
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

#: Rows and columns of half-precision weights must be multiples of these, for either library.
ROWS, COLUMNS = 32, 64
BACKENDS: dict[str, str] = {
    "cusparselt": "compute capability 8 and above, where PyTorch has cuSPARSELt",
    "cutlass": "compute capability 8",
}


def to_semi_structured(
    model: nn.Module, mask: Mask, *, backend: str = "auto", tolerance: float = 1e-2, device: str = "cuda"
) -> nn.Module:
    """Copy the model to CUDA in half precision, with its 2:4 linear layers as semi-structured sparse tensors.

    The outputs of every converted layer are compared with those of the masked layer, in half precision, on random
    inputs. Convolutions, and layers whose shape is not supported (rows in multiples of 32, columns of 64), stay dense.

    Args:
        model: the network; not modified.
        mask: a mask of granularity 2:4, or a sparser one that satisfies 2:4.
        backend: a key of `BACKENDS`, or `auto`: the first of them that works on this device.
        tolerance: largest difference allowed, relative to the layer's largest output where that exceeds 1.
        device: a CUDA device.

    Raises:
        MaskError: the mask is not 2:4, there is no CUDA device, no layer has a supported shape, outputs differ, or no
            library works on the device (the message gives the reason for each).

    Example:
        >>> from torch import nn
        >>> from expunge.core.errors import MaskError
        >>> from expunge.sparsity import Rule, make_mask
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> mask, _ = make_mask(model, Rule(granularity="2:4", layers=("linear",)))
        >>> try:
        ...     to_semi_structured(model, mask, device="cpu")
        ... except MaskError as error:
        ...     print(error.what)
        semi-structured tensors need a CUDA device, and 'cpu' is not one that is available
    """
    if backend != "auto" and backend not in BACKENDS:
        hint = unknown_name_hint(str(backend), ("auto", *BACKENDS))
        raise MaskError(f"unknown backend {backend!r}", where="semi_structured.backend", hint=hint)
    wrong = [name for name, kept in mask.kept.items() if not obeys_pattern(kept, 2, 4)]
    if wrong:
        raise MaskError("the mask is not 2:4", where=wrong[0], hint="prune with granularity=2:4")
    if not find_convertible_layers(model, mask):
        raise MaskError(
            "no linear layer of the mask has a shape that semi-structured tensors support",
            where="export 2:4",
            hint=f"rows must be a multiple of {ROWS} and columns of {COLUMNS}",
        )
    if not _is_available(device):
        raise MaskError(
            f"semi-structured tensors need a CUDA device, and {device!r} is not one that is available",
            where=f"export 2:4, device {device}",
            hint="export dense with zeros; the pattern is preserved and can be converted where CUDA is available",
        )
    masked = clone_model(model)
    mask.apply_(masked)
    masked = masked.half().to(device).eval()
    failed = []
    for name, pack in _get_packers().items():
        if backend not in ("auto", name):
            continue
        copy = clone_model(masked)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # PyTorch warns that the interface is a prototype
                convert_layers(copy, mask, pack, tolerance=tolerance)
        except (RuntimeError, MaskError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            failed.append(f"{name}: {lines[0]}")
        else:
            return copy
    raise MaskError(
        "; ".join(failed),
        where=f"export 2:4, device {device}",
        hint="export dense with zeros; the pattern is preserved and can be converted where a library works",
    )


def _is_available(device: str) -> bool:
    """Whether the string names a CUDA device of this machine."""
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError):  # not the name of a device
        return False
    return parsed.type == "cuda" and torch.cuda.is_available() and (parsed.index or 0) < torch.cuda.device_count()


def _get_packers() -> Mapping[str, Pack]:
    """PyTorch's packing function for each library."""
    sparse = torch.sparse
    return {
        "cusparselt": sparse.SparseSemiStructuredTensorCUSPARSELT.from_dense,
        "cutlass": sparse.SparseSemiStructuredTensorCUTLASS.from_dense,
    }


def find_convertible_layers(model: nn.Module, mask: Mask) -> dict[str, nn.Linear]:
    """Return the linear layers of a mask, by name, whose shape semi-structured tensors support in half precision."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and plain_name(f"{name}.weight") in mask.kept
        and module.out_features % ROWS == 0
        and module.in_features % COLUMNS == 0
    }


def convert_layers(model: nn.Module, mask: Mask, pack: Pack, *, tolerance: float) -> list[str]:
    """Replace the weights of all convertible layers by `pack(weight)`, in place, and compare each layer's outputs.

    Returns:
        The names of the layers.

    Raises:
        MaskError: a layer's outputs differ by more than `tolerance` of the largest.
    """
    found = find_convertible_layers(model, mask)
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
