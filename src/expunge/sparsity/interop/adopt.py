"""Import of pruned models: from a weights file to a trained model with its mask and provenance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from expunge.core.errors import FileError, MaskError, ModelError
from expunge.core.files import PathLike
from expunge.core.hashing import plain_parameters
from expunge.core.mask import SCHEMA as MASK_KIND
from expunge.core.mask import Mask
from expunge.core.show import plural, repr_fields
from expunge.core.split import Split
from expunge.core.trained import Trained, plain_state
from expunge.data.records import Records
from expunge.models import Architecture, adopt_plain_weights, load_tensors, match_names
from expunge.models.factory import is_custom
from expunge.models.weights import find_weight_prefix, find_weights, read_weights
from expunge.sparsity.channels.layers import prunable_weights
from expunge.sparsity.compression.small_model import KIND as SMALL_KIND
from expunge.sparsity.compression.small_model import restore_masked_model
from expunge.sparsity.masks.consistency import check_recorded_rule, record_sparsity

from .formats import (
    DetectedFormat,
    count_rounded_zeros,
    detect_format,
    find_layer_types,
    find_zero_parameters,
    from_torch_prune,
    is_torch_prune,
    mask_from_zeros,
)
from .provenance import PrunedBy, infer_mask, merge_declaration

ZEROS = "zeros"


@dataclasses.dataclass(frozen=True, eq=False)
class ImportedModel:
    """An imported weights file.

    Attributes:
        detected: format, granularity, sparsity. The format is `dense`, `baked-zeros`, `torch-prune`, `mask-file` or
            `physically-smaller` (a physically smaller network, written by `save_small_model`).
        tensors: weights and buffers under the model's own names, masked ones +0.0.
        mask: the mask; None if the weights are dense, or if zeros were not requested as a mask. Its provenance records
            its sparsity: the file's own, or else that of what its rule ranks.
        prefix: what the names of the tensors in the file begin with before the model's own names (`model.`).
    """

    detected: DetectedFormat
    tensors: Mapping[str, torch.Tensor]
    mask: Mask | None
    prefix: str = ""

    __repr__ = repr_fields

    def describe(self) -> str:
        """Describe format and sparsity in one line."""
        found, mask = self.detected, self.mask
        if mask is None:
            kind = "dense" if found.format == "dense" else "not declared as pruned"
            return f"{kind}, {100 * found.sparsity:.2f} % of the weights are exactly zero"
        descriptions = {
            "torch-prune": "torch.nn.utils.prune tensors (weight_orig, weight_mask)",
            "baked-zeros": "zeros in the weights, read as a mask",
            "mask-file": "a mask file",
            "physically-smaller": "a physically smaller network, restored to the masked network from which it was cut",
        }
        rounded = mask.provenance.details.get("rounded_zeros")
        if rounded is not None:
            descriptions["baked-zeros"] += (
                f" (also those of weights below {rounded['below']:.1g} in {rounded['dtype']})"
            )
        tensors = plural(len(mask.kept), "tensor")
        line = f"{100 * mask.sparsity:.2f} % of {plural(mask.total, 'weight')} in {tensors} are masked"
        return f"{descriptions[found.format]}: {line}, granularity {mask.provenance.granularity}"


def import_model(
    architecture: Architecture,
    weights: PathLike,
    *,
    mask: PathLike | None = None,
    pruned: PrunedBy | Mapping[str, Any] | None = None,
) -> ImportedModel:
    """Read a weights file, detect its format and read its mask.

    Args:
        architecture: the network that the weights belong to.
        weights: a safetensors file, or a folder of `save_pretrained`: plain weights, `torch.nn.utils.prune` tensors, or
            a file of `save_small_model`.
        mask: an expunge mask file, or the string `zeros`: a weight is pruned where it is exactly 0.
        pruned: how the model was pruned, if known, as a `PrunedBy` or a mapping of its fields; where the file records
            it too, both must agree.

    Raises:
        FileError: a file is missing, damaged, a pickle, or of another kind.
        MaskError: the mask is damaged or does not fit, there are two masks, the mask contradicts its recorded scope and
            sparsity, `pruned` contradicts the file, or (zeros) all weights of a tensor are zero, or many zeros are
            rounded weights.
        ModelError: the weights do not fit the architecture.
        ConfigError: `pruned` has an unknown name, or does not say how a model was pruned.

    Example:
        >>> from safetensors.torch import save_file
        >>> from torch.nn.utils import prune
        >>> from expunge.models import Architecture
        >>> network = Architecture("mlp", {"widths": (8,)}, (4,), 3)
        >>> model = network.build(0)
        >>> for layer in [m for m in model.modules() if hasattr(m, "weight")]:
        ...     _ = prune.l1_unstructured(layer, "weight", amount=0.75)
        >>> save_file(model.state_dict(), "pruned.safetensors")
        >>> imported = import_model(network, "pruned.safetensors")
        >>> imported.detected.format, imported.mask.sparsity
        ('torch-prune', 0.75)
    """
    pruned = None if pruned is None else PrunedBy.from_value(pruned)
    declared = (pruned or PrunedBy()).validate()
    weights = find_weights(weights)
    tensors, metadata = read_weights(weights)
    if metadata.get("kind") == MASK_KIND:
        raise FileError("is a mask, not the weights of a model", where=weights, hint="pass it as model.mask")
    has_own_mask = metadata.get("kind") == SMALL_KIND or is_torch_prune(tensors)
    if mask is not None and has_own_mask:
        raise MaskError("the weights file has its own mask; leave model.mask out", where=mask)
    model = architecture.build_blank()
    prefix = "" if metadata.get("kind") == SMALL_KIND else find_weight_prefix(tensors, model)
    if metadata.get("kind") == SMALL_KIND:
        _check_factory(metadata, architecture, weights)
        found, tensors, restored = restore_masked_model(weights)
        _check_same_network(found, architecture, weights)
        if isinstance(restored, Mask):
            found_mask = merge_declaration(restored, pruned, model, where=weights)
        else:
            found_mask = infer_mask(restored, tensors, architecture, declared, file_format="physically-smaller")
        file_format = "physically-smaller"
    elif is_torch_prune(tensors):
        plain, hooked = from_torch_prune(tensors)
        tensors = match_names(plain, model, weights)
        kept = match_names(hooked.kept, model, weights)
        Mask(kept, hooked.provenance).check_fits(model)
        found_mask = infer_mask(kept, tensors, architecture, declared, file_format="torch.nn.utils.prune")
        file_format = "torch-prune"
    elif mask is None:
        tensors = match_names(tensors, model, weights)
        return ImportedModel(detect_format(tensors, plain_parameters(model)), tensors, None, prefix)
    elif str(mask) == ZEROS:
        model = load_tensors(model, tensors, weights)
        tensors = match_names(tensors, model, weights)
        found_mask = _read_zeros(model, tensors, architecture, declared, weights)
        file_format = "baked-zeros"
    else:
        loaded = Mask.load(mask)
        loaded.check_fits(model)
        file_format, found_mask = "mask-file", merge_declaration(loaded, pruned, model, where=mask)
        tensors = match_names(tensors, model, weights)
    tensors = {name: _clear_negative_zeros(tensor, found_mask.kept.get(name)) for name, tensor in tensors.items()}
    found_mask = record_sparsity(found_mask, model, architecture.input_shape)
    check_recorded_rule(found_mask, model, architecture.input_shape)
    detected = dataclasses.replace(
        detect_format(tensors, plain_parameters(model)),
        format=file_format,
        granularity=found_mask.provenance.granularity,
    )
    return ImportedModel(detected, tensors, found_mask, prefix)


def adopt_weights(
    architecture: Architecture,
    weights: PathLike,
    records: Records,
    split: Split,
    *,
    mask: PathLike | None = None,
    pruned: PrunedBy | Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    split_file: PathLike | None = None,
) -> Trained:
    """Make a trained model (in evaluation mode) from imported weights, however they were pruned.

    Normalisation statistics in the file that differ from the architecture's are counted as measured on the training
    records, because nothing records otherwise.

    Args:
        architecture: the network that the weights belong to.
        weights: see `import_model`.
        records: the records that the model classifies.
        split: which of them the weights were trained on (`split.train`) and which not. It is compared with a
            trained.json beside the weights or the split; nothing else verifies it.
        mask: see `import_model`.
        pruned: see `import_model`.
        recipe: the recipe that retraining should follow, if known.
        split_file: the file that the split was read from.

    Raises:
        FileError, MaskError, ModelError, ConfigError: see `import_model`; FileError if weights and split do not belong
            together (`expunge.models.recorded_pair`); and ModelError if the weights hold NaN or are nonzero where the
            mask prunes them.

    Example:
        >>> import expunge
        >>> from expunge.sparsity import Rule, export_dense, make_mask
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = expunge.architecture("mlp", records, split, widths=(16,))
        >>> model = network.build(0)
        >>> mask, _ = make_mask(model, Rule(layers=("linear",), sparsity=0.75))
        >>> export_dense(model, mask, "weights.safetensors")
        >>> trained = adopt_weights(network, "weights.safetensors", records, split, mask="zeros")
        >>> trained.mask.sparsity
        0.75
    """
    imported = import_model(architecture, weights, mask=mask, pruned=pruned)
    return adopt_imported(architecture, weights, imported, records, split, recipe=recipe, split_file=split_file)


def adopt_imported(
    architecture: Architecture,
    weights: PathLike,
    imported: ImportedModel,
    records: Records,
    split: Split,
    *,
    recipe: Mapping[str, Any] | None = None,
    split_file: PathLike | None = None,
) -> Trained:
    """Make a trained model from the result of `import_model`; the other arguments are those of `adopt_weights`.

    Example:
        >>> import expunge
        >>> from expunge.sparsity import export_dense, import_model
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = expunge.architecture("mlp", records, split, widths=(16,))
        >>> export_dense(network.build(0), None, "weights.safetensors")
        >>> imported = import_model(network, "weights.safetensors")
        >>> imported.describe()
        'dense, 0.00 % of the weights are exactly zero'
        >>> adopt_imported(network, "weights.safetensors", imported, records, split).mask is None
        True
    """
    trained = adopt_plain_weights(
        architecture, weights, records, split, tensors=imported.tensors, mask=imported.mask, recipe=recipe,
        split_file=split_file, prefix=imported.prefix,
    )  # fmt: skip
    (history,) = trained.provenance.history
    provenance = dataclasses.replace(trained.provenance, history=(f"{history} ({imported.describe()})",))
    return dataclasses.replace(trained, provenance=provenance)


def _clear_negative_zeros(tensor: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """Replace -0.0 of masked weights (a product with a mask leaves it) by +0.0; other values are unchanged."""
    if kept is None or kept.shape != tensor.shape:
        return tensor
    return tensor.masked_fill(~kept & (tensor == 0), 0.0)


def _check_factory(metadata: Mapping[str, Any], wanted: Architecture, path: PathLike) -> None:
    """Refuse a file that names another custom factory than the requested one, before it is imported and called."""
    body = metadata.get("architecture")
    name = (body.get("name") or body.get("factory")) if isinstance(body, Mapping) else None
    if isinstance(name, str) and is_custom(name) and name != wanted.name:
        raise ModelError(
            f"the smaller network was cut from {name}, but {wanted.name} was requested",
            where=path,
            hint="request the factory from which it was cut, if you trust it: it is imported and called",
        )


def _check_same_network(found: Architecture, wanted: Architecture, path: PathLike) -> None:
    for key in ("name", "options", "input_shape", "classes"):
        have, want = getattr(found, key), getattr(wanted, key)
        if have != want:
            raise ModelError(
                f"the smaller network was cut from one with {key} {have}, but {want} was requested",
                where=path,
                hint="request the architecture from which it was cut",
            )


def _read_zeros(
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    architecture: Architecture,
    declared: PrunedBy,
    path: PathLike,
) -> Mask:
    """Read the zeros of a loaded model as its mask, and record what the file does not say.

    The granularity is that of the layer types that were pruned; zeros of other parameters are added to the mask.
    """
    layers = declared.layers or _find_types_with_zeros(model)
    zeros = mask_from_zeros(model, layers)
    ranked = set(prunable_weights(model, layers)) if layers else set()
    others = {name: tensor for name, tensor in zeros.kept.items() if name not in ranked}
    rounded = count_rounded_zeros({name: t for name, t in tensors.items() if name in zeros.kept})
    if rounded is not None and rounded["expected"] > rounded["zeros"] / 10:
        raise MaskError(
            f"many of the {rounded['zeros']} zeros are weights that {rounded['dtype']} rounded to 0, not pruned ones: "
            f"about {rounded['expected']:.0f}, since other weights are as small ({rounded['below']:.1g})",
            where=path,
            hint="give the weights in float32, or a mask file",
        )
    by_rule = {name: tensor for name, tensor in zeros.kept.items() if name in ranked}
    mask = infer_mask(by_rule, plain_state(model), architecture, declared, file_format="baked-zeros")
    kept = {**mask.kept, **{name: t & mask.kept[name] if name in mask.kept else t for name, t in others.items()}}
    details, provenance = dict(mask.provenance.details), mask.provenance
    if not declared.layers and any(t.dim() > 1 for t in others.values()):
        provenance = dataclasses.replace(provenance, layers=())  # the rule of these layer types does not explain them
    if rounded is not None:
        details["rounded_zeros"] = rounded
    if left_out := find_zero_parameters(model):
        details["zero_parameters"] = list(left_out)
    return Mask(kept, dataclasses.replace(provenance, details=details))


def _find_types_with_zeros(model: nn.Module) -> tuple[str, ...]:
    """Return the layer types whose weights include exact zeros."""
    return tuple(
        name
        for name in find_layer_types(model)
        if any(bool((w.detach() == 0).any()) for w in prunable_weights(model, [name]).values())
    )
