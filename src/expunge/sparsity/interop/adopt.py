"""A model that arrives pruned becomes a trained model: weights, mask, and what is known of how it was pruned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from expunge.core.errors import FileError, MaskError, ModelError
from expunge.core.files import PathLike, read_tensors
from expunge.core.mask import SCHEMA as MASK_KIND
from expunge.core.mask import Mask
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.models import Architecture, load_tensors, own_names
from expunge.models import adopt_weights as adopt_plain
from expunge.models.factory import is_own
from expunge.sparsity.channels.layers import prunable
from expunge.sparsity.compression.small_model import KIND as SMALL_KIND
from expunge.sparsity.compression.small_model import masked_from_small
from expunge.sparsity.masks.consistency import check_stated, with_sparsity

from .formats import Recognised, from_torch_prune, is_torch_prune, kinds_of, mask_from_zeros, recognise
from .provenance import PrunedBy, completed, provenanced

ZEROS = "zeros"


@dataclasses.dataclass(frozen=True, eq=False)
class Arrived:
    """A weights file as it arrived.

    Attributes:
        recognised: form, granularity, sparsity; the form is `dense`, `baked zeros`, `torch-prune`, `mask file` or
            `smaller` (physically, by `save_small`).
        tensors: weights and buffers under the model's own names, masked ones +0.0.
        mask: the mask, or None where there is none (dense), or nobody asked for the zeros to be one. Its sparsity is
            recorded: that of what was ranked, where the file states none.
    """

    recognised: Recognised
    tensors: Mapping[str, torch.Tensor]
    mask: Mask | None

    def text(self) -> str:
        """What the file turned out to be, in words."""
        found, held = self.recognised, self.mask
        if held is None:
            return f"{found.form}, {100 * found.sparsity:.2f} % of the weights are exactly zero"
        words = {
            "torch-prune": "torch.nn.utils.prune tensors (weight_orig, weight_mask)",
            "baked zeros": "zeros in the weights, read as a mask",
            "mask file": "a mask file",
            "smaller": "a physically smaller network, read back as the masked one that it was cut from",
        }
        share = f"{100 * held.sparsity:.2f} % of {held.total:,} weights in {len(held.alive)} tensors are masked"
        return f"{words[found.form]}: {share}, granularity {held.provenance.granularity}"


def read_arrived(
    architecture: Architecture, weights: PathLike, *, mask: PathLike | None = None, pruned: PrunedBy | None = None
) -> Arrived:
    """Recognise a weights file and read its mask.

    Args:
        architecture: the network that the weights belong to.
        weights: a safetensors file: plain weights, `torch.nn.utils.prune` tensors, or a file of `save_small`.
        mask: an expunge mask file, or the word `zeros`: a weight is dead where it is exactly 0.
        pruned: what is known of the pruning; where a file says it too, the two must agree.

    Raises:
        FileError: a file is missing, damaged, a pickle, or of another kind.
        MaskError: the mask is damaged or does not fit, there are two, it is not what its stated scope and sparsity
            make, `pruned` contradicts the file, or (zeros) a layer is zero throughout.
        ModelError: the weights do not fit the architecture.
        ConfigError: `pruned` names what is unknown.
    """
    told = (pruned or PrunedBy()).checked()
    tensors, metadata = read_tensors(weights)
    if metadata.get("kind") == MASK_KIND:
        raise FileError("is a mask, not the weights of a model", where=weights, hint="name it as model.mask")
    brings_its_own = metadata.get("kind") == SMALL_KIND or is_torch_prune(tensors)
    if mask is not None and brings_its_own:
        raise MaskError("the weights bring their own mask; leave model.mask out", where=mask)
    model = architecture.build()
    if metadata.get("kind") == SMALL_KIND:
        _check_own(metadata, architecture, weights)
        found, tensors, cut = masked_from_small(weights)
        _check_same_network(found, architecture, weights)
        if isinstance(cut, Mask):
            given = completed(cut, pruned, model, where=weights)
        else:
            given = provenanced(cut, tensors, architecture, told, form="physically smaller")
        form = "smaller"
    elif is_torch_prune(tensors):
        plain, read = from_torch_prune(tensors)
        tensors = own_names(plain, model)
        alive = own_names(read.alive, model)
        Mask(alive, read.provenance).check_fits(model)
        form, given = "torch-prune", provenanced(alive, tensors, architecture, told, form="torch.nn.utils.prune")
    elif mask is None:
        tensors = own_names(tensors, model)
        return Arrived(recognise(tensors), tensors, None)
    elif str(mask) == ZEROS:
        model = load_tensors(model, tensors, weights)
        tensors = own_names(tensors, model)
        kinds = told.layers or _kinds_with_zeros(model)
        alive = dict(mask_from_zeros(model, kinds).alive)
        told = dataclasses.replace(told, layers=kinds)
        form, given = "baked zeros", provenanced(alive, tensors, architecture, told, form="baked zeros")
    else:
        loaded = Mask.load(mask)
        loaded.check_fits(model)
        form, given = "mask file", completed(loaded, pruned, model, where=mask)
        tensors = own_names(tensors, model)
    tensors = {name: _positive(tensor, given.alive.get(name)) for name, tensor in tensors.items()}
    given = with_sparsity(given, model, architecture.input_shape)
    check_stated(given, model, architecture.input_shape)
    recognised = dataclasses.replace(recognise(tensors), form=form, granularity=given.provenance.granularity)
    return Arrived(recognised, tensors, given)


def adopt_weights(
    architecture: Architecture,
    weights: PathLike,
    records: Records,
    split: Split,
    *,
    mask: PathLike | None = None,
    pruned: PrunedBy | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Trained:
    """A trained model from weights that came from elsewhere, however they were pruned, in eval mode.

    Args:
        architecture: the network that the weights belong to.
        weights: see `read_arrived`.
        records: the records that the model classifies.
        split: which of them the weights were trained on (`split.train`) and which they never saw; taken on trust.
        mask: see `read_arrived`.
        pruned: see `read_arrived`.
        recipe: the recipe that retraining should follow, if it is known.

    Input constants in the file that are not the architecture's are counted as measured on training records, because
    nothing says otherwise.

    Raises:
        FileError, MaskError, ModelError, ConfigError: see `read_arrived`; and ModelError where the weights hold NaN or
            give life to masked weights.
    """
    arrived = read_arrived(architecture, weights, mask=mask, pruned=pruned)
    return adopted(architecture, weights, arrived, records, split, recipe=recipe)


def adopted(
    architecture: Architecture,
    weights: PathLike,
    arrived: Arrived,
    records: Records,
    split: Split,
    *,
    recipe: Mapping[str, Any] | None = None,
) -> Trained:
    """The trained model of what `read_arrived` read; see `adopt_weights`."""
    trained = adopt_plain(
        architecture, weights, records, split, tensors=arrived.tensors, mask=arrived.mask, recipe=recipe
    )
    (history,) = trained.provenance.history
    provenance = dataclasses.replace(trained.provenance, history=(f"{history} ({arrived.text()})",))
    return dataclasses.replace(trained, provenance=provenance)


def _positive(tensor: torch.Tensor, alive: torch.Tensor | None) -> torch.Tensor:
    """The tensor with -0.0 of masked weights made +0.0 (a product with a mask leaves it); other values stay."""
    if alive is None or alive.shape != tensor.shape:
        return tensor
    return tensor.masked_fill(~alive & (tensor == 0), 0.0)


def _check_own(metadata: Mapping[str, Any], wanted: Architecture, path: PathLike) -> None:
    """Refuse a file that names a factory other than the one asked for, before what it names is imported and called."""
    body = metadata.get("architecture")
    name = (body.get("name") or body.get("factory")) if isinstance(body, Mapping) else None
    if isinstance(name, str) and is_own(name) and name != wanted.name:
        raise ModelError(
            f"the smaller network was cut from {name}, and {wanted.name} is asked for",
            where=path,
            hint="name the factory that it was cut from, if you trust it: it is imported and called",
        )


def _check_same_network(found: Architecture, wanted: Architecture, path: PathLike) -> None:
    for key in ("name", "options", "input_shape", "classes"):
        have, want = getattr(found, key), getattr(wanted, key)
        if have != want:
            raise ModelError(
                f"the smaller network was cut from one with {key} {have}, and {want} is asked for",
                where=path,
                hint="name the architecture that it was cut from",
            )


def _kinds_with_zeros(model: nn.Module) -> tuple[str, ...]:
    """Kinds of layers in whose weights there are exact zeros; all kinds there are where there is none."""
    present = kinds_of(model)
    sparse = tuple(
        kind for kind in present if any(bool((w.detach() == 0).any()) for w in prunable(model, [kind]).values())
    )
    return sparse or present
